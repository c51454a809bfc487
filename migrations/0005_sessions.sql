-- Sessions with their tasks, messages, files of messages, and events.

create table sessions (
    id                    uuid primary key,
    project_id            uuid not null references projects on delete cascade,
    user_id               uuid references users on delete cascade,
    disable_task_tracking boolean not null default false,
    configs               jsonb,
    created_at            timestamptz not null default now(),
    updated_at            timestamptz not null default now(),
    -- The newest message, the number of messages that the task agent has not processed, and whether a job exists that will process
    -- them. Storing a message updates these four columns, so no index may contain them, and pages leave room for the new row.
    last_message_id       uuid,
    last_message_at       timestamptz,
    pending_messages      int not null default 0,
    has_observe_job       boolean not null default false
) with (fillfactor = 70);

-- The job that processes the pending messages of a session, for the statements that enqueue or look for one. The payload is that of
-- the program's type `Observe`.
create function observe_job(session uuid) returns table (kind text, payload jsonb, lane text, dedupe_key text)
language sql immutable parallel safe as $$
    select 'observe', jsonb_build_object('session', session), 'session:' || session, session::text
$$;

create index sessions_project_id_created_at_id_idx on sessions (project_id, created_at, id);
create index sessions_user_id_created_at_id_idx on sessions (user_id, created_at, id);
create index sessions_configs_idx on sessions using gin (configs jsonb_path_ops);

create table tasks (
    id          uuid primary key default gen_random_uuid(),
    session_id  uuid not null references sessions on delete cascade,
    project_id  uuid not null,
    "order"     bigint not null,
    data        jsonb not null,
    status      text not null default 'pending' check (status in ('pending', 'running', 'success', 'failed')),
    -- A session has one planning task, which stands for no work of its own: it holds the messages that only plan.
    is_planning boolean not null default false,
    created_at  timestamptz not null default now(),
    updated_at  timestamptz not null default now(),
    unique (session_id, "order")
);

create index tasks_session_id_created_at_id_idx on tasks (session_id, created_at, id);
create index tasks_project_id_created_at_idx on tasks (project_id, created_at);

-- `created_at` rises strictly within a session: it is taken while the session is locked. `parent_id` is the previous message, and
-- deliberately not a foreign key: messages are deleted only with their session, and a check would slow every insert down.
create table messages (
    id                          uuid primary key,
    session_id                  uuid not null references sessions on delete cascade,
    parent_id                   uuid,
    role                        text not null check (role in ('user', 'assistant')),
    -- The provider's format that `content` is written in.
    format                      text not null check (format in ('acontext', 'openai', 'anthropic', 'gemini')),
    -- The message as JSON text. Not jsonb, which stores neither NUL characters nor numbers as they were written.
    content                     bytea not null,
    -- Tokens of the message's text, counted when it is stored.
    tokens                      int not null,
    -- Metadata that the format defines, and metadata that the client supplied.
    meta                        jsonb not null,
    user_meta                   jsonb not null,
    -- Calls of a Gemini model without a result yet: [{"id", "name"}]; null if there is none.
    pending_calls               jsonb,
    task_id                     uuid references tasks on delete set null,
    session_task_process_status text not null default 'pending'
        check (session_task_process_status in ('pending', 'running', 'success', 'failed', 'disable_tracking', 'limit_exceed')),
    created_at                  timestamptz not null,
    updated_at                  timestamptz not null,
    -- The message that `content` was first encrypted for: its id is part of the associated data, and copies keep it. Null if
    -- `content` is plain.
    encrypted_as                uuid
);

-- Short contents stay in the row uncompressed, long ones are stored outside of it: decompressing costs more than fetching.
alter table messages alter column content set storage external;
alter table messages set (toast_tuple_target = 8160);

create unique index messages_session_id_created_at_key on messages (session_id, created_at) include (tokens);
create index messages_pending_calls_idx on messages (session_id, created_at) where pending_calls is not null;
create index messages_task_id_idx on messages (task_id) where task_id is not null;
-- Messages that the task agent has not processed yet, or is processing.
create index messages_pending_idx on messages (session_id, created_at)
    where session_task_process_status in ('pending', 'running');

-- A long message is sent to and from the database in slices, so that no process holds more than one copy of it. The rows exist only
-- within the transaction that stores the message; no other transaction sees them, and a crash may empty the table.
create unlogged table message_slices (
    message_id uuid not null,
    seq        int not null,
    bytes      bytea not null,
    primary key (message_id, seq)
);

alter table message_slices alter column bytes set storage external;

-- The files of a message, by the public name that its parts contain.
create table message_files (
    message_id uuid not null references messages on delete cascade,
    s3_key     text not null,
    session_id uuid not null,
    blob_id    uuid not null references blobs,
    sha256     text not null,
    mime       text not null,
    filename   text not null,
    primary key (message_id, s3_key)
);

create index message_files_session_id_s3_key_idx on message_files (session_id, s3_key);
create index message_files_blob_id_idx on message_files (blob_id);

create trigger message_files_release
    after delete on message_files referencing old table as deleted_rows
    for each statement execute function release_blobs();

-- Events that clients report about a session.
create table session_events (
    id         uuid primary key,
    session_id uuid not null references sessions on delete cascade,
    project_id uuid not null,
    type       text not null,
    data       jsonb not null,
    created_at timestamptz not null,
    updated_at timestamptz not null
);

create index session_events_session_id_created_at_id_idx on session_events (session_id, created_at, id);
