-- Encrypted projects. `projects.encryption_enabled` says how content is to be stored from now on; each message and each blob
-- says itself how it is stored, so that both can be read while the one is turned into the other.

-- Of which message the content was first sealed: that id is bound into the seal, and copies keep it. Null for plain content.
alter table messages drop column seal;
alter table messages add column sealed_as uuid;

-- Tells whether a master key is the one that this project's content is sealed with. Null as long as none is.
alter table projects add column seal_check bytea;

-- Whether a project's content is to be stored sealed, for as long as the transaction lasts: whoever changes that takes the same
-- lock alone. Null if somebody changes it just now and the caller does not wait. The question is a statement of its own, so that
-- it sees what was committed while the lock was waited for.
create function stores_sealed(project uuid, waits boolean) returns boolean language plpgsql volatile as $$
declare
    lock bigint := hashtextextended('acontextd seals ' || project, 0);
begin
    if waits then
        perform pg_advisory_xact_lock_shared(lock);
    elsif not pg_try_advisory_xact_lock_shared(lock) then
        return null;
    end if;
    return (select encryption_enabled from projects where id = project);
end
$$;

-- The last time that a project's content was turned from one form into the other.
create table conversions (
    project_id uuid primary key references projects on delete cascade,
    -- Of this conversion: whoever works on it notices that it was turned back, and again, meanwhile.
    id         uuid not null default gen_random_uuid(),
    -- Sealed, or else opened.
    seals      boolean not null,
    -- Messages and stored objects.
    total      bigint not null,
    done       bigint not null default 0,
    -- What could not be done, and how many that is true of.
    failed     bigint not null default 0,
    error      text,
    started_at timestamptz not null default now(),
    ended_at   timestamptz
);

create or replace view current_artifacts as
select a.disk_id, a.path, a.filename, v.meta, v.mime, v.size, v.sha256, b.object_key, a.created_at, a.updated_at,
       b.id as blob_id, b.seal, b.wrapped_key
from artifacts a
join artifact_versions v
  on v.disk_id = a.disk_id and v.path = a.path and v.filename = a.filename and v.to_no is null
join blobs b on b.id = v.blob_id;

-- Jobs that wait for their project's key, which only its owner can bring.
create index jobs_keyless on jobs (project_id) where state = 'ready' and last_error = 'needs the project''s key';

-- Every process keeps this with the keys that it has verified.
drop trigger projects_changed on projects;
create trigger projects_changed
    after update of secret_key_hmac, secret_key_hash_phc, encryption_enabled, seal_check, configs or delete on projects
    for each row execute function tell_project_changed();

-- Whether the project's own key is needed to open a kept answer, besides what came with the request.
alter table kept_answers add column with_key boolean not null default false;
