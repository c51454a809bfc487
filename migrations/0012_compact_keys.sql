-- True if the key is a compact key: only its compact form is then accepted, although its secret in hex has the same hash. Null
-- for keys that an earlier version or Acontext has stored: both forms are accepted.
alter table projects add column key_is_compact boolean;
alter table rotated_keys add column key_is_compact boolean;
