-- What was answered to requests that came with an Idempotency-Key, so that one which comes twice acts once. A row is written
-- in the transaction of the effect: either both are there or neither.

create table kept_answers (
    -- SHA-256 of whose request it was, its method, its path and its key.
    id          bytea primary key,
    -- Null for the operator's requests, which are no project's.
    project_id  uuid references projects on delete cascade,
    -- SHA-256 of what else was sent: a key stands for one request.
    fingerprint bytea not null,
    -- Both are null only inside of the transaction that acts.
    status      smallint,
    -- Sealed under the pepper and the key as the client sent it, which is not here: an answer may contain a secret.
    body        bytea,
    created_at  timestamptz not null default now(),
    check ((status is null) = (body is null))
);

-- What is sealed cannot be packed.
alter table kept_answers alter column body set storage external;

create index kept_answers_created on kept_answers (created_at);
create index kept_answers_project on kept_answers (project_id);
