-- What decides how the learning of a session continues, and why it waits or has failed.

-- The last column is new: lessons that consist of preferences do not come from a task.
create or replace view learning_progress as
select l.id, l.learning_space_id, l.session_id, l.status, l.created_at,
       exists (select 1 from messages m where m.session_id = l.session_id
               and m.session_task_process_status in ('pending', 'running')) as has_pending_messages,
       exists (select 1 from messages m where m.session_id = l.session_id
               and m.session_task_process_status in ('failed', 'limit_exceed')) as has_failed_messages,
       exists (select 1 from tasks t where t.session_id = l.session_id and not t.is_planning
               and t.status in ('pending', 'running')) as has_open_tasks,
       coalesce(o.has_open_lessons, false) as has_open_lessons,
       coalesce(o.has_failed_lessons, false) as has_failed_lessons,
       coalesce(o.has_lessons, false) as has_lessons,
       coalesce(o.has_task_lessons, false) as has_task_lessons
from learning_space_sessions l
left join lateral (
    select true as has_lessons, bool_or(task_id is not null) as has_task_lessons, bool_or(is_open) as has_open_lessons,
           bool_or(state = 'failed' or state not in ('written', 'skipped') and not is_open) as has_failed_lessons
    from (select s.state, s.task_id, s.state in ('distilling', 'pending', 'writing') and lesson_has_job(s.id) as is_open
          from lessons s where s.session_id = l.session_id and s.learning_space_id = l.learning_space_id) s
    having count(*) > 0
) o on true
where l.status not in ('completed', 'failed');

drop view learning_reasons;

-- Why the learning of a session waits or has failed. Of the reasons of a session, the one with the lowest priority number
-- counts, and of these the newest one.
create view learning_reasons as
-- A lesson waits to be distilled or written.
select s.learning_space_id, s.session_id, 1 as priority, j.last_error as reason, j.updated_at
from lessons s
join jobs j on j.kind in ('distill', 'write_lesson') and j.dedupe_key = s.id::text and j.state = 'ready'
where s.state in ('distilling', 'pending', 'writing') and j.last_error is not null
union all
-- The observation of the messages, or the completion of the open tasks, waits.
select l.learning_space_id, l.session_id, 1, j.last_error, j.updated_at
from learning_space_sessions l
join jobs j on j.kind in ('observe', 'conclude') and j.dedupe_key = l.session_id::text and j.state = 'ready'
where l.status not in ('completed', 'failed') and j.last_error is not null
union all
-- A lesson has failed.
select s.learning_space_id, s.session_id, 2, s.reason, s.updated_at
from lessons s
where s.state = 'failed' and s.reason is not null
union all
-- The observation of messages has failed.
select l.learning_space_id, l.session_id, 3, j.last_error, j.updated_at
from learning_space_sessions l
join sessions s on s.id = l.session_id
join jobs j on j.project_id = s.project_id and j.payload ->> 'session' = l.session_id::text and j.kind = 'observe'
               and j.state = 'failed'
where l.status = 'failed' and j.last_error is not null
union all
select l.learning_space_id, l.session_id, 3, 'the project has exceeded its quota of tasks', l.updated_at
from learning_space_sessions l
where l.status = 'failed' and exists (select 1 from messages m where m.session_id = l.session_id
                                      and m.session_task_process_status = 'limit_exceed')
union all
-- What has failed was retried, or its job has been deleted.
select l.learning_space_id, l.session_id, 4, 'an earlier attempt to learn from the session has failed', l.updated_at
from learning_space_sessions l
where l.status = 'failed';
