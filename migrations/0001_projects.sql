-- A project is a tenant: everything else belongs to one. Other programs (the dashboard, operators, Acontext's own test suite) read
-- and write `projects`: keep its names, its types, and the defaults of all columns but the two of the key.

create table projects (
    id                     uuid primary key default gen_random_uuid(),
    secret_key_hmac        varchar(64) not null,
    secret_key_hash_phc    varchar(255) not null,
    encryption_enabled     boolean not null default false,
    configs                jsonb,
    created_at             timestamptz not null default now(),
    updated_at             timestamptz not null default now(),
    -- Identifies the master key that the content of this project is encrypted with; null if no content is encrypted.
    master_key_check_value bytea
);

create unique index projects_secret_key_hmac_key on projects (secret_key_hmac);
create index projects_configs_idx on projects using gin (configs);

-- Every process caches verified keys together with these columns. This notifies all of them of each change, made through the API
-- or by hand.
create function notify_project_changed() returns trigger language plpgsql as $$
begin
    perform pg_notify('acontextd_projects', old.id::text);
    return null;
end
$$;

create trigger projects_changed
    after update of secret_key_hmac, secret_key_hash_phc, encryption_enabled, master_key_check_value, configs or delete on projects
    for each row execute function notify_project_changed();

-- The advisory lock of the way a project's content is stored.
create function encryption_lock_id(project uuid) returns bigint language sql immutable as $$
    select hashtextextended('acontextd seals ' || project, 0)
$$;

-- Returns whether a project's content is to be stored encrypted, and keeps that true until the transaction ends: a transaction
-- that changes `encryption_enabled` takes the same lock exclusively. Returns null if another transaction is changing it and `wait`
-- is false. The query is a statement of its own, so that it sees what was committed while this waited for the lock.
create function encryption_enabled_for_share(project uuid, wait boolean) returns boolean language plpgsql volatile as $$
begin
    if wait then
        perform pg_advisory_xact_lock_shared(encryption_lock_id(project));
    elsif not pg_try_advisory_xact_lock_shared(encryption_lock_id(project)) then
        return null;
    end if;
    return (select encryption_enabled from projects where id = project);
end
$$;

-- Keys that were rotated lately. They authenticate nothing but a repetition of the request that rotated them, for a client that
-- lost the response and sends the request again with its Idempotency-Key: the new key itself is not stored.
create table rotated_keys (
    secret_key_hmac varchar(64) primary key,
    project_id      uuid not null references projects on delete cascade,
    rotated_at      timestamptz not null default now()
);

create index rotated_keys_project_id_idx on rotated_keys (project_id);
create index rotated_keys_rotated_at_idx on rotated_keys (rotated_at);

-- Facts about this installation that must survive a restart.
create table server_state (
    name       text primary key,
    value      text not null,
    updated_at timestamptz not null default now()
);
