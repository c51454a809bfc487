-- Conversations: sessions, their messages, and the files of messages.

create table sessions (
    id                    uuid primary key,
    project_id            uuid not null references projects on delete cascade,
    user_id               uuid references users on delete cascade,
    disable_task_tracking boolean not null default false,
    configs               jsonb,
    created_at            timestamptz not null default now(),
    updated_at            timestamptz not null default now(),
    -- The newest message, how many wait for their tasks to be looked for, and whether a job is there that will look. Every
    -- stored message moves these, so no index may contain them, and pages keep room for the row's next form.
    last_message_id       uuid,
    last_message_at       timestamptz,
    unobserved            int not null default 0,
    observing             boolean not null default false
) with (fillfactor = 70);

create index sessions_created on sessions (project_id, created_at, id);
create index sessions_user on sessions (user_id, created_at, id);
create index sessions_configs on sessions using gin (configs jsonb_path_ops);

-- `created_at` rises strictly within a session: it is taken under the session's lock. `parent_id` is the message before,
-- deliberately no foreign key: messages go only with their session, and a check for each would slow every store.
create table messages (
    id                          uuid primary key,
    session_id                  uuid not null references sessions on delete cascade,
    parent_id                   uuid,
    role                        text not null check (role in ('user', 'assistant')),
    -- The provider's format that `content` is written in.
    format                      text not null check (format in ('acontext', 'openai', 'anthropic', 'gemini')),
    -- The message as JSON text. Not jsonb, which can hold neither a NUL nor numbers as they were written.
    content                     bytea not null,
    -- How the content is sealed: null for plain text, else the name of the form.
    seal                        text,
    -- Of the text in the message, counted once when it is stored.
    tokens                      int not null,
    -- What the format says about the message, and what the client keeps with it.
    meta                        jsonb not null,
    user_meta                   jsonb not null,
    -- Calls of a Gemini model that wait for their answers: [{"id", "name"}], null if none does.
    open_calls                  jsonb,
    task_id                     uuid,
    session_task_process_status text not null default 'pending',
    created_at                  timestamptz not null,
    updated_at                  timestamptz not null
);

-- Short contents stay in the row as they are, long ones lie beside it: reading them costs more to unpack than to fetch.
alter table messages alter column content set storage external;
alter table messages set (toast_tuple_target = 8160);

create unique index messages_order on messages (session_id, created_at) include (tokens);
create index messages_open_calls on messages (session_id, created_at) where open_calls is not null;

-- The files of a message, by the public name that its parts tell.
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

create index message_files_session on message_files (session_id, s3_key);
create index message_files_blob on message_files (blob_id);

create trigger message_files_release
    after delete on message_files referencing old table as gone
    for each statement execute function release_blobs();

create or replace view blob_references as
select blob_id from artifact_versions
union all
select blob_id from message_files;
