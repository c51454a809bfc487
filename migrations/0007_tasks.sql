-- What is noticed in a session: the tasks that its messages work on, and the events that clients tell.

create table tasks (
    id          uuid primary key default gen_random_uuid(),
    session_id  uuid not null references sessions on delete cascade,
    project_id  uuid not null,
    "order"     bigint not null,
    data        jsonb not null,
    status      text not null default 'pending' check (status in ('pending', 'running', 'success', 'failed')),
    -- A session has one task that is no work of its own: it holds the messages that only plan.
    is_planning boolean not null default false,
    created_at  timestamptz not null default now(),
    updated_at  timestamptz not null default now(),
    unique (session_id, "order")
);

create index tasks_created on tasks (session_id, created_at, id);
create index tasks_project on tasks (project_id);

alter table messages add constraint messages_task_id_fkey foreign key (task_id) references tasks on delete set null;
create index messages_task on messages (task_id) where task_id is not null;
-- Which messages of a session wait for their tasks to be looked for, and which are looked at.
create index messages_unobserved on messages (session_id, created_at)
    where session_task_process_status in ('pending', 'running');

-- How much was done for a project, a row for each day and tag.
create table metrics (
    id         uuid primary key default gen_random_uuid(),
    project_id uuid not null references projects on delete cascade,
    tag        text not null,
    increment  bigint not null default 0,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create index metrics_tag on metrics (project_id, tag, created_at);

create table session_events (
    id         uuid primary key,
    session_id uuid not null references sessions on delete cascade,
    project_id uuid not null,
    type       text not null,
    data       jsonb not null,
    created_at timestamptz not null,
    updated_at timestamptz not null
);

create index session_events_created on session_events (session_id, created_at, id);
