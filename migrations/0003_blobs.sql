-- A row for each stored object. The object is written once, under a key of its own, and never overwritten:
--   pending  the object may or may not be there yet
--   live     complete, and found by its content; rows may refer to it
--   dead     nothing refers to it; the object goes first, then the row
-- `project_id` is deliberately no foreign key: the rows of a deleted project must stay until their objects are gone.

create table blobs (
    id          uuid primary key,
    project_id  uuid not null,
    object_key  text not null unique,
    sha256      text not null,
    size        bigint not null check (size >= 0),
    state       text not null default 'pending' check (state in ('pending', 'live', 'dead')),
    -- How the object is sealed: null for plain bytes, else the name of the form and the wrapped key of this object.
    seal        text,
    wrapped_key bytea,
    created_at  timestamptz not null default now(),
    check ((seal is null) = (wrapped_key is null))
);

-- Equal content of one project is stored once.
create unique index blobs_live on blobs (project_id, sha256) where state = 'live';
create index blobs_pending on blobs (created_at) where state = 'pending';
create index blobs_dead on blobs (id) where state = 'dead';

-- A row for each time something stopped referring to a blob, written by triggers of the referring tables. The sweep looks
-- only here, so that its work grows with what was deleted and not with what is stored.
create table released_blobs (
    blob_id     uuid not null references blobs on delete cascade,
    released_at timestamptz not null default now()
);

create index released_blobs_at on released_blobs (released_at);
create index released_blobs_blob on released_blobs (blob_id);

create function release_blobs() returns trigger language plpgsql as $$
begin
    insert into released_blobs (blob_id) select distinct blob_id from gone;
    return null;
end
$$;
