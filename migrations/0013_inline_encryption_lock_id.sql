-- Returns the same id as before. With `||` of a text and a uuid, which is not immutable, Postgres could not inline the function,
-- and parsed and planned its body again in each statement that stores messages.
create or replace function encryption_lock_id(project uuid) returns bigint language sql immutable as $$
    select hashtextextended('acontextd seals ' || project::text, 0)
$$;
