-- Disks and the files on them.

create table disks (
    id         uuid primary key default gen_random_uuid(),
    project_id uuid not null references projects on delete cascade,
    user_id    uuid references users on delete cascade,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    -- When a file last changed; null if nothing tracks the changes of this disk. Rises strictly with each change, regardless
    -- of the order in which transactions commit.
    changed_at timestamptz
);

create index disks_project_id_created_at_id_idx on disks (project_id, created_at, id);
create index disks_user_id_created_at_id_idx on disks (user_id, created_at, id);

-- Every change of files draws its number here after it has locked the files it changes. So the numbers of one file rise, and a
-- transaction that holds the exclusive lock of a disk's row sees all changes with lower numbers than the next one.
create sequence artifact_revision;

-- A file that exists now. Its row outlives each content: replacing the content moves `updated_at`, never `created_at`. Names sort
-- by their bytes, regardless of the locale of the database.
create table artifacts (
    id         uuid primary key default gen_random_uuid(),
    disk_id    uuid not null references disks on delete cascade,
    path       text collate "C" not null,
    filename   text collate "C" not null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create unique index artifacts_disk_id_path_filename_key on artifacts (disk_id, path, filename);

-- Each content that a file has had: valid from `from_revision` until `to_revision`, which is null for the current content. The state of a disk
-- at number n is `from_revision <= n and (to_revision is null or to_revision > n)`. Versions belong to a name and not to an artifact, so that a
-- deleted file can be restored.
create table artifact_versions (
    disk_id       uuid not null references disks on delete cascade,
    path          text collate "C" not null,
    filename      text collate "C" not null,
    from_revision bigint not null,
    to_revision   bigint check (to_revision > from_revision),
    blob_id       uuid not null references blobs,
    meta          jsonb not null,
    mime          text not null,
    size          bigint not null,
    sha256        text not null,
    author        text not null check (author in ('key', 'learner', 'import', 'operator')),
    reason        text,
    created_at    timestamptz not null default now(),
    primary key (disk_id, path, filename, from_revision)
);

create unique index artifact_versions_current_idx on artifact_versions (disk_id, path, filename) where to_revision is null;
create index artifact_versions_blob_id_idx on artifact_versions (blob_id);

create trigger artifact_versions_release
    after delete on artifact_versions referencing old table as deleted_rows
    for each statement execute function release_blobs();

create view current_artifacts as
select a.disk_id, a.path, a.filename, v.meta, v.mime, v.size, v.sha256, b.object_key, a.created_at, a.updated_at,
       b.id as blob_id, b.encryption_format, b.wrapped_key
from artifacts a
join artifact_versions v
  on v.disk_id = a.disk_id and v.path = a.path and v.filename = a.filename and v.to_revision is null
join blobs b on b.id = v.blob_id;
