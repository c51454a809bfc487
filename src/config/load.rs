//! From flags and environment to a [`Config`] that makes sense as a whole.

use std::collections::HashMap;
use std::error::Error as _;
use std::ffi::{OsStr, OsString};

use clap::error::{ContextKind, ErrorKind};
use clap::{CommandFactory, FromArgMatches};
use secrecy::ExposeSecret;

use super::{Config, Keys};

/// The second names of settings: Acontext also reads any key of its file as `APP_<SECTION>_<KEY>`.
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

/// Published in quickstarts, compose files and charts: everybody knows them.
const WELL_KNOWN: &[&str] = &[
    "your-root-api-bearer-token",
    "AaGyw9Tl9qe4ydDh8qO0xdZNkrobQvwHWFRsnp5a3QtfbaDSDJQeRHxXPr4bGpc0g130EqBSjRNF",
    "your-secret-pepper",
    "helloworld",
    "changeme",
];

/// What the private Postgres has for one server, less what its operator may want.
const MAX_CONNECTIONS: usize = 180;

/// Why the program does not start, or what it prints instead (`--help`, `--version`).
pub enum Stop {
    Print(String),
    Refuse(String),
}

impl Keys {
    /// Returns `true` if the root token is one that was published, so that everybody knows it.
    pub fn has_published_root_token(&self) -> bool {
        WELL_KNOWN.contains(&self.root_token.expose_secret())
    }
}

impl Config {
    /// Reads the flags and the environment of this process.
    ///
    /// # Errors
    /// A text for the user.
    pub fn load() -> Result<Self, Stop> {
        Self::from_parts(std::env::args_os(), &std::env::vars_os().collect())
    }

    /// Reads the given flags (the program's name first) and environment.
    ///
    /// # Errors
    /// A text for the user.
    pub fn from_parts(
        args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
        environment: &HashMap<OsString, OsString>,
    ) -> Result<Self, Stop> {
        let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
        let settings = settings();
        // clap would read this process's environment; what was handed in is put before the flags instead.
        let command = Self::command().disable_help_subcommand(true).mut_args(|arg| arg.env(None::<&str>));
        let matches = command
            .try_get_matches_from(with_environment(&args, &settings, environment))
            .map_err(|error| explain(&error, &settings))?;
        let config = Self::from_arg_matches(&matches).map_err(|error| explain(&error, &settings))?;
        config.check().map_err(Stop::Refuse)?;
        Ok(config)
    }

    /// What no single value can tell.
    fn check(&self) -> Result<(), String> {
        if self.command.is_some() {
            return Ok(());
        }
        if !self.database.is_external() && self.database.connections > MAX_CONNECTIONS {
            return Err(format!(
                "ACONTEXTD_DATABASE_CONNECTIONS is {}, but the private Postgres has room for {MAX_CONNECTIONS}: set it to no \
                 more than that",
                self.database.connections
            ));
        }
        if self.database.database_url.is_some() && self.database.database_host.is_some() {
            return Err("DATABASE_URL and DATABASE_HOST are both set: set only one of them".into());
        }
        if self.database.is_external() && !self.keys.has_pepper() {
            return Err(
                "ROOT_SECRET_PEPPER is not set, but a database of yours is: set it to a long random text, the \
                        same for every process on this database (openssl rand -hex 32 makes one)"
                    .into(),
            );
        }
        let s3_keys = self.s3.access_key.is_some() && self.s3.secret_key.is_some();
        if self.s3.is_configured() && !s3_keys {
            return Err("S3_BUCKET is set, but S3_ACCESS_KEY or S3_SECRET_KEY is not: set both".into());
        }
        if !self.s3.is_configured() && (self.s3.endpoint().is_some() || self.s3.access_key.is_some()) {
            return Err(
                "S3_BUCKET is not set, but other S3_ settings are: set it, such as S3_BUCKET=acontext-assets, or \
                        remove them to keep objects in the data folder"
                    .into(),
            );
        }
        self.check_exposure()
    }

    /// Nobody but this machine may reach a server whose secrets are published.
    fn check_exposure(&self) -> Result<(), String> {
        if self.server.host.is_loopback() {
            return Ok(());
        }
        let known = |secret: &str| WELL_KNOWN.contains(&secret);
        let setting = if self.keys.has_published_root_token() {
            "ROOT_API_BEARER_TOKEN"
        } else if self.keys.has_pepper() && known(self.keys.pepper()) {
            "ROOT_SECRET_PEPPER"
        } else if self.keys.admin_token.as_ref().is_some_and(|token| known(token.expose_secret())) {
            "ADMIN_API_TOKEN"
        } else {
            return Ok(());
        };
        Err(format!(
            "{setting} is one that everybody knows, and the address {} can be reached by others: set {setting} to a long \
             random text (openssl rand -hex 32 makes one), or listen on 127.0.0.1",
            self.server.host
        ))
    }
}

/// The flag and the environment name of a setting.
struct Setting {
    flag: String,
    name: String,
    is_secret: bool,
}

fn settings() -> Vec<Setting> {
    let command = Config::command();
    let named = command.get_arguments().filter_map(|arg| {
        let (flag, name) = (format!("--{}", arg.get_long()?), arg.get_env()?.to_str()?.to_owned());
        Some(Setting { flag, name, is_secret: arg.is_hide_env_values_set() })
    });
    named.collect()
}

/// The flags, after those that stand for what the environment sets and no flag does.
fn with_environment(
    args: &[OsString],
    settings: &[Setting],
    environment: &HashMap<OsString, OsString>,
) -> Vec<OsString> {
    let set = |name: &str| environment.get(OsStr::new(name)).filter(|value| !value.is_empty());
    let given = |flag: &str| args.iter().filter_map(|arg| arg.to_str()?.split('=').next()).any(|arg| arg == flag);
    let mut all: Vec<OsString> = args.iter().take(1).cloned().collect();
    for setting in settings.iter().filter(|setting| !given(&setting.flag)) {
        let alias = ALIASES.iter().find(|(name, _)| *name == setting.name).and_then(|(_, alias)| set(alias));
        if let Some(value) = alias.or_else(|| set(&setting.name)) {
            let mut flag = OsString::from(format!("{}=", setting.flag));
            flag.push(value);
            all.push(flag);
        }
    }
    all.extend(args.iter().skip(1).cloned());
    all
}

fn explain(error: &clap::Error, settings: &[Setting]) -> Stop {
    match error.kind() {
        ErrorKind::DisplayHelp => {
            let mut command = Config::command().disable_help_subcommand(true).mut_args(|arg| arg.hide_env_values(true));
            Stop::Print(command.render_long_help().to_string())
        }
        ErrorKind::DisplayVersion => Stop::Print(error.to_string()),
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
            let context = |kind| error.get(kind).map(ToString::to_string).unwrap_or_default();
            let flag = context(ContextKind::InvalidArg);
            let flag = flag.split_whitespace().next().unwrap_or_default();
            let setting = settings.iter().find(|setting| setting.flag == flag);
            let name = setting.map_or(flag, |setting| setting.name.as_str());
            let wrong = match error.source() {
                Some(source) => source.to_string(),
                None => format!("must be one of {}", context(ContextKind::ValidValue)),
            };
            // A secret that was mistyped is nearly the secret.
            if setting.is_some_and(|setting| setting.is_secret) {
                return Stop::Refuse(format!("{name} ({flag}) cannot be used: it {wrong}"));
            }
            let value = context(ContextKind::InvalidValue);
            Stop::Refuse(format!("{name} ({flag}) is '{value}', but {wrong}"))
        }
        _ => Stop::Refuse(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn load(environment: &[(&str, &str)], args: &[&str]) -> Result<Config, Stop> {
        let environment = environment.iter().map(|(name, value)| (name.into(), value.into())).collect();
        Config::from_parts(std::iter::once("acontextd").chain(args.iter().copied()), &environment)
    }

    fn refusal(environment: &[(&str, &str)]) -> String {
        match load(environment, &[]) {
            Err(Stop::Refuse(sentence)) => sentence,
            _ => panic!("{environment:?} was not refused"),
        }
    }

    fn loaded(environment: &[(&str, &str)], args: &[&str]) -> Config {
        load(environment, args).unwrap_or_else(|_| panic!("{environment:?} {args:?} was refused"))
    }

    #[test]
    fn nothing_configured_is_the_quickstart() {
        let config = loaded(&[], &[]);
        assert_eq!(config.server.address().to_string(), "127.0.0.1:8029");
        assert_eq!(config.keys.root_token.expose_secret(), "your-root-api-bearer-token");
        assert!(config.keys.argon2 && !config.database.is_external() && !config.s3.is_configured());
        assert_eq!(config.limits.artifact, 16 << 20);
        assert_eq!(config.limits.grep, Duration::from_secs(10));
    }

    #[test]
    fn every_alias_is_of_a_setting_that_exists() {
        let settings = settings();
        for (name, alias) in ALIASES {
            assert!(settings.iter().any(|setting| setting.name == *name), "{alias} stands for {name}");
        }
    }

    #[test]
    fn the_long_form_wins_and_empty_is_not_set() {
        let config = loaded(&[("API_EXPORT_PORT", "1000"), ("APP_APP_PORT", "2000")], &[]);
        assert_eq!(config.server.port, 2000);
        let config = loaded(&[("API_EXPORT_PORT", "1000"), ("APP_APP_PORT", ""), ("S3_ENDPOINT", "")], &[]);
        assert_eq!(config.server.port, 1000);
        let config = loaded(&[("API_EXPORT_PORT", "1000")], &["--port=3000"]);
        assert_eq!(config.server.port, 3000);
        let config = loaded(&[("API_EXPORT_PORT", "1000")], &["--port", "3000"]);
        assert_eq!(config.server.port, 3000);
    }

    #[test]
    fn a_refusal_names_the_setting_the_fault_and_what_would_do() {
        for (name, value, hint) in [
            ("API_EXPORT_PORT", "eighty", "8029"),
            ("ENABLE_ARGON2_VERIFICATION", "maybe", "true or false"),
            ("ARTIFACT_MAX_UPLOAD_SIZE_BYTES", "big", "16MiB"),
            ("ACONTEXTD_GREP_TIMEOUT", "soon", "10s"),
            ("APP_EXTERNALURL", "example.org", "http://"),
            ("ACONTEXTD_HOST", "localhost", "127.0.0.1"),
            ("ACONTEXTD_LOG_FORMAT", "xml", "json"),
            ("LOG_LEVEL", "verbose", "debug"),
            ("LOG_LEVEL", "info,sqlx", "warn"),
            ("LLM_SDK", "gpt", "openai"),
            ("S3_SSE", "aes", "AES256"),
            ("OTEL_TRACES_SAMPLER_ARG", "2", "0.1"),
            ("ACONTEXTD_JOB_LEASE", "0s", "10s"),
            ("ACONTEXTD_SWEEP_EVERY", "0", "10s"),
            ("ACONTEXTD_JOB_CONCURRENCY", "9999999999999999999", "100"),
            ("ACONTEXTD_BLOB_GRACE", "99999d", "1h"),
            ("ACONTEXTD_DATABASE_CONNECTIONS", "500", "180"),
        ] {
            let sentence = refusal(&[(name, value)]);
            assert!(sentence.contains(name) && sentence.contains(value) && sentence.contains(hint), "{sentence}");
        }
    }

    #[test]
    fn a_secret_that_is_refused_is_not_repeated() {
        for (name, value) in [("ROOT_API_BEARER_TOKEN", "two words"), ("DATABASE_URL", "mysql://me:two@db/words")] {
            let sentence = refusal(&[(name, value)]);
            assert!(sentence.contains(name) && !sentence.contains("two"), "{sentence}");
        }
    }

    #[test]
    fn published_secrets_are_for_loopback_only() {
        assert!(refusal(&[("ACONTEXTD_HOST", "0.0.0.0")]).contains("ROOT_API_BEARER_TOKEN"));
        assert!(refusal(&[("ACONTEXTD_HOST", "::")]).contains("ROOT_API_BEARER_TOKEN"));
        let own = ("ROOT_API_BEARER_TOKEN", "sk-ac-0123456789");
        let known = ("ROOT_SECRET_PEPPER", "your-secret-pepper");
        assert!(refusal(&[("ACONTEXTD_HOST", "10.0.0.1"), own, known]).contains("ROOT_SECRET_PEPPER"));
        loaded(&[("ACONTEXTD_HOST", "0.0.0.0"), own, ("ROOT_SECRET_PEPPER", "0123456789")], &[]);
        loaded(&[("ACONTEXTD_HOST", "127.0.0.2")], &[]);
        loaded(&[("ACONTEXTD_HOST", "::1")], &[]);
    }

    #[test]
    fn halves_of_a_setting_are_refused() {
        let pepper = ("ROOT_SECRET_PEPPER", "0123456789");
        assert!(refusal(&[("DATABASE_URL", "postgres://db/a")]).contains("ROOT_SECRET_PEPPER"));
        assert!(
            refusal(&[("DATABASE_URL", "postgres://db/a"), ("DATABASE_HOST", "db"), pepper]).contains("DATABASE_HOST")
        );
        assert!(refusal(&[("S3_ENDPOINT", "http://s3")]).contains("S3_BUCKET"));
        assert!(refusal(&[("S3_BUCKET", "assets")]).contains("S3_ACCESS_KEY"));
        let s3 =
            [("S3_BUCKET", "assets"), ("S3_ACCESS_KEY", "a"), ("S3_SECRET_KEY", "b"), ("S3_INTERNAL_ENDPOINT", "s3:1")];
        assert_eq!(loaded(&s3, &[]).s3.endpoint().as_deref(), Some("https://s3:1"));
    }

    #[test]
    fn help_and_secrets_show_no_values() {
        let config = loaded(&[("ROOT_SECRET_PEPPER", "0123456789")], &[]);
        assert!(!format!("{config:?}").contains("0123456789"));
        let Err(Stop::Print(help)) = load(&[], &["--help"]) else { panic!("no help") };
        assert!(help.contains("[env: ROOT_API_BEARER_TOKEN]"), "{help}");
    }
}
