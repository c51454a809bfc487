-- The cost of language models: a row for each call.

create table model_calls (
    id                uuid primary key,
    project_id        uuid not null references projects on delete cascade,
    -- What the call was made for.
    purpose           text not null check (purpose in ('task_agent', 'distillation', 'skill_agent', 'check')),
    -- Deliberately not a foreign key: the cost remains when the space is deleted.
    learning_space_id uuid,
    -- The name that the provider reported, or the configured name if the call failed.
    model             text not null,
    outcome           text not null check (outcome in
        ('ok', 'unavailable', 'misconfigured', 'context_too_long', 'rejected', 'canceled')),
    -- Tokens of the whole request, and those of them that the provider read from its cache.
    input_tokens      bigint not null,
    cached_tokens     bigint not null,
    output_tokens     bigint not null,
    duration_ms       bigint not null,
    -- When the call ended.
    created_at        timestamptz not null default now()
);

create index model_calls_project_id_created_at_idx on model_calls (project_id, created_at);
-- Old rows are deleted.
create index model_calls_created_at_idx on model_calls (created_at);

-- The class of `last_error`, for clients.
alter table jobs add column error_class text check (error_class in
    ('key', 'model', 'model_settings', 'database', 'timeout', 'upgrade', 'internal'));
-- The list of a project's jobs.
create index jobs_project_id_created_at_id_idx on jobs (project_id, created_at, id);

-- The jobs of a session name it.
update jobs j set payload = j.payload || jsonb_build_object('session', t.session_id)
from tasks t where j.kind = 'distill' and t.id = (j.payload ->> 'task')::uuid;
