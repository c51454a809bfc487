-- Users are the people an agent works for. The first request that names an identifier inserts its row.

create table users (
    id         uuid primary key default gen_random_uuid(),
    project_id uuid not null references projects on delete cascade,
    identifier text not null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create unique index users_project_id_identifier_key on users (project_id, identifier);
create index users_project_id_created_at_id_idx on users (project_id, created_at, id);
