-- Disks and the files on them.

create table disks (
    id         uuid primary key default gen_random_uuid(),
    project_id uuid not null references projects on delete cascade,
    user_id    uuid references users on delete cascade,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create index disks_created on disks (project_id, created_at, id);
create index disks_user on disks (user_id, created_at, id);

-- Every change of files draws a number here, after it has locked the files it changes. So the numbers of one file rise,
-- and whoever holds a disk's row alone sees all changes below the next number.
create sequence artifact_change_no;

-- A file that is there now. Its row outlives each content: replacing moves `updated_at`, never `created_at`.
-- Names sort by their bytes, whatever the database's locale is.
create table artifacts (
    id         uuid primary key default gen_random_uuid(),
    disk_id    uuid not null references disks on delete cascade,
    path       text collate "C" not null,
    filename   text collate "C" not null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create unique index artifacts_name on artifacts (disk_id, path, filename);

-- Each content a file has had: valid from change `from_no` until change `to_no`, null for the current one. The state of
-- a disk at number n is `from_no <= n and (to_no is null or to_no > n)`. Versions are kept by name, not by artifact, so
-- that a file which was taken away can be brought back.
create table artifact_versions (
    disk_id    uuid not null references disks on delete cascade,
    path       text collate "C" not null,
    filename   text collate "C" not null,
    from_no    bigint not null,
    to_no      bigint check (to_no > from_no),
    blob_id    uuid not null references blobs,
    meta       jsonb not null,
    mime       text not null,
    size       bigint not null,
    sha256     text not null,
    made_by    text not null,
    reason     text,
    created_at timestamptz not null default now(),
    primary key (disk_id, path, filename, from_no)
);

create unique index artifact_versions_current on artifact_versions (disk_id, path, filename) where to_no is null;
create index artifact_versions_blob on artifact_versions (blob_id);

create trigger artifact_versions_release
    after delete on artifact_versions referencing old table as gone
    for each statement execute function release_blobs();

create view current_artifacts as
select a.disk_id, a.path, a.filename, v.meta, v.mime, v.size, v.sha256, b.object_key, a.created_at, a.updated_at
from artifacts a
join artifact_versions v
  on v.disk_id = a.disk_id and v.path = a.path and v.filename = a.filename and v.to_no is null
join blobs b on b.id = v.blob_id;

-- Every row that keeps a blob alive, whatever table it is in. A table that refers to blobs must be added here and have
-- the trigger that tells when a reference goes; a test compares both with the foreign keys.
create view blob_references as
select blob_id from artifact_versions;

-- What operators and the dashboard read to know how much is stored: a row for each stored content.
create view asset_references as
select id, project_id, sha256, object_key as s3_key,
       jsonb_build_object('size_b', size, 'sha256', sha256) as asset_meta,
       created_at as last_referenced_at, created_at, created_at as updated_at
from blobs
where state = 'live';
