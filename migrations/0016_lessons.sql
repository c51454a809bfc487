-- What learning spaces learn from sessions.

-- When the status last became `success` or `failed`; null while the task is open. A task is learned once for each time it ends.
alter table tasks add column ended_at timestamptz;
update tasks set ended_at = updated_at where status in ('success', 'failed') and not is_planning;

-- A lesson is learned from one end of a task, or from preferences that the user has stated in a session. A job distills it, and
-- another one writes it to the skills of the space. A lesson is open while its state is one of the first three and one of these
-- jobs is ready or running.
create table lessons (
    id                uuid primary key,
    project_id        uuid not null references projects on delete cascade,
    learning_space_id uuid not null references learning_spaces on delete cascade,
    session_id        uuid not null references sessions on delete cascade,
    -- The task, its end, and its status and data at that end; null if the lesson is about preferences.
    task_id           uuid references tasks on delete cascade,
    ended_at          timestamptz,
    task_status       text check (task_status in ('pending', 'running', 'success', 'failed')),
    task_data         jsonb,
    state             text not null check (state in ('distilling', 'pending', 'writing', 'written', 'skipped', 'failed')),
    -- Null until the lesson is distilled.
    kind              text check (kind in ('success', 'failure', 'facts', 'preferences')),
    -- The lesson as UTF-8 text. If `encrypted_as` is not null, the text is encrypted, and that is the id in its associated data.
    content           bytea,
    encrypted_as      uuid,
    -- The messages that the lesson is based on, at most 200.
    message_ids       uuid[] not null default '{}',
    -- Why the lesson was skipped, or why it failed.
    reason            text,
    created_at        timestamptz not null default now(),
    -- When the lesson was distilled. The lessons of a space are written in this order.
    distilled_at      timestamptz,
    updated_at        timestamptz not null default now(),
    unique (learning_space_id, task_id, ended_at)
);

create index lessons_project_id_idx on lessons (project_id);
create index lessons_session_id_idx on lessons (session_id);
create index lessons_task_id_idx on lessons (task_id);
create index lessons_pending_idx on lessons (learning_space_id, distilled_at, id) where state in ('pending', 'writing');

-- `jobs_dedupe_key_idx` finds the job of a lesson that is ready, this index one that is running.
create index jobs_running_dedupe_key_idx on jobs (kind, dedupe_key) where state = 'running';

-- Returns whether a job will distill or write a lesson.
create function lesson_has_job(lesson uuid) returns boolean language sql stable parallel safe as $$
    select exists (select 1 from jobs j where j.kind in ('distill', 'write_lesson') and j.dedupe_key = lesson::text
                   and j.state = 'ready')
        or exists (select 1 from jobs j where j.kind in ('distill', 'write_lesson') and j.dedupe_key = lesson::text
                   and j.state = 'running')
$$;

-- Tasks whose distillation waits for this version become lessons.
with waiting as (
    delete from jobs where kind = 'distill' and state in ('ready', 'running')
    returning project_id, (payload ->> 'task')::uuid as task_id, encrypted_kek
),
created as (
    insert into lessons (id, project_id, learning_space_id, session_id, task_id, ended_at, task_status, task_data, state)
    select gen_random_uuid(), t.project_id, l.learning_space_id, t.session_id, t.id, t.ended_at, t.status, t.data, 'distilling'
    from waiting w
    join tasks t on t.id = w.task_id and t.ended_at is not null
    join learning_space_sessions l on l.session_id = t.session_id
    on conflict do nothing
    returning id, project_id, session_id, task_id
)
insert into jobs (id, project_id, kind, payload, dedupe_key, run_at, encrypted_kek)
select gen_random_uuid(), c.project_id, 'distill',
       jsonb_build_object('session', c.session_id, 'task', c.task_id, 'lesson', c.id), c.id::text, now(),
       (select w.encrypted_kek from waiting w where w.task_id = c.task_id limit 1)
from created c;

drop view pending_learning_sessions;

-- For each session whose learning is not finished: the facts that decide how it continues.
create view learning_progress as
select l.id, l.learning_space_id, l.session_id, l.status, l.created_at,
       exists (select 1 from messages m where m.session_id = l.session_id
               and m.session_task_process_status in ('pending', 'running')) as has_pending_messages,
       exists (select 1 from messages m where m.session_id = l.session_id
               and m.session_task_process_status in ('failed', 'limit_exceed')) as has_failed_messages,
       exists (select 1 from tasks t where t.session_id = l.session_id and not t.is_planning
               and t.status in ('pending', 'running')) as has_open_tasks,
       coalesce(o.has_open_lessons, false) as has_open_lessons,
       coalesce(o.has_failed_lessons, false) as has_failed_lessons,
       coalesce(o.has_lessons, false) as has_lessons
from learning_space_sessions l
left join lateral (
    select true as has_lessons, bool_or(is_open) as has_open_lessons,
           bool_or(state = 'failed' or state not in ('written', 'skipped') and not is_open) as has_failed_lessons
    from (select s.state, s.state in ('distilling', 'pending', 'writing') and lesson_has_job(s.id) as is_open
          from lessons s where s.session_id = l.session_id and s.learning_space_id = l.learning_space_id) s
    having count(*) > 0
) o on true
where l.status not in ('completed', 'failed');

-- Why the learning of a session waits or has failed. A reason that is final is that of a failed lesson.
create view learning_reasons as
select s.learning_space_id, s.session_id, j.last_error as reason, j.updated_at, false as is_final
from lessons s
join jobs j on j.kind in ('distill', 'write_lesson') and j.dedupe_key = s.id::text and j.state = 'ready'
where s.state in ('distilling', 'pending', 'writing') and j.last_error is not null
union all
select s.learning_space_id, s.session_id, s.reason, s.updated_at, true
from lessons s
where s.state = 'failed' and s.reason is not null;
