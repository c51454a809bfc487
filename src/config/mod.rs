//! Settings: one struct, read from flags and the environment. `--help` is the manual.
//!
//! Names of Acontext work where they mean the same, each also in its `APP_<SECTION>_<KEY>` form, which wins; settings of our
//! own begin with `ACONTEXTD_`. A variable that is set but empty counts as not set. [`Config::load`] answers a bad value with
//! a sentence that names the setting, what is wrong, and what would do.

#![expect(clippy::doc_markdown, reason = "the comments are the text of --help")]

mod limits;
mod load;

pub use limits::Limits;
pub use load::Stop;

mod values;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use secrecy::{ExposeSecret, SecretString};

use values::{count, duration, ratio, span};

/// Data and memory backend for AI agents, wire-compatible with Acontext.
///
/// Without any settings it keeps everything in one folder: a private Postgres, which it starts and stops itself, and a
/// folder of objects. With DATABASE_URL (or DATABASE_HOST ...) and S3_BUCKET it uses a Postgres and a bucket of yours;
/// either one alone works too.
#[derive(Clone, Debug, Parser)]
#[command(name = "acontextd", version, max_term_width = 120, hide_possible_values = true)]
pub struct Config {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten, next_help_heading = "Server")]
    pub server: Server,
    #[command(flatten, next_help_heading = "Keys")]
    pub keys: Keys,
    #[command(flatten, next_help_heading = "Database (without one of these: a private Postgres in the data folder)")]
    pub database: Database,
    #[command(flatten, next_help_heading = "Objects (without S3_BUCKET: a folder in the data folder)")]
    pub s3: S3,
    #[command(flatten, next_help_heading = "Limits")]
    pub limits: Limits,
    #[command(flatten, next_help_heading = "Background work")]
    pub jobs: JobSettings,
    #[command(flatten, next_help_heading = "Learning")]
    pub learning: Learning,
    #[command(flatten, next_help_heading = "Logs and traces")]
    pub telemetry: Telemetry,
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Command {
    /// Asks the server that these settings describe whether it lives; ends with 0 or 1. For health checks of containers.
    Health,
}

#[derive(Args, Clone, Debug)]
pub struct Server {
    /// Where everything is kept: the private database, the objects, the pepper, uploads in progress
    /// [default: /var/lib/acontextd as root, else ~/.local/share/acontextd]
    #[arg(long, env = "ACONTEXTD_DATA_DIR", value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// The address to listen on. Any other than loopback wants a ROOT_API_BEARER_TOKEN of your own
    #[arg(long, env = "ACONTEXTD_HOST", value_name = "IP", default_value = "127.0.0.1", value_parser = values::ip)]
    pub host: IpAddr,
    /// The port to listen on; 0 for any free one
    #[arg(long, env = "API_EXPORT_PORT", value_name = "PORT", default_value = "8029", value_parser = values::port)]
    pub port: u16,
    /// How clients reach this server: the beginning of public links [default: http://localhost with the port]
    #[arg(long, env = "APP_EXTERNALURL", value_name = "URL", value_parser = values::url)]
    pub external_url: Option<String>,
    /// The billing service that POST /metrics/v1 tells what projects use, with the root token as its bearer
    #[arg(long, env = "METRICS_PUSH_URL", value_name = "URL", value_parser = values::url)]
    pub metrics_push_url: Option<String>,
    /// How long a stop waits for what runs
    #[arg(long, env = "ACONTEXTD_SHUTDOWN_TIMEOUT", value_name = "TIME", default_value = "25s", value_parser = duration)]
    pub shutdown_timeout: Duration,
    /// The folder of Postgres' server programs [default: the newest of Debian's, else PATH]
    #[arg(long, env = "ACONTEXTD_POSTGRES_BIN", value_name = "FOLDER")]
    pub postgres_bin: Option<PathBuf>,
}

#[derive(Args, Clone, Debug)]
pub struct Keys {
    /// The key of the default project, without its prefix sk-ac-. Applied when it differs from the one applied last
    #[arg(
        long,
        env = "ROOT_API_BEARER_TOKEN",
        value_name = "TOKEN",
        default_value = "your-root-api-bearer-token",
        hide_env_values = true,
        value_parser = values::root_token
    )]
    pub root_token: SecretString,
    /// The secret that all keys are derived with; the same for every process on one database, and never changed
    /// [default: made at random on first start, in the file `pepper` of the data folder; wanted with a database of yours]
    #[arg(long, env = "ROOT_SECRET_PEPPER", value_name = "SECRET", hide_env_values = true)]
    root_pepper: Option<SecretString>,
    /// Whether keys are also checked against their stored Argon2 hash, once a minute each
    #[arg(
        long,
        env = "ENABLE_ARGON2_VERIFICATION",
        value_name = "BOOL",
        default_value = "true",
        action = clap::ArgAction::Set,
        value_parser = values::flag
    )]
    pub argon2: bool,
    /// Opens the routes under /admin/v1, and /metrics; without it they answer 403
    #[arg(long, env = "ADMIN_API_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub admin_token: Option<SecretString>,
}

#[derive(Args, Clone, Debug)]
pub struct Database {
    /// A Postgres 15 or newer of yours, like postgres://user:password@host:5432/name
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true, value_parser = values::postgres_url)]
    pub database_url: Option<SecretString>,
    /// Or its parts: the host
    #[arg(long, env = "DATABASE_HOST", value_name = "HOST")]
    pub database_host: Option<String>,
    /// The port
    #[arg(long, env = "DATABASE_EXPORT_PORT", value_name = "PORT", default_value = "5432", value_parser = values::port)]
    pub database_port: u16,
    /// The user
    #[arg(long, env = "DATABASE_USER", value_name = "USER", default_value = "acontext")]
    pub database_user: String,
    /// The password
    #[arg(long, env = "DATABASE_PASSWORD", value_name = "PASSWORD", hide_env_values = true)]
    pub database_password: Option<SecretString>,
    /// The database
    #[arg(long, env = "DATABASE_NAME", value_name = "NAME", default_value = "acontext")]
    pub database_name: String,
    /// Whether TLS is wanted
    #[arg(
        long,
        env = "DATABASE_ENABLE_TLS",
        value_name = "BOOL",
        default_value = "false",
        action = clap::ArgAction::Set,
        value_parser = values::flag
    )]
    pub database_tls: bool,
    /// How many connections this process uses at most
    #[arg(long = "database-connections", env = "ACONTEXTD_DATABASE_CONNECTIONS", value_name = "N", default_value = "32", value_parser = count)]
    pub connections: usize,
}

#[derive(Args, Clone, Debug)]
pub struct S3 {
    /// The bucket; it must exist
    #[arg(long = "s3-bucket", env = "S3_BUCKET", value_name = "NAME")]
    pub bucket: Option<String>,
    /// The address of the object store [default: AWS]
    #[arg(long = "s3-endpoint", env = "S3_ENDPOINT", value_name = "URL")]
    endpoint: Option<String>,
    /// The address this server uses, if it differs from S3_ENDPOINT
    #[arg(long = "s3-internal-endpoint", env = "S3_INTERNAL_ENDPOINT", value_name = "URL")]
    internal_endpoint: Option<String>,
    /// The region
    #[arg(long = "s3-region", env = "S3_REGION", value_name = "NAME", default_value = "auto")]
    pub region: String,
    /// The access key
    #[arg(long = "s3-access-key", env = "S3_ACCESS_KEY", value_name = "KEY")]
    pub access_key: Option<String>,
    /// The secret key
    #[arg(long = "s3-secret-key", env = "S3_SECRET_KEY", value_name = "KEY", hide_env_values = true)]
    pub secret_key: Option<SecretString>,
    /// Whether the bucket's name goes into the path instead of the host name
    #[arg(
        long = "s3-use-path-style",
        env = "S3_USE_PATH_STYLE",
        value_name = "BOOL",
        default_value = "true",
        action = clap::ArgAction::Set,
        value_parser = values::flag
    )]
    pub use_path_style: bool,
    /// Server-side encryption to request: AES256, aws:kms or aws:kms:dsse
    #[arg(long = "s3-sse", env = "S3_SSE", value_name = "NAME", value_parser = values::choice(&["AES256", "aws:kms", "aws:kms:dsse"]))]
    pub sse: Option<String>,
}

#[derive(Args, Clone, Debug)]
pub struct JobSettings {
    /// How many jobs this process runs at once
    #[arg(long = "job-concurrency", env = "ACONTEXTD_JOB_CONCURRENCY", value_name = "N", default_value = "16", value_parser = count)]
    pub concurrency: usize,
    /// How long after the last sign of life of a process its jobs are taken over
    #[arg(long = "job-lease", env = "ACONTEXTD_JOB_LEASE", value_name = "TIME", default_value = "30s", value_parser = span)]
    pub lease: Duration,
    /// How often stored bytes that nothing refers to are looked for
    #[arg(long, env = "ACONTEXTD_SWEEP_EVERY", value_name = "TIME", default_value = "5m", value_parser = span)]
    pub sweep_every: Duration,
}

#[derive(Args, Clone, Debug)]
pub struct Learning {
    /// Which model looks at messages: mock finds nothing; this version speaks to no other, so messages wait
    #[arg(long = "llm-sdk", env = "LLM_SDK", value_name = "NAME", default_value = "none", value_parser = values::choice(&["none", "mock", "openai", "anthropic"]))]
    pub sdk: String,
    /// How long stored messages wait for more before tasks are looked for in them
    #[arg(
        long = "buffer-ttl",
        env = "SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS",
        value_name = "SECONDS",
        default_value = "8",
        value_parser = duration
    )]
    pub buffer_ttl: Duration,
    /// So many waiting messages of a session need not wait longer
    #[arg(
        long = "buffer-turns",
        env = "PROJECT_SESSION_MESSAGE_BUFFER_MAX_TURNS",
        value_name = "N",
        default_value = "16",
        value_parser = count
    )]
    pub buffer_turns: usize,
    /// How many more than that are looked at together
    #[arg(
        long = "buffer-overflow",
        env = "PROJECT_SESSION_MESSAGE_BUFFER_MAX_OVERFLOW",
        value_name = "N",
        default_value = "16",
        value_parser = clap::value_parser!(u16)
    )]
    pub buffer_overflow: u16,
    /// How long a flush waits for its outcome
    #[arg(long = "flush-timeout", env = "ACONTEXTD_FLUSH_TIMEOUT", value_name = "TIME", default_value = "25s", value_parser = span)]
    pub flush: Duration,
}

#[derive(Args, Clone, Debug)]
pub struct Telemetry {
    /// What is logged: error, warn, info, debug, trace or off; for single modules, a list like `info,sqlx=debug`
    #[arg(long, env = "LOG_LEVEL", value_name = "FILTER", default_value = "info", value_parser = values::log_filter)]
    pub log_level: String,
    /// How log lines look: text, json, or auto (text on a terminal)
    #[arg(long, env = "ACONTEXTD_LOG_FORMAT", value_name = "FORM", default_value = "auto", value_parser = values::choice(&["auto", "text", "json"]))]
    pub log_format: String,
    /// Sends traces there by OTLP over HTTP, like http://localhost:4318
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL", value_parser = values::url)]
    pub otlp_endpoint: Option<String>,
    /// The Jaeger that is asked for a project's traces, like http://localhost:16686
    #[arg(long, env = "JAEGER_QUERY_ENDPOINT", value_name = "URL", value_parser = values::url)]
    pub jaeger_query_endpoint: Option<String>,
    /// The share of requests that are traced
    #[arg(long, env = "OTEL_TRACES_SAMPLER_ARG", value_name = "RATIO", default_value = "1.0", value_parser = ratio)]
    pub sample_ratio: f64,
}

impl Server {
    /// The data folder.
    pub fn data_dir(&self) -> PathBuf {
        self.data_dir.clone().unwrap_or_else(values::default_data_dir)
    }

    pub fn address(&self) -> SocketAddr {
        (self.host, self.port).into()
    }

    /// The beginning of public links, without a slash at its end.
    pub fn public_url(&self, port: u16) -> String {
        match &self.external_url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => format!("http://localhost:{port}"),
        }
    }
}

impl Keys {
    /// The pepper.
    ///
    /// # Panics
    /// Before [`Keys::set_pepper`] if none is configured: the start always sets one.
    pub fn pepper(&self) -> &str {
        self.root_pepper.as_ref().expect("the start has set a pepper").expose_secret()
    }

    pub fn has_pepper(&self) -> bool {
        self.root_pepper.is_some()
    }

    /// Returns `ROOT_SECRET_PEPPER` before startup, and the pepper in use after it.
    pub fn configured_pepper(&self) -> Option<SecretString> {
        self.root_pepper.clone()
    }

    /// Sets the pepper that startup has found to be the right one.
    pub fn set_pepper(&mut self, pepper: SecretString) {
        self.root_pepper = Some(pepper);
    }
}

impl Database {
    /// Whether a database of the operator's is configured.
    pub fn is_external(&self) -> bool {
        self.database_url.is_some() || self.database_host.is_some()
    }

    /// How many connections read pages of messages, and nothing else.
    pub fn page_connections(&self) -> u32 {
        (u32::try_from(self.connections).unwrap_or(u32::MAX) / 3).max(1)
    }

    /// How many connections do everything else.
    pub fn main_connections(&self) -> u32 {
        u32::try_from(self.connections).unwrap_or(u32::MAX).saturating_sub(self.page_connections()).max(1)
    }
}

impl S3 {
    /// Whether a bucket is configured.
    pub fn is_configured(&self) -> bool {
        self.bucket.is_some()
    }

    /// The address to talk to; `https://` where no scheme is given.
    pub fn endpoint(&self) -> Option<String> {
        let endpoint = self.internal_endpoint.as_ref().or(self.endpoint.as_ref())?;
        Some(if endpoint.contains("://") { endpoint.clone() } else { format!("https://{endpoint}") })
    }
}
