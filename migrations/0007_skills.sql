-- Agent skills, and the learning spaces that collect skills and learn new ones from sessions.

-- A skill is a disk with a name: its files are the disk's files, and it is deleted with the disk. It was updated when its disk was
-- changed (`disks.changed_at`): clients fetch the skills that have changed since they last asked.
create table agent_skills (
    id          uuid primary key,
    project_id  uuid not null references projects on delete cascade,
    user_id     uuid references users on delete cascade,
    disk_id     uuid not null unique references disks on delete cascade,
    name        text not null,
    description text not null,
    meta        jsonb,
    created_at  timestamptz not null default now(),
    unique (id, name)
);

create index agent_skills_project_id_created_at_id_idx on agent_skills (project_id, created_at, id);
create index agent_skills_user_id_created_at_id_idx on agent_skills (user_id, created_at, id);

create table learning_spaces (
    id         uuid primary key,
    project_id uuid not null references projects on delete cascade,
    user_id    uuid references users on delete cascade,
    meta       jsonb,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create index learning_spaces_project_id_created_at_id_idx on learning_spaces (project_id, created_at, id);
create index learning_spaces_user_id_created_at_id_idx on learning_spaces (user_id, created_at, id);
create index learning_spaces_meta_idx on learning_spaces using gin (meta jsonb_path_ops);

-- The skills of a space, one of each name. The name is repeated here so that two concurrent requests cannot break that rule.
create table learning_space_skills (
    id                uuid primary key,
    learning_space_id uuid not null references learning_spaces on delete cascade,
    skill_id          uuid not null,
    skill_name        text not null,
    created_at        timestamptz not null default now(),
    unique (learning_space_id, skill_id),
    unique (learning_space_id, skill_name),
    foreign key (skill_id, skill_name) references agent_skills (id, name) on update cascade on delete cascade
);

create index learning_space_skills_skill_id_skill_name_idx on learning_space_skills (skill_id, skill_name);

-- The sessions that spaces learn from. A session belongs to one space at most.
create table learning_space_sessions (
    id                uuid primary key,
    learning_space_id uuid not null references learning_spaces on delete cascade,
    session_id        uuid not null unique references sessions on delete cascade,
    status            text not null default 'pending'
        check (status in ('pending', 'distilling', 'queued', 'skill_writing', 'completed', 'failed')),
    created_at        timestamptz not null default now(),
    updated_at        timestamptz not null default now()
);

create index learning_space_sessions_learning_space_id_created_at_id_idx on learning_space_sessions (learning_space_id, created_at, id);

-- For each session whose learning is pending: the facts that decide when it begins and how it ends.
create view pending_learning_sessions as
select l.id, l.learning_space_id, l.session_id, l.created_at,
       exists (select 1 from messages m where m.session_id = l.session_id
               and m.session_task_process_status in ('pending', 'running')) as has_pending_messages,
       exists (select 1 from messages m where m.session_id = l.session_id
               and m.session_task_process_status in ('failed', 'limit_exceed')) as has_failed,
       exists (select 1 from tasks t where t.session_id = l.session_id and not t.is_planning
               and t.status in ('pending', 'running')) as has_open_tasks,
       exists (select 1 from tasks t where t.session_id = l.session_id and not t.is_planning
               and t.status in ('success', 'failed')) as has_finished_tasks
from learning_space_sessions l
where l.status = 'pending';
