//! Reads flags and environment into a [`Config`] and validates it.

use std::collections::HashMap;
use std::error::Error as _;
use std::ffi::{OsStr, OsString};

use clap::error::{ContextKind, ErrorKind};
use clap::{CommandFactory, FromArgMatches};
use secrecy::ExposeSecret;

use super::{Command, Config, Keys, MIN_EXPOSED_SECRET_LEN, help, is_short_secret};

/// Environment variables, each with its alias `APP_<SECTION>_<KEY>`. Acontext also reads each key of its configuration file from
/// a variable with such a name.
const ALIASES: &[(&str, &str)] = &[
    ("API_EXPORT_PORT", "APP_APP_PORT"),
    ("ACONTEXTD_HOST", "APP_APP_HOST"),
    ("APP_EXTERNALURL", "APP_APP_EXTERNALURL"),
    ("ROOT_API_BEARER_TOKEN", "APP_ROOT_APIBEARERTOKEN"),
    ("ROOT_SECRET_PEPPER", "APP_ROOT_SECRETPEPPER"),
    ("ENABLE_ARGON2_VERIFICATION", "APP_ROOT_ENABLEARGON2VERIFICATION"),
    ("DATABASE_ENABLE_TLS", "APP_DATABASE_ENABLETLS"),
    ("ACONTEXTD_DATABASE_CONNECTIONS", "APP_DATABASE_MAXOPEN"),
    ("S3_ENDPOINT", "APP_S3_ENDPOINT"),
    ("S3_INTERNAL_ENDPOINT", "APP_S3_INTERNALENDPOINT"),
    ("S3_REGION", "APP_S3_REGION"),
    ("S3_ACCESS_KEY", "APP_S3_ACCESSKEY"),
    ("S3_SECRET_KEY", "APP_S3_SECRETKEY"),
    ("S3_BUCKET", "APP_S3_BUCKET"),
    ("S3_USE_PATH_STYLE", "APP_S3_USEPATHSTYLE"),
    ("S3_SSE", "APP_S3_SSE"),
    ("ARTIFACT_MAX_UPLOAD_SIZE_BYTES", "APP_ARTIFACT_MAXUPLOADSIZEBYTES"),
    ("LOG_LEVEL", "APP_LOG_LEVEL"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "APP_TELEMETRY_OTLPENDPOINT"),
    ("METRICS_PUSH_URL", "APP_METRICS_PUSHURL"),
    ("JAEGER_QUERY_ENDPOINT", "APP_TELEMETRY_JAEGERQUERYENDPOINT"),
    ("OTEL_TRACES_SAMPLER_ARG", "APP_TELEMETRY_SAMPLERATIO"),
];

/// Secrets that are published in the quickstarts, Compose files and Helm charts of Acontext.
const PUBLISHED_SECRETS: &[&str] = &[
    "your-root-api-bearer-token",
    "AaGyw9Tl9qe4ydDh8qO0xdZNkrobQvwHWFRsnp5a3QtfbaDSDJQeRHxXPr4bGpc0g130EqBSjRNF",
    "your-secret-pepper",
    "helloworld",
    "changeme",
];

/// The maximum value of `ACONTEXTD_DATABASE_CONNECTIONS` with the embedded Postgres, which allows 200 connections. The process
/// uses a few more connections than this; the remaining ones are for the operator.
const MAX_EMBEDDED_CONNECTIONS: usize = 180;

/// Why the program exits before it starts the server.
pub enum EarlyExit {
    /// The text of `-h`, `--help` or `--version`.
    Help(String),
    /// A message about invalid settings.
    Error(String),
}

impl Keys {
    /// Returns `true` if the root token is a published default.
    pub fn has_published_root_token(&self) -> bool {
        PUBLISHED_SECRETS.contains(&self.root_token.expose_secret())
    }
}

impl Config {
    /// Reads the flags and the environment of this process.
    ///
    /// # Errors
    /// Returns the text to print if the settings are invalid, or if help or the version is requested.
    pub fn load() -> Result<Self, EarlyExit> {
        Self::from_args_and_env(std::env::args_os(), &std::env::vars_os().collect())
    }

    /// Reads the settings from `environment` and from `args`, whose first element is the program name.
    ///
    /// # Errors
    /// Returns the same errors as [`Config::load`].
    pub fn from_args_and_env(
        args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
        environment: &HashMap<OsString, OsString>,
    ) -> Result<Self, EarlyExit> {
        let settings = settings();
        let args = without_empty_flags(args.into_iter().map(Into::into), &settings);
        // clap can only read the environment of this process, so `environment` is converted to flags.
        let command = Self::command().disable_help_subcommand(true).mut_args(|arg| arg.env(None::<&str>));
        let matches =
            command.try_get_matches_from(args_with_env(&args, &settings, environment)).map_err(|error| match error
                .kind()
            {
                ErrorKind::DisplayHelp if help::requests_short_help(&args) => {
                    let flags = settings.iter().map(|setting| (setting.env.as_str(), setting.flag.as_str()));
                    EarlyExit::Help(help::short_text(&flags.collect::<Vec<_>>()))
                }
                _ => exit_for_clap_error(&error, &settings),
            })?;
        let config = Self::from_arg_matches(&matches).map_err(|error| exit_for_clap_error(&error, &settings))?;
        config.validate().map_err(EarlyExit::Error)?;
        Ok(config)
    }

    /// Validates settings that depend on each other.
    fn validate(&self) -> Result<(), String> {
        // Commands use only a few settings.
        match self.command {
            Some(Command::Health) => return Ok(()),
            Some(Command::CheckModel) => return self.model.validate(),
            None => self.model.validate()?,
        }
        if !self.database.is_external() && self.database.connections > MAX_EMBEDDED_CONNECTIONS {
            return Err(format!(
                "ACONTEXTD_DATABASE_CONNECTIONS is {}, but the embedded Postgres allows at most \
                 {MAX_EMBEDDED_CONNECTIONS}: set a lower value",
                self.database.connections
            ));
        }
        if self.database.database_url.is_some() && self.database.database_host.is_some() {
            return Err("DATABASE_URL and DATABASE_HOST are both set: set only one of them".into());
        }
        if self.database.is_external() && !self.keys.has_pepper() {
            return Err("ROOT_SECRET_PEPPER is not set, but is required with an external database: set it to a long \
                        random text, the same for all processes on this database (generate one with openssl rand -hex \
                        32)"
            .into());
        }
        match (&self.s3.access_key, &self.s3.secret_key) {
            (Some(_), None) => return Err("S3_ACCESS_KEY is set, but S3_SECRET_KEY is not: set both or neither".into()),
            (None, Some(_)) => return Err("S3_SECRET_KEY is set, but S3_ACCESS_KEY is not: set both or neither".into()),
            _ => {}
        }
        if !self.s3.is_configured() && (self.s3.endpoint().is_some() || self.s3.access_key.is_some()) {
            return Err(
                "S3_BUCKET is not set, but other S3_ settings are: set it, e.g. S3_BUCKET=acontext-assets, or \
                        remove them to store objects in the data directory"
                    .into(),
            );
        }
        self.sandbox.validate()?;
        self.validate_exposed_secrets()
    }

    /// Rejects published secrets and short tokens if the server listens on an address that other machines can reach. A short
    /// pepper is not rejected here, because the pepper of an existing database cannot be changed. Startup checks its length when
    /// the database is open.
    fn validate_exposed_secrets(&self) -> Result<(), String> {
        if !self.server.is_exposed() {
            return Ok(());
        }
        let root_token = Some(self.keys.root_token.expose_secret());
        let pepper = self.keys.root_pepper.as_ref().map(ExposeSecret::expose_secret);
        let admin_token = self.keys.admin_token.as_ref().map(ExposeSecret::expose_secret);
        for (setting, secret, is_token) in [
            ("ROOT_API_BEARER_TOKEN", root_token, true),
            ("ROOT_SECRET_PEPPER", pepper, false),
            ("ADMIN_API_TOKEN", admin_token, true),
        ] {
            let Some(secret) = secret else { continue };
            let problem = if PUBLISHED_SECRETS.contains(&secret) {
                "is a published default".to_owned()
            } else if is_token && is_short_secret(secret) {
                format!("has fewer than {MIN_EXPOSED_SECRET_LEN} characters (without the prefix sk-ac-)")
            } else {
                continue;
            };
            return Err(format!(
                "{setting} {problem}, but the server listens on {}, which is not a loopback address: set {setting} to \
                 a long random text (generate one with openssl rand -hex 32), or listen on 127.0.0.1",
                self.server.host
            ));
        }
        Ok(())
    }
}

/// The flag and the environment variable of a setting.
struct Setting {
    flag: String,
    env: String,
    is_secret: bool,
}

/// Lists the settings that have an environment variable.
fn settings() -> Vec<Setting> {
    let command = Config::command();
    let settings = command.get_arguments().filter_map(|arg| {
        let (flag, env) = (format!("--{}", arg.get_long()?), arg.get_env()?.to_str()?.to_owned());
        Some(Setting { flag, env, is_secret: arg.is_hide_env_values_set() })
    });
    settings.collect()
}

/// Removes the flags of settings with an empty value, which count as unset.
fn without_empty_flags(args: impl Iterator<Item = OsString>, settings: &[Setting]) -> Vec<OsString> {
    let is_flag = |arg: &OsStr| settings.iter().any(|setting| arg == OsStr::new(&setting.flag));
    let mut remaining: Vec<OsString> = Vec::new();
    for arg in args {
        if arg.is_empty() && remaining.last().is_some_and(|flag| is_flag(flag)) {
            remaining.pop();
        } else if !arg.to_str().and_then(|arg| arg.strip_suffix('=')).is_some_and(|flag| is_flag(OsStr::new(flag))) {
            remaining.push(arg);
        }
    }
    remaining
}

/// Converts the settings from the environment to flags and inserts them before the flags in `args`. A flag in `args` takes
/// precedence over the environment variable of the same setting.
fn args_with_env(args: &[OsString], settings: &[Setting], environment: &HashMap<OsString, OsString>) -> Vec<OsString> {
    let env_value = |name: &str| environment.get(OsStr::new(name)).filter(|value| !value.is_empty());
    let is_passed = |flag: &str| args.iter().filter_map(|arg| arg.to_str()?.split('=').next()).any(|arg| arg == flag);
    let mut all: Vec<OsString> = args.iter().take(1).cloned().collect();
    for setting in settings.iter().filter(|setting| !is_passed(&setting.flag)) {
        let alias = ALIASES.iter().find(|(name, _)| *name == setting.env).and_then(|(_, alias)| env_value(alias));
        if let Some(value) = alias.or_else(|| env_value(&setting.env)) {
            let mut flag = OsString::from(format!("{}=", setting.flag));
            flag.push(value);
            all.push(flag);
        }
    }
    all.extend(args.iter().skip(1).cloned());
    all
}

/// Converts an error of clap to the text to print. For an invalid value, the text names the environment variable of the setting,
/// which clap does not know.
fn exit_for_clap_error(error: &clap::Error, settings: &[Setting]) -> EarlyExit {
    match error.kind() {
        ErrorKind::DisplayHelp => {
            let mut command = Config::command().disable_help_subcommand(true).mut_args(|arg| arg.hide_env_values(true));
            EarlyExit::Help(command.render_long_help().to_string())
        }
        ErrorKind::DisplayVersion => EarlyExit::Help(error.to_string()),
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
            let context = |kind| error.get(kind).map(ToString::to_string).unwrap_or_default();
            let flag = context(ContextKind::InvalidArg);
            let flag = flag.split_whitespace().next().unwrap_or_default();
            let setting = settings.iter().find(|setting| setting.flag == flag);
            let name = setting.map_or(flag, |setting| setting.env.as_str());
            let Some(reason) = error.source() else {
                return EarlyExit::Error(format!("{flag} has no value: pass one, as in {flag}=VALUE"));
            };
            // A mistyped secret reveals most of the real one, so its value is not printed.
            if setting.is_some_and(|setting| setting.is_secret) {
                return EarlyExit::Error(format!("{name} ({flag}) is invalid: it {reason}"));
            }
            let value = context(ContextKind::InvalidValue);
            EarlyExit::Error(format!("{name} ({flag}) is '{value}', but {reason}"))
        }
        _ => EarlyExit::Error(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
