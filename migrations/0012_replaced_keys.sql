-- Keys that were replaced lately. They open nothing but the answer to the request that replaced them, for a client that lost it
-- and sends the request again with its Idempotency-Key: of an encrypted project, nobody else could ever tell the new key.
create table replaced_keys (
    secret_key_hmac varchar(64) primary key,
    project_id      uuid not null references projects on delete cascade,
    replaced_at     timestamptz not null default now()
);

create index replaced_keys_project on replaced_keys (project_id);
create index replaced_keys_at on replaced_keys (replaced_at);
