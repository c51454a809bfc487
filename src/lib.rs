//! `acontextd`: a data and memory backend for AI agents in one process, wire-compatible with Acontext.
//!
//! The modules are grouped by layer, from the bottom to the top. A module uses only lower layers; `tests/it/layers.rs` has
//! the exact order and checks it. The lowest modules do no I/O, except that [`config`] reads the environment, and [`ids`] the
//! clock. Above them is the platform ([`db`], [`jobs`], [`blob`], [`http`] and others), which uses no feature; [`platform`] has
//! the handles that features share. A feature serves one kind of resource of the API, such as sessions or disks: `mod.rs` has
//! its types, rules and routes, `api.rs` its HTTP handlers, and `store.rs` its SQL. [`features`] lists all routes, job kinds
//! and periodic tasks. [`startup`] starts and stops the server.

// Pure modules.
pub mod config;
pub mod conversation;
pub mod crypto;
pub mod ids;
pub mod json;
pub mod mime;
pub mod percent;
pub mod text_enum;
pub mod time;

// The platform.
pub mod blob;
pub mod confine;
pub mod db;
pub mod embedded;
pub mod encryption;
pub mod error;
pub mod http;
pub mod job_control;
pub mod jobs;
pub mod llm;
pub mod platform;
pub mod process;
pub mod telemetry;

// Authentication.
pub mod auth;

// The features.
pub mod disks;
pub mod learn;
pub mod learning_spaces;
pub mod lessons;
pub mod material;
pub mod messages;
pub mod projects;
pub mod sandboxes;
pub mod sessions;
pub mod skills;
pub mod status;
pub mod tasks;
pub mod usage_metrics;
pub mod users;

// The server.
pub mod features;
pub mod startup;
