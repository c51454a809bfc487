-- The last conversion of each project's content between plain and encrypted storage. `projects.encryption_enabled` says how new
-- content is stored; each message and each blob says itself how it is stored, so both can be read during a conversion.

create table encryption_conversions (
    project_id  uuid primary key references projects on delete cascade,
    -- Changes with each conversion, so that a job notices that its conversion was replaced by another one.
    id          uuid not null default gen_random_uuid(),
    -- Whether the conversion encrypts; it decrypts otherwise.
    encrypt     boolean not null,
    -- Messages and objects.
    total       bigint not null,
    converted   bigint not null default 0,
    -- How many could not be converted, and the reason of one of them.
    failed      bigint not null default 0,
    error       text,
    started_at  timestamptz not null default now(),
    finished_at timestamptz
);
