-- Reasons also for lessons whose work ended early, while an attempt is repeated, and with what can be done about a failure.
drop view learning_reasons;

-- Why the learning of a session waits, has failed, or has ended early. Of the reasons of a session, the one with the lowest
-- priority number counts, and of these the newest one.
create view learning_reasons as
-- A lesson waits to be distilled or written, or this is tried again.
select s.learning_space_id, s.session_id, 1 as priority, j.last_error as reason, j.updated_at
from lessons s
join jobs j on j.kind in ('distill', 'write_lesson') and j.dedupe_key = s.id::text and j.state in ('ready', 'running')
where s.state in ('distilling', 'pending', 'writing') and j.last_error is not null
union all
-- The observation of the messages, or the completion of the open tasks, waits.
select l.learning_space_id, l.session_id, 1, j.last_error, j.updated_at
from learning_space_sessions l
join jobs j on j.kind in ('observe', 'conclude') and j.dedupe_key = l.session_id::text and j.state in ('ready', 'running')
where l.status not in ('completed', 'failed') and j.last_error is not null
union all
-- A lesson has failed.
select s.learning_space_id, s.session_id, 2, s.reason || '; a flush of the session tries it again', s.updated_at
from lessons s
where s.state = 'failed' and s.reason is not null
union all
-- The observation of messages has failed.
select l.learning_space_id, l.session_id, 3, j.last_error || '; a flush of the session tries it again', j.updated_at
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
-- What has failed was tried again, or its job has been deleted.
select l.learning_space_id, l.session_id, 4,
       'an earlier attempt to learn from the session has failed, and this status is final; the changes of the learning space '
       || 'show what was learned since', l.updated_at
from learning_space_sessions l
where l.status = 'failed'
union all
-- The model has ended its work on a lesson early, so the lesson may not be in the skills.
select s.learning_space_id, s.session_id, 5, s.reason, s.updated_at
from lessons s
where s.state = 'written' and s.reason is not null;
