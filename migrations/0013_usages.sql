-- What operators ask about a project is counted by day, and must be found without reading the rest.
drop index tasks_project;
create index tasks_project on tasks (project_id, created_at);
create index blobs_stored on blobs (project_id, created_at) include (size) where state = 'live';
