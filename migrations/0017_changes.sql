-- What has changed files, and why.

-- A row for each transaction that changes the content or the path of files of a disk. A transaction that changes files of several
-- disks inserts a row for each disk. Changes of user metadata alone have no row. The row refers to things that may be deleted
-- later, so only the disk is a foreign key: with the disk, its paths must go, too. A project is deleted with its disks. A foreign
-- key to the project would lock the row of the project with each upload, in the opposite order to the deletion of a project.
create table changes (
    id                uuid primary key,
    project_id        uuid not null,
    disk_id           uuid not null references disks on delete cascade,
    at                timestamptz not null default now(),
    actor             text not null check (actor in ('key', 'learner', 'import', 'operator')),
    request_id        text,
    job_id            uuid,
    model             text,
    -- What the learner has learned from: the space for which it has changed the files, the lesson with its session and its task,
    -- and the messages on which the lesson is based.
    learning_space_id uuid,
    session_id        uuid,
    task_id           uuid,
    lesson_id         uuid,
    message_ids       uuid[] not null default '{}' check (cardinality(message_ids) <= 200),
    -- Stored as plaintext, also in an encrypted project.
    note              text check (char_length(note) <= 500)
);

create index changes_project_id_id_idx on changes (project_id, id desc);
create index changes_disk_id_learning_space_id_at_id_idx on changes (disk_id, learning_space_id, at, id);
-- Ordered by time, and not only by `id`: a query with that order could read the primary key, with the changes of all spaces.
create index changes_learning_space_id_at_id_idx on changes (learning_space_id, at, id) where learning_space_id is not null;
create index changes_task_id_idx on changes (task_id) where task_id is not null;

-- What a change has done to each file, in the order in which it was done.
create table change_files (
    change_id     uuid not null references changes on delete cascade,
    position      int not null,
    path          text collate "C" not null,
    filename      text collate "C" not null,
    op            text not null check (op in ('create', 'replace', 'move', 'delete')),
    -- The previous path of a file that was moved.
    from_path     text collate "C",
    from_filename text collate "C",
    -- The version that the change has created; for a deleted file, its last version. Null if the versions were deleted with the
    -- file. The version may have been deleted since, because a file keeps only its latest versions.
    version_id    uuid,
    primary key (change_id, position),
    check ((op = 'move') = (from_path is not null and from_filename is not null))
);

-- `change_id` is null if the version differs from the previous one only in its user metadata, and in versions that are older than
-- this column. Those were all made by requests with a project key: other values of `author`, and `reason`, were never written.
alter table artifact_versions
    add column id uuid not null default gen_random_uuid(),
    add column change_id uuid,
    -- As in Unix: whether a program that extracts the file may make it executable.
    add column mode text not null default '0644' check (mode in ('0644', '0755')),
    drop column author,
    drop column reason;

create or replace view current_artifacts as
select a.disk_id, a.path, a.filename, v.meta, v.mime, v.size, v.sha256, b.object_key, a.created_at, a.updated_at,
       b.id as blob_id, b.encryption_format, b.wrapped_key, v.mode, v.id as version_id
from artifacts a
join artifact_versions v
  on v.disk_id = a.disk_id and v.path = a.path and v.filename = a.filename and v.to_revision is null
join blobs b on b.id = v.blob_id;
