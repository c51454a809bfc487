-- A row for each stored object. An object is written once, under a key of its own, and never overwritten.
--   pending  the object may or may not exist yet
--   live     the object is complete; rows may refer to it, and equal content of the project is stored by referring to it
--   dead     nothing refers to it; the object is deleted first, then the row
-- `project_id` is deliberately not a foreign key: the rows of a deleted project must stay until their objects are deleted.

create table blobs (
    id                uuid primary key,
    project_id        uuid not null,
    object_key        text not null unique,
    sha256            text not null,
    size              bigint not null check (size >= 0),
    state             text not null default 'pending' check (state in ('pending', 'live', 'dead')),
    -- How the object is encrypted, and its wrapped key; both are null for plain bytes.
    encryption_format text check (encryption_format in ('chunked', 'acontext')),
    wrapped_key       bytea,
    created_at        timestamptz not null default now(),
    check ((encryption_format is null) = (wrapped_key is null))
);

-- Equal content of one project is stored once.
create unique index blobs_live_idx on blobs (project_id, sha256) where state = 'live';
create index blobs_pending_idx on blobs (created_at) where state = 'pending';
create index blobs_dead_idx on blobs (id) where state = 'dead';
create index blobs_live_created_at_idx on blobs (project_id, created_at) include (size) where state = 'live';

-- A row for each time a row that referred to a blob was deleted, written by triggers of the referring tables. The sweep reads only
-- this table, so its work grows with what was deleted and not with what is stored.
create table blob_releases (
    blob_id     uuid not null references blobs on delete cascade,
    released_at timestamptz not null default now()
);

create index blob_releases_released_at_idx on blob_releases (released_at);
create index blob_releases_blob_id_idx on blob_releases (blob_id);

create function release_blobs() returns trigger language plpgsql as $$
begin
    insert into blob_releases (blob_id) select distinct blob_id from deleted_rows;
    return null;
end
$$;
