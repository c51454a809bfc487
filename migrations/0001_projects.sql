-- A project is a tenant: everything else belongs to one. Names and types of `projects` are read and written by others
-- (dashboard, operators, upstream's own test suite): keep them.

create table projects (
    id                  uuid primary key default gen_random_uuid(),
    secret_key_hmac     varchar(64) not null,
    secret_key_hash_phc varchar(255) not null,
    encryption_enabled  boolean not null default false,
    configs             jsonb,
    created_at          timestamptz not null default now(),
    updated_at          timestamptz not null default now()
);

create unique index projects_secret_key_hmac on projects (secret_key_hmac);
create index projects_configs on projects using gin (configs);

-- Every process keeps verified keys for up to a minute. Whoever changes what a key opens, through the API or by hand,
-- this tells all of them at once. Settings in `configs` are not cached and need no word.
create function tell_project_changed() returns trigger language plpgsql as $$
begin
    perform pg_notify('acontextd_projects', old.id::text);
    return null;
end
$$;

create trigger projects_changed
    after update of secret_key_hmac, secret_key_hash_phc, encryption_enabled or delete on projects
    for each row execute function tell_project_changed();

-- Facts about this installation that must survive a restart.
create table server_state (
    name       text primary key,
    value      text not null,
    updated_at timestamptz not null default now()
);
