-- What has changed since the billing service was told.
create index metrics_changed on metrics (updated_at);
