//! The integration tests, as one binary: each further one would cost a link of everything.
//!
//! `support` has what they stand on: a Postgres for the whole run, a database for each test, the real surface called in
//! process, and the worlds outside as fakes. Where the program itself is meant (start, stop, kill), the real binary is run.

#![expect(unreachable_pub, reason = "nothing here can be reached from outside")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod admin;
mod artifacts;
mod auth;
mod blobs;
mod conversions;
mod crash;
mod database;
mod disks;
mod embedded;
mod encryption;
mod events;
mod frame;
mod host;
mod idempotency;
mod ingest;
mod isolation;
mod jobs;
mod keys;
mod layers;
mod learning;
mod links;
mod memory;
mod message_files;
mod messages;
mod metrics;
mod observe;
mod openapi;
mod paging;
mod pepper;
mod pooler;
mod project_configs;
mod schema;
mod seals;
mod search;
mod sessions;
mod skill_archives;
mod skills;
mod spaces;
mod start;
mod support;
mod sweep;
mod uploads;
mod usages;
mod users;
mod writer;
