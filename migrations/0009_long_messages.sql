-- A long message comes and goes in slices, so that no process has to hold it more than once. They lie here within the one
-- transaction that stores the message, and are never seen by another: a crash may empty the table.
create unlogged table message_slices (
    message_id uuid not null,
    n int not null,
    slice bytea not null,
    primary key (message_id, n)
);
alter table message_slices alter column slice set storage external;
