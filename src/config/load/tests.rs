//! Tests of the loading of settings.

use std::time::Duration;

use super::*;
use crate::config::SandboxType;

fn load(environment: &[(&str, &str)], args: &[&str]) -> Result<Config, EarlyExit> {
    let environment = environment.iter().map(|(name, value)| (name.into(), value.into())).collect();
    Config::from_args_and_env(std::iter::once("acontextd").chain(args.iter().copied()), &environment)
}

fn error(environment: &[(&str, &str)]) -> String {
    match load(environment, &[]) {
        Err(EarlyExit::Error(message)) => message,
        _ => panic!("{environment:?} was accepted"),
    }
}

fn loaded(environment: &[(&str, &str)], args: &[&str]) -> Config {
    load(environment, args).unwrap_or_else(|_| panic!("{environment:?} {args:?} was rejected"))
}

#[test]
fn defaults_are_those_of_the_quickstart() {
    let config = loaded(&[], &[]);
    assert_eq!(config.server.address().to_string(), "127.0.0.1:8029");
    assert_eq!(config.keys.root_token.expose_secret(), "your-root-api-bearer-token");
    assert!(config.keys.verify_argon2 && !config.database.is_external() && !config.s3.is_configured());
    assert_eq!(config.limits.max_artifact_bytes, 16 << 20);
    assert_eq!(config.limits.grep_timeout, Duration::from_secs(10));
}

#[test]
fn every_alias_belongs_to_an_existing_setting() {
    let settings = settings();
    for (name, alias) in ALIASES {
        assert!(settings.iter().any(|setting| setting.env == *name), "{alias} is an alias of {name}");
    }
}

#[test]
fn flags_precede_aliases_and_empty_counts_as_unset() {
    let config = loaded(&[("API_EXPORT_PORT", "1000"), ("APP_APP_PORT", "2000")], &[]);
    assert_eq!(config.server.port, 2000);
    let config = loaded(&[("API_EXPORT_PORT", "1000"), ("APP_APP_PORT", ""), ("S3_ENDPOINT", "")], &[]);
    assert_eq!(config.server.port, 1000);
    let config = loaded(&[("API_EXPORT_PORT", "1000")], &["--port=3000"]);
    assert_eq!(config.server.port, 3000);
    let config = loaded(&[("API_EXPORT_PORT", "1000")], &["--port", "3000"]);
    assert_eq!(config.server.port, 3000);
    for empty in [&["--port=", "--s3-bucket=", "--s3-access-key="][..], &["--port", "", "--s3-access-key", ""]] {
        let config = loaded(&[("API_EXPORT_PORT", "1000")], empty);
        assert_eq!(config.server.port, 1000, "{empty:?}");
        assert!(config.s3.access_key.is_none() && !config.s3.is_configured(), "{empty:?}");
    }
}

#[test]
fn errors_contain_the_setting_the_value_and_a_hint() {
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
        ("SANDBOX_TYPE", "docker", "local"),
        ("SANDBOX_TYPE", "novita", "does not support"),
        ("ACONTEXTD_SANDBOX_COMMAND_TIMEOUT", "0s", "10s"),
        ("S3_SSE", "aes", "AES256"),
        ("OTEL_TRACES_SAMPLER_ARG", "2", "0.1"),
        ("ACONTEXTD_JOB_LEASE", "0s", "10s"),
        ("ACONTEXTD_SWEEP_EVERY", "0", "10s"),
        ("ACONTEXTD_JOB_CONCURRENCY", "9999999999999999999", "100"),
        ("ACONTEXTD_BLOB_GRACE", "99999d", "1h"),
        ("ACONTEXTD_DATABASE_CONNECTIONS", "500", "180"),
    ] {
        let message = error(&[(name, value)]);
        assert!(message.contains(name) && message.contains(value) && message.contains(hint), "{message}");
    }
}

#[test]
fn errors_do_not_contain_secrets() {
    for (name, value) in [("ROOT_API_BEARER_TOKEN", "two words"), ("DATABASE_URL", "mysql://me:two@db/words")] {
        let message = error(&[(name, value)]);
        assert!(message.contains(name) && !message.contains("two"), "{message}");
    }
}

#[test]
fn published_secrets_require_a_loopback_address() {
    assert!(error(&[("ACONTEXTD_HOST", "0.0.0.0")]).contains("ROOT_API_BEARER_TOKEN"));
    assert!(error(&[("ACONTEXTD_HOST", "::")]).contains("ROOT_API_BEARER_TOKEN"));
    let own = ("ROOT_API_BEARER_TOKEN", "sk-ac-0123456789abcdef");
    let published = ("ROOT_SECRET_PEPPER", "your-secret-pepper");
    assert!(error(&[("ACONTEXTD_HOST", "10.0.0.1"), own, published]).contains("ROOT_SECRET_PEPPER"));
    loaded(&[("ACONTEXTD_HOST", "0.0.0.0"), own, ("ROOT_SECRET_PEPPER", "0123456789")], &[]);
    loaded(&[("ACONTEXTD_HOST", "127.0.0.2")], &[]);
    loaded(&[("ACONTEXTD_HOST", "::1")], &[]);
}

#[test]
fn sandboxes_are_local_only_on_loopback_unless_they_are_configured() {
    let kind = |settings: &[(&str, &str)]| {
        let config = loaded(&[settings, &[("ROOT_API_BEARER_TOKEN", "0123456789abcdef")]].concat(), &[]);
        config.sandbox.kind(config.server.is_exposed())
    };
    let exposed = ("ACONTEXTD_HOST", "0.0.0.0");
    assert_eq!(kind(&[]), SandboxType::Local);
    assert_eq!(kind(&[exposed]), SandboxType::Disabled);
    assert_eq!(kind(&[exposed, ("SANDBOX_TYPE", "local")]), SandboxType::Local);
    assert_eq!(kind(&[("SANDBOX_TYPE", "Disabled")]), SandboxType::Disabled);
}

#[test]
fn short_tokens_require_a_loopback_address() {
    let (short, long) = ("0123456789abcde", "0123456789abcdef");
    let exposed = ("ACONTEXTD_HOST", "0.0.0.0");
    for (root_token, admin_token, setting) in [
        (short, long, "ROOT_API_BEARER_TOKEN"),
        // The prefix does not count.
        ("sk-ac-0123456789abcde", long, "ROOT_API_BEARER_TOKEN"),
        (long, short, "ADMIN_API_TOKEN"),
        (long, "sk-ac-0123456789abcde", "ADMIN_API_TOKEN"),
    ] {
        let tokens = [("ROOT_API_BEARER_TOKEN", root_token), ("ADMIN_API_TOKEN", admin_token)];
        let message = error(&[&tokens[..], &[exposed]].concat());
        assert!(message.starts_with(setting) && message.contains("fewer than 16"), "{message}");
        assert!(!message.contains(short), "{message}");
        loaded(&tokens, &[]);
    }
    loaded(&[exposed, ("ROOT_API_BEARER_TOKEN", long), ("ADMIN_API_TOKEN", long)], &[]);
}

#[test]
fn incomplete_settings_are_rejected() {
    let pepper = ("ROOT_SECRET_PEPPER", "0123456789");
    assert!(error(&[("DATABASE_URL", "postgres://db/a")]).contains("ROOT_SECRET_PEPPER"));
    assert!(error(&[("DATABASE_URL", "postgres://db/a"), ("DATABASE_HOST", "db"), pepper]).contains("DATABASE_HOST"));
    assert!(error(&[("S3_ENDPOINT", "http://s3")]).contains("S3_BUCKET"));
    assert!(error(&[("SANDBOX_TYPE", "cloudflare")]).contains("CLOUDFLARE_WORKER_URL"));
    let worker = ("CLOUDFLARE_WORKER_URL", "https://worker");
    assert!(error(&[worker]).contains("SANDBOX_TYPE=cloudflare"));
    assert!(error(&[("CLOUDFLARE_WORKER_AUTH_TOKEN", "t")]).contains("CLOUDFLARE_WORKER_URL"));
    loaded(&[("SANDBOX_TYPE", "cloudflare"), worker], &[]);
    let (e2b, key, template) =
        (("SANDBOX_TYPE", "e2b"), ("E2B_API_KEY", "e2b_0"), ("SANDBOX_DEFAULT_TEMPLATE", "base"));
    assert!(error(&[e2b, template]).contains("E2B_API_KEY is not set"));
    assert!(error(&[e2b, key]).contains("SANDBOX_DEFAULT_TEMPLATE is not set"));
    assert!(error(&[e2b, key, template, worker]).contains("SANDBOX_TYPE is not cloudflare"));
    for setting in
        [key, template, ("E2B_DOMAIN_BASE_URL", "a.b"), ("E2B_API_URL", "http://a"), ("E2B_SANDBOX_URL", "http://a")]
    {
        let message = error(&[setting]);
        assert!(message.contains(setting.0) && message.contains("SANDBOX_TYPE=e2b"), "{message}");
        loaded(&[e2b, key, template, setting], &[]);
    }
    assert!(error(&[e2b, key, template, ("E2B_DOMAIN_BASE_URL", "https://e2b.app")]).contains("without https://"));
    let (bucket, access, secret) = (("S3_BUCKET", "assets"), ("S3_ACCESS_KEY", "a"), ("S3_SECRET_KEY", "b"));
    assert!(error(&[bucket, access]).contains("S3_SECRET_KEY is not"));
    assert!(error(&[bucket, secret]).contains("S3_ACCESS_KEY is not"));
    assert!(loaded(&[bucket], &[]).s3.static_keys().is_none());
    let s3 = [bucket, access, secret, ("S3_INTERNAL_ENDPOINT", "s3:1")];
    assert_eq!(loaded(&s3, &[]).s3.endpoint().as_deref(), Some("https://s3:1"));
}

#[test]
fn help_and_debug_output_contain_no_secrets() {
    let config = loaded(&[("ROOT_SECRET_PEPPER", "0123456789")], &[]);
    assert!(!format!("{config:?}").contains("0123456789"));
    let Err(EarlyExit::Help(help)) = load(&[], &["--help"]) else { panic!("no help text") };
    assert!(help.contains("[env: ROOT_API_BEARER_TOKEN]"), "{help}");
}
