-- How much was done for a project: a row for each project, day and tag.

create table metrics (
    id         uuid primary key default gen_random_uuid(),
    project_id uuid not null references projects on delete cascade,
    tag        text not null,
    increment  bigint not null default 0,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create index metrics_project_id_tag_created_at_idx on metrics (project_id, tag, created_at);
-- Rows that have changed since they were last pushed to the billing service.
create index metrics_updated_at_idx on metrics (updated_at);
