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
