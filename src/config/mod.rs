//! Settings, read from flags and the environment into [`Config`]. The doc comments of its fields are the text of `--help`.
//!
//! A setting that Acontext also has keeps the name of its environment variable. The names of most other variables begin with
//! `ACONTEXTD_`. Some variables have an alias, which takes precedence (see `load::ALIASES`). An empty variable counts as unset.
//! For an invalid value, [`Config::load`] returns a message that names the setting and describes the valid values.

#![expect(clippy::doc_markdown, reason = "the doc comments are the text of --help")]

mod help;
mod limits;
mod load;
mod model;
mod s3;
mod sandbox;
mod values;

pub use limits::Limits;
pub use load::EarlyExit;
pub use model::{Model, Provider};
pub use s3::S3;
pub use sandbox::{Sandbox, SandboxIsolation, SandboxType};
pub use values::{MIN_EXPOSED_SECRET_LEN, is_short_secret};

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use secrecy::{ExposeSecret, SecretString};

use values::{parse_bool, parse_count, parse_duration, parse_nonzero_duration, parse_port, parse_ratio, parse_url};

/// Data and memory backend for AI agents, wire-compatible with Acontext.
///
/// Without any configuration, the server keeps all data in one directory: the files of an embedded Postgres, which it
/// starts and stops itself, and the objects. Set DATABASE_URL (or DATABASE_HOST) to use an external Postgres, and S3_BUCKET
/// to use an S3 bucket. Each works without the other.
#[derive(Clone, Debug, Parser)]
#[command(name = "acontextd", version, max_term_width = 120, hide_possible_values = true)]
pub struct Config {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten, next_help_heading = "Server")]
    pub server: Server,
    #[command(flatten, next_help_heading = "Keys")]
    pub keys: Keys,
    #[command(flatten, next_help_heading = "Database (embedded Postgres unless DATABASE_URL or DATABASE_HOST is set)")]
    pub database: Database,
    #[command(flatten, next_help_heading = "Object store (local directory unless S3_BUCKET is set)")]
    pub s3: S3,
    #[command(flatten, next_help_heading = "Limits")]
    pub limits: Limits,
    #[command(flatten, next_help_heading = "Jobs")]
    pub jobs: Jobs,
    #[command(flatten, next_help_heading = "Language model (none unless LLM_SDK, LLM_API_KEY or LLM_BASE_URL is set)")]
    pub model: Model,
    #[command(flatten, next_help_heading = "Learning")]
    pub learning: Learning,
    #[command(flatten, next_help_heading = "Sandboxes")]
    pub sandbox: Sandbox,
    #[command(flatten, next_help_heading = "Logging and tracing")]
    pub telemetry: Telemetry,
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Command {
    /// Check whether the server with these settings responds to /health. The exit status is 0 if it does, otherwise 1.
    /// Intended for the health checks of containers
    Health,
    /// Send one short request with a tool to the language model of these settings, and print what works. The exit status is 0
    /// if the model can be used, otherwise 1, with a text about what to correct
    CheckModel,
}

#[derive(Args, Clone, Debug)]
pub struct Server {
    /// Directory for the embedded database, objects, pepper and temporary uploads
    /// [default: /var/lib/acontextd as root, otherwise ~/.local/share/acontextd]
    #[arg(long, env = "ACONTEXTD_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address to listen on. An address other than loopback requires a ROOT_API_BEARER_TOKEN of your own. On such an address,
    /// ROOT_API_BEARER_TOKEN, ADMIN_API_TOKEN and ROOT_SECRET_PEPPER must not be published values and must have at least 16
    /// characters without sk-ac-; a shorter pepper of an existing database only causes a warning
    #[arg(
        long,
        env = "ACONTEXTD_HOST",
        value_name = "IP",
        default_value = "127.0.0.1",
        value_parser = values::parse_ip
    )]
    pub host: IpAddr,
    /// Port to listen on; 0 picks a free port
    #[arg(long, env = "API_EXPORT_PORT", value_name = "PORT", default_value = "8029", value_parser = parse_port)]
    pub port: u16,
    /// Base URL under which clients reach this server; used in public links [default: http://localhost:PORT]
    #[arg(long, env = "APP_EXTERNALURL", value_name = "URL", value_parser = parse_url)]
    pub external_url: Option<String>,
    /// URL of the billing service. POST /metrics/v1 pushes usage metrics to it, with the root token as bearer token
    #[arg(long, env = "METRICS_PUSH_URL", value_name = "URL", value_parser = parse_url)]
    pub metrics_push_url: Option<String>,
    /// How long shutdown waits for running requests and jobs
    #[arg(
        long,
        env = "ACONTEXTD_SHUTDOWN_TIMEOUT",
        value_name = "DURATION",
        default_value = "25s",
        value_parser = parse_duration
    )]
    pub shutdown_timeout: Duration,
    /// Directory of the Postgres server binaries [default: the newest version in /usr/lib/postgresql, otherwise PATH]
    #[arg(long, env = "ACONTEXTD_POSTGRES_BIN", value_name = "DIR")]
    pub postgres_bin: Option<PathBuf>,
}

#[derive(Args, Clone, Debug)]
pub struct Keys {
    /// API key of the default project, without the prefix sk-ac-. Startup replaces the project's key only if this setting has
    /// changed since it was last applied
    #[arg(
        long,
        env = "ROOT_API_BEARER_TOKEN",
        value_name = "TOKEN",
        default_value = "your-root-api-bearer-token",
        hide_env_values = true,
        value_parser = values::parse_root_token
    )]
    pub root_token: SecretString,
    /// Secret from which hashes and internal keys are derived. It must be the same for all processes on a database, and
    /// must never change
    /// [default: generated on first start and stored in the data directory; required with an external database]
    #[arg(long, env = "ROOT_SECRET_PEPPER", value_name = "SECRET", hide_env_values = true)]
    root_pepper: Option<SecretString>,
    /// Also verify each API key against its Argon2 hash, at most once a minute per key
    #[arg(
        long = "argon2",
        env = "ENABLE_ARGON2_VERIFICATION",
        value_name = "BOOL",
        default_value = "true",
        action = clap::ArgAction::Set,
        value_parser = parse_bool
    )]
    pub verify_argon2: bool,
    /// Bearer token for /admin/v1 and /metrics; without it these routes return 403
    #[arg(long, env = "ADMIN_API_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub admin_token: Option<SecretString>,
}

#[derive(Args, Clone, Debug)]
pub struct Database {
    /// URL of an external Postgres (15 or newer), e.g. postgres://user:password@host:5432/name
    #[arg(
        long,
        env = "DATABASE_URL",
        value_name = "URL",
        hide_env_values = true,
        value_parser = values::parse_postgres_url
    )]
    pub database_url: Option<SecretString>,
    /// Host of an external Postgres, as an alternative to DATABASE_URL
    #[arg(long, env = "DATABASE_HOST", value_name = "HOST")]
    pub database_host: Option<String>,
    /// Port of the external Postgres
    #[arg(long, env = "DATABASE_EXPORT_PORT", value_name = "PORT", default_value = "5432", value_parser = parse_port)]
    pub database_port: u16,
    /// User of the external Postgres
    #[arg(long, env = "DATABASE_USER", value_name = "USER", default_value = "acontext")]
    pub database_user: String,
    /// Password of the external Postgres
    #[arg(long, env = "DATABASE_PASSWORD", value_name = "PASSWORD", hide_env_values = true)]
    pub database_password: Option<SecretString>,
    /// Database name of the external Postgres
    #[arg(long, env = "DATABASE_NAME", value_name = "NAME", default_value = "acontext")]
    pub database_name: String,
    /// Require TLS for connections to the external Postgres. A stricter sslmode in DATABASE_URL or PGSSLMODE stays in
    /// effect
    #[arg(
        long,
        env = "DATABASE_ENABLE_TLS",
        value_name = "BOOL",
        default_value = "false",
        action = clap::ArgAction::Set,
        value_parser = parse_bool
    )]
    pub database_tls: bool,
    /// Maximum number of database connections for the requests and jobs of this process; the process uses up to 3 more
    #[arg(
        long = "database-connections",
        env = "ACONTEXTD_DATABASE_CONNECTIONS",
        value_name = "N",
        default_value = "32",
        value_parser = parse_count
    )]
    pub connections: usize,
}

#[derive(Args, Clone, Debug)]
pub struct Jobs {
    /// Maximum number of jobs that this process runs concurrently
    #[arg(
        long = "job-concurrency",
        env = "ACONTEXTD_JOB_CONCURRENCY",
        value_name = "N",
        default_value = "32",
        value_parser = parse_count
    )]
    pub concurrency: usize,
    /// Duration of the lease of a running job. If the process does not renew the lease in this time, another process
    /// reclaims the job
    #[arg(
        long = "job-lease",
        env = "ACONTEXTD_JOB_LEASE",
        value_name = "DURATION",
        default_value = "30s",
        value_parser = parse_nonzero_duration
    )]
    pub lease: Duration,
    /// How often to delete unreferenced objects
    #[arg(
        long = "sweep-every",
        env = "ACONTEXTD_SWEEP_EVERY",
        value_name = "DURATION",
        default_value = "5m",
        value_parser = parse_nonzero_duration
    )]
    pub sweep_interval: Duration,
}

#[derive(Args, Clone, Debug)]
pub struct Learning {
    /// How long the oldest pending message of a session waits before all pending messages of the session are observed
    #[arg(
        long = "buffer-ttl",
        env = "SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS",
        value_name = "SECONDS",
        default_value = "8",
        value_parser = parse_duration
    )]
    pub buffer_ttl: Duration,
    /// Number of pending messages at which a session is observed immediately. A project can have its own value
    #[arg(
        long = "buffer-turns",
        env = "PROJECT_SESSION_MESSAGE_BUFFER_MAX_TURNS",
        value_name = "N",
        default_value = "16",
        value_parser = parse_count
    )]
    pub buffer_turns: usize,
    /// Number of messages by which one observation may exceed PROJECT_SESSION_MESSAGE_BUFFER_MAX_TURNS. A project can have
    /// its own value
    #[arg(
        long = "buffer-overflow",
        env = "PROJECT_SESSION_MESSAGE_BUFFER_MAX_OVERFLOW",
        value_name = "N",
        default_value = "16",
        value_parser = values::parse_overflow
    )]
    pub buffer_overflow: u16,
    /// Maximum number of model calls with which the skill agent writes a lesson
    #[arg(
        long = "skill-agent-iterations",
        env = "SKILL_LEARN_AGENT_MAX_ITERATIONS",
        value_name = "N",
        default_value = "24",
        value_parser = values::parse_iterations
    )]
    pub skill_agent_iterations: u32,
    /// Number of model calls by which SKILL_LEARN_AGENT_MAX_ITERATIONS increases with each further lesson of a run
    #[arg(
        long = "skill-agent-extra-iterations",
        env = "SKILL_LEARN_EXTRA_ITERATIONS_PER_CONTEXT_BATCH",
        value_name = "N",
        default_value = "8",
        value_parser = values::parse_iterations
    )]
    pub skill_agent_extra_iterations: u32,
    /// Number of further lessons that a run of the skill agent may write
    #[arg(
        long = "skill-agent-extra-lessons",
        env = "SKILL_LEARN_MAX_CONTEXTS_PER_AGENT_RUN",
        value_name = "N",
        default_value = "4",
        value_parser = values::parse_overflow
    )]
    pub skill_agent_extra_lessons: u16,
    /// How long a flush waits for its result
    #[arg(
        long = "flush-timeout",
        env = "ACONTEXTD_FLUSH_TIMEOUT",
        value_name = "DURATION",
        default_value = "25s",
        value_parser = parse_nonzero_duration
    )]
    pub flush_timeout: Duration,
}

#[derive(Args, Clone, Debug)]
pub struct Telemetry {
    /// Log filter: error, warn, info, debug, trace, off, or directives such as info,sqlx=debug
    #[arg(
        long,
        env = "LOG_LEVEL",
        value_name = "FILTER",
        default_value = "info",
        value_parser = values::parse_log_filter
    )]
    pub log_level: String,
    /// Log format: text, json, or auto (text on a terminal, otherwise json)
    #[arg(
        long,
        env = "ACONTEXTD_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "auto",
        value_parser = values::choice(&["auto", "text", "json"])
    )]
    pub log_format: String,
    /// Export traces to this OTLP/HTTP endpoint, e.g. http://localhost:4318
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL", value_parser = parse_url)]
    pub otlp_endpoint: Option<String>,
    /// URL of the Jaeger query API from which the traces of projects are read, e.g. http://localhost:16686
    #[arg(long, env = "JAEGER_QUERY_ENDPOINT", value_name = "URL", value_parser = parse_url)]
    pub jaeger_query_endpoint: Option<String>,
    /// Fraction of requests to trace, from 0 to 1. It does not apply to requests whose traceparent header states whether to
    /// trace
    #[arg(
        long,
        env = "OTEL_TRACES_SAMPLER_ARG",
        value_name = "RATIO",
        default_value = "1.0",
        value_parser = parse_ratio
    )]
    pub sample_ratio: f64,
}

impl Server {
    /// Returns the configured data directory, or the default if none is configured.
    pub fn data_dir(&self) -> PathBuf {
        self.data_dir.clone().unwrap_or_else(values::default_data_dir)
    }

    /// Returns `true` if other machines can reach the address that the server listens on.
    pub fn is_exposed(&self) -> bool {
        !self.host.is_loopback()
    }

    pub fn address(&self) -> SocketAddr {
        (self.host, self.port).into()
    }

    /// Returns the base URL of public links, without a trailing slash. `port` is the port that the server listens on.
    pub fn public_url(&self, port: u16) -> String {
        match &self.external_url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => format!("http://localhost:{port}"),
        }
    }
}

impl Keys {
    /// Returns the pepper.
    ///
    /// # Panics
    /// Panics if no pepper is configured and [`Keys::set_pepper`] was not called; startup always calls it.
    pub fn pepper(&self) -> &str {
        self.root_pepper.as_ref().expect("startup sets the pepper").expose_secret()
    }

    pub fn has_pepper(&self) -> bool {
        self.root_pepper.is_some()
    }

    /// Returns `ROOT_SECRET_PEPPER` if it is set. Startup calls this before [`Keys::set_pepper`], which replaces the value.
    pub fn configured_pepper(&self) -> Option<SecretString> {
        self.root_pepper.clone()
    }

    /// Replaces the configured pepper with the one that startup has loaded and verified.
    pub fn set_pepper(&mut self, pepper: SecretString) {
        self.root_pepper = Some(pepper);
    }
}

impl Database {
    /// Returns `true` if an external database is configured.
    pub fn is_external(&self) -> bool {
        self.database_url.is_some() || self.database_host.is_some()
    }

    /// Returns the number of connections that are reserved for reading pages of messages.
    pub fn page_connections(&self) -> u32 {
        (u32::try_from(self.connections).unwrap_or(u32::MAX) / 3).max(1)
    }

    /// Returns the number of connections for everything except reading pages of messages.
    pub fn main_connections(&self) -> u32 {
        u32::try_from(self.connections).unwrap_or(u32::MAX).saturating_sub(self.page_connections()).max(1)
    }
}
