-- Every row that keeps a blob alive. A table that refers to blobs must be added here and needs the trigger that calls
-- `release_blobs`; a test compares both with the foreign keys.
create view blob_references as
select blob_id from artifact_versions
union all
select blob_id from message_files;

-- What operators and the dashboard read to learn how much is stored: a row for each stored content.
create view asset_references as
select id, project_id, sha256, object_key as s3_key,
       jsonb_build_object('size_b', size, 'sha256', sha256) as asset_meta,
       created_at as last_referenced_at, created_at, created_at as updated_at
from blobs
where state = 'live';
