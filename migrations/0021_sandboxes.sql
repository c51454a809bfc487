-- Sandboxes, and what was done in them. The rows remain after a sandbox has ended: they are its log.

create table sandboxes (
    id                  uuid primary key,
    project_id          uuid not null references projects on delete cascade,
    provider            text not null check (provider in ('local', 'e2b', 'cloudflare')),
    -- The id by which the provider knows the sandbox. Null until it has been created, and after it has ended.
    provider_sandbox_id text,
    -- The data directory that has the files of a local sandbox. Null for other providers.
    host_id             uuid,
    state               text not null default 'starting' check (state in ('starting', 'running', 'ended')),
    -- How long the sandbox lives if it gets no further call, as counted by the metric `sandbox.alive`.
    alive_seconds       bigint not null,
    generated_files     text[] not null default '{}',
    expires_at          timestamptz not null,
    ended_at            timestamptz,
    created_at          timestamptz not null default now(),
    updated_at          timestamptz not null default now(),
    check ((state = 'ended') = (ended_at is not null)),
    check ((state = 'running') = (provider_sandbox_id is not null))
);

create index sandboxes_project_id_created_at_id_idx on sandboxes (project_id, created_at, id);
create index sandboxes_expires_at_idx on sandboxes (expires_at) where state <> 'ended';
create index sandboxes_project_id_idx on sandboxes (project_id) where state <> 'ended';

-- The commands of sandboxes. A row is inserted before the command runs, and completed after it has ended.
create table sandbox_commands (
    id           uuid primary key,
    sandbox_id   uuid not null references sandboxes on delete cascade,
    project_id   uuid not null,
    -- The beginning of the command: UTF-8, encrypted in an encrypted project.
    command      bytea not null,
    -- The id in the associated data of the encryption. Null if the command is not encrypted.
    encrypted_as uuid,
    -- The request that has sent the command, if it had an idempotency key.
    request_hash bytea unique,
    started_at   timestamptz not null default clock_timestamp(),
    ended_at     timestamptz,
    exit_code    int,
    end_reason   text check (end_reason in ('exited', 'timed_out', 'out_of_memory', 'out_of_disk', 'killed', 'interrupted')),
    stdout_bytes bigint,
    stderr_bytes bigint,
    check ((ended_at is null) = (exit_code is null) and (ended_at is null) = (end_reason is null))
);

create index sandbox_commands_sandbox_id_id_idx on sandbox_commands (sandbox_id, id);
create index sandbox_commands_running_idx on sandbox_commands (sandbox_id) where ended_at is null;
-- For the conversion of a project to the other storage format.
create index sandbox_commands_project_id_id_idx on sandbox_commands (project_id, id);
