-- The responses to requests with an Idempotency-Key, so that a repeated request takes effect once. A row is written in the
-- transaction of the effect: either both exist or neither.

create table idempotency_records (
    -- SHA-256 of the caller, the method, the path and the idempotency key.
    key_hash                  bytea primary key,
    -- Null for requests with the admin token, which belong to no project.
    project_id                uuid references projects on delete cascade,
    -- SHA-256 of the rest of the request: a key must not be used for another request.
    fingerprint               bytea not null,
    -- Both are null only within the transaction that takes the effect.
    status                    smallint,
    -- Encrypted with a key derived from the pepper and the idempotency key, which is not stored: a response may contain a secret.
    body                      bytea,
    created_at                timestamptz not null default now(),
    -- Whether decrypting `body` takes the project's master key too.
    encrypted_with_master_key boolean not null default false,
    check ((status is null) = (body is null))
);

-- Ciphertext cannot be compressed.
alter table idempotency_records alter column body set storage external;

create index idempotency_records_created_at_idx on idempotency_records (created_at);
create index idempotency_records_project_id_idx on idempotency_records (project_id);
