-- Background work. A row is inserted in the transaction that makes the work necessary and deleted in the one that
-- completes it.
--   lane    at most one running job of a lane
--   dedupe  at most one waiting job of a kind and key; its time can only come nearer

create table jobs (
    id          uuid primary key,
    -- Whose work it is, for fairness; the nil id for the server's own.
    project_id  uuid not null,
    kind        text not null,
    payload     jsonb not null,
    -- The project's key for work on an encrypted project, itself sealed; gone with the row.
    sealed_key  bytea,
    lane        text,
    dedupe      text,
    state       text not null default 'ready' check (state in ('ready', 'running', 'failed')),
    run_at      timestamptz not null default now(),
    attempt     int not null default 0,
    lease_owner uuid,
    lease_until timestamptz,
    last_error  text,
    -- Where the work came from, as a W3C traceparent.
    trace       text,
    created_at  timestamptz not null default now(),
    updated_at  timestamptz not null default now(),
    check ((state = 'running') = (lease_owner is not null and lease_until is not null))
);

create unique index jobs_dedupe on jobs (kind, dedupe) where state = 'ready';
create unique index jobs_lane on jobs (lane) where state = 'running';
create index jobs_due on jobs (project_id, run_at, id) where state = 'ready';
create index jobs_next on jobs (run_at) where state = 'ready';
create index jobs_lease on jobs (lease_until) where state = 'running';
create index jobs_failed on jobs (updated_at) where state = 'failed';
