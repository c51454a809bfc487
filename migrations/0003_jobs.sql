-- Background jobs. A row is inserted in the transaction that makes the work necessary, and deleted in the one that completes it.
--   lane        at most one job of a lane runs at a time
--   dedupe_key  at most one job of a kind and key is ready; enqueuing another one can only make the first one due earlier

create table jobs (
    id               uuid primary key,
    -- The project that the job works for, for fairness between projects; the nil UUID for the server's own jobs.
    project_id       uuid not null,
    kind             text not null,
    payload          jsonb not null,
    -- The master key for work on an encrypted project, itself encrypted.
    encrypted_kek    bytea,
    lane             text,
    dedupe_key       text,
    state            text not null default 'ready' check (state in ('ready', 'running', 'failed')),
    run_at           timestamptz not null default now(),
    attempt          int not null default 0,
    worker_id        uuid,
    lease_expires_at timestamptz,
    -- What a ready job waits for that could not do its work; null if only for its time.
    wait_reason      text check (wait_reason in ('key', 'model', 'time_slice', 'upgrade')),
    last_error       text,
    -- The span that enqueued the job, as a W3C traceparent.
    traceparent      text,
    created_at       timestamptz not null default now(),
    updated_at       timestamptz not null default now(),
    check ((state = 'running') = (worker_id is not null and lease_expires_at is not null)),
    check (wait_reason is null or state = 'ready')
);

create unique index jobs_dedupe_key_idx on jobs (kind, dedupe_key) where state = 'ready';
create unique index jobs_lane_idx on jobs (lane) where state = 'running';
create index jobs_due_idx on jobs (project_id, run_at, id) where state = 'ready';
create index jobs_next_idx on jobs (run_at) where state = 'ready';
create index jobs_lease_idx on jobs (lease_expires_at) where state = 'running';
create index jobs_failed_idx on jobs (updated_at) where state = 'failed';
-- Jobs that wait for their project's key, which only a request with that key can provide.
create index jobs_awaiting_key_idx on jobs (project_id) where wait_reason = 'key';
