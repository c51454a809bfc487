//! `acontextd`: an agent's data and memory backend in one process, wire-compatible with Acontext.
//!
//! The modules are grouped by layer, from the bottom to the top; `tests/it/layers.rs` has the exact order and checks that each uses only
//! lower ones. First come pure modules without I/O, then the platform ([`db`], [`jobs`], [`blob`], [`http`] and others), which names
//! no feature; [`platform`] has the handles that features share. Features are the nouns of the API; in each, `mod.rs` has the types,
//! rules and routes, `api.rs` HTTP handlers and `store.rs` SQL. [`features`] lists all routes, job kinds and periodic tasks.
//! [`startup`] brings everything up.

// Pure.
pub mod config;
pub mod conversation;
pub mod crypto;
pub mod ids;
pub mod json;
pub mod media;
pub mod percent;
pub mod text_enum;
pub mod time;

// The platform.
pub mod blob;
pub mod db;
pub mod embedded;
pub mod encryption;
pub mod error;
pub mod http;
pub mod jobs;
pub mod llm;
pub mod platform;
pub mod process;
pub mod telemetry;

// Who is calling.
pub mod auth;

// The features.
pub mod disks;
pub mod learn;
pub mod learning_spaces;
pub mod material;
pub mod messages;
pub mod projects;
pub mod sessions;
pub mod skills;
pub mod status;
pub mod tasks;
pub mod usage_metrics;
pub mod users;

// The program.
pub mod features;
pub mod startup;
