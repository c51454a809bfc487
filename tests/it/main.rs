//! The integration tests. They are one binary, because each further binary would have to be linked with everything.
//!
//! `support` contains what the tests use: one Postgres for the whole run, a database for each test, the real API,
//! called in the same process, and fakes of external services. Tests of the process itself (startup, shutdown, kill)
//! run the real binary.

#![expect(unreachable_pub, reason = "nothing in a test binary can be reached from outside")]
#![expect(clippy::unwrap_used, reason = "a test that cannot continue has failed")]

#[path = "../acceptors/mod.rs"]
mod acceptors;
mod admin;
mod artifacts;
mod auth;
mod blobs;
mod changes;
mod connections;
mod crash;
mod database;
mod disks;
mod embedded;
mod encryption;
mod encryption_conversion;
mod equal_files;
mod events;
mod histories;
mod host;
mod http;
mod idempotency;
mod ingest;
mod isolation;
mod job_control;
mod jobs;
mod json_bodies;
mod keys;
mod layers;
mod learning;
mod learning_crash;
mod lessons;
mod links;
mod memory;
mod message_files;
mod messages;
mod metrics;
mod models;
mod observation_crash;
mod observe;
mod openapi;
mod paging;
mod pepper;
mod pooler;
mod project_configs;
mod responses;
mod s3;
mod s3_credentials;
mod sandboxes;
mod schema;
mod search;
mod sessions;
mod skill_archives;
mod skills;
mod space_changes;
mod spaces;
mod start;
mod startup;
mod support;
mod sweep;
mod tampering;
mod task_agent;
mod tool_turns;
mod uploads;
mod usages;
mod users;
mod writer;
