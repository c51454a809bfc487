//! `acontextd`: an agent's data and memory backend in one process, wire-compatible with Acontext.
//!
//! Start reading at [`app`]: what the program is made of. Folders are the nouns of the API (`sessions`, `messages`, `tasks`,
//! `disks`, `skills`, `spaces`, `projects`, `users`); in each, `mod.rs` has the types and rules, `api.rs` the HTTP, `store.rs` the SQL. [`learn`] is
//! what is made of conversations in the background. What is no noun of the API (`http`, `blob`, `jobs`, `llm`, `embedded`) is the
//! platform below them and names no feature. [`start`] brings the parts together.

pub mod app;
pub mod auth;
pub mod blob;
pub mod config;
pub mod conversation;
pub mod crypto;
pub mod db;
pub mod disks;
pub mod embedded;
pub mod error;
pub mod http;
pub mod ids;
pub mod jobs;
pub mod json;
pub mod learn;
pub mod llm;
pub mod media;
pub mod messages;
pub mod metrics;
pub mod percent;
pub mod projects;
pub mod seal;
pub mod sessions;
pub mod skills;
pub mod spaces;
pub mod start;
pub mod tasks;
pub mod telemetry;
pub mod time;
pub mod users;
