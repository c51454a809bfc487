-- The list of a session's jobs.
create index jobs_project_id_session_created_at_id_idx on jobs (project_id, (payload ->> 'session'), created_at, id);
