//! Parsers of single values. An error message describes the valid values. It completes `<setting> is '<value>', but …`, or for a
//! secret `<setting> is invalid: it …`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use crate::crypto::KEY_PREFIX;

pub(super) fn parse_port(text: &str) -> Result<u16, String> {
    text.trim().parse().map_err(|_| "must be a port from 0 to 65535, such as 8029".into())
}

pub(super) fn parse_ip(text: &str) -> Result<IpAddr, String> {
    text.trim().parse().map_err(|_| "must be an IP address, such as 127.0.0.1 or 0.0.0.0".into())
}

pub(super) fn parse_postgres_url(text: &str) -> Result<SecretString, String> {
    let text = text.trim();
    if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
        return Err("must begin with postgres://, such as postgres://user:password@host:5432/name".into());
    }
    let parameters = text.split_once('?').map_or("", |(_, parameters)| parameters);
    for (name, value) in parameters.split('&').filter_map(|parameter| parameter.split_once('=')) {
        if matches!(name, "sslmode" | "ssl-mode") {
            choice(SSL_MODES)(value).map_err(|reason| format!("has an unknown {name}, which {reason}"))?;
        }
    }
    Ok(text.into())
}

const SSL_MODES: &[&str] = &["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// The upper bound of all counts. A higher value is assumed to be a typing error.
const MAX_COUNT: usize = 1_000_000;

pub(super) fn parse_count(text: &str) -> Result<usize, String> {
    let number = text.trim().parse().ok().filter(|n| (1..=MAX_COUNT).contains(n));
    number.ok_or_else(|| format!("must be a whole number from 1 to {MAX_COUNT}, such as 100"))
}

/// Parses a maximum number of model calls.
pub(super) fn parse_iterations(text: &str) -> Result<u32, String> {
    let number = text.trim().parse().ok().filter(|n| (1..=200).contains(n));
    number.ok_or_else(|| "must be a whole number from 1 to 200, such as 24".into())
}

/// Parses a number of further messages or lessons.
pub(super) fn parse_overflow(text: &str) -> Result<u16, String> {
    text.trim().parse().map_err(|_| "must be a whole number from 0 to 65535, such as 16".into())
}

/// Parses a duration like [`parse_duration`], but rejects zero.
pub(super) fn parse_nonzero_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("must be greater than zero, such as 10s".into()),
        duration => Ok(duration),
    }
}

/// Returns a parser that accepts one of `choices`, ignoring upper and lower case, and returns it as it is spelled in `choices`.
pub(super) fn choice(choices: &'static [&'static str]) -> impl Fn(&str) -> Result<String, String> + Clone {
    move |text| {
        let choice = choices.iter().find(|choice| choice.eq_ignore_ascii_case(text.trim()));
        choice.map(|choice| (*choice).to_owned()).ok_or_else(|| format!("must be one of {}", choices.join(", ")))
    }
}

const LOG_LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// Parses a log filter: a list of `<level>` and `<target>=<level>`. Returns it with the levels in lower case. Rejects unknown
/// levels, because the logging library would interpret them as targets and log nothing else.
pub(super) fn parse_log_filter(text: &str) -> Result<String, String> {
    let normalize = |directive: &str| {
        let (target, level_name) = match directive.rsplit_once('=') {
            Some((target, level_name)) => (Some(target.trim()), level_name.trim()),
            None => (None, directive),
        };
        let level_name = level_name.to_ascii_lowercase();
        let level =
            if level_name == "warning" { "warn" } else { LOG_LEVELS.into_iter().find(|level| *level == level_name)? };
        let is_module_path = |target: &str| target.chars().all(|c| c.is_ascii_alphanumeric() || "_:-".contains(c));
        match target {
            None => Some(level.to_owned()),
            Some(target) if !target.is_empty() && is_module_path(target) => Some(format!("{target}={level}")),
            Some(_) => None,
        }
    };
    let directives = text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(normalize);
    let filter: Option<Vec<String>> = directives.collect();
    filter
        .filter(|filter| !filter.is_empty())
        .map(|filter| filter.join(","))
        .ok_or_else(|| format!("must be one of {}, or directives such as info,sqlx=debug", LOG_LEVELS.join(", ")))
}

pub(super) fn parse_bool(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "t" | "1" | "yes" | "on" => Ok(true),
        "false" | "f" | "0" | "no" | "off" => Ok(false),
        _ => Err("must be true or false".into()),
    }
}

pub(super) fn parse_ratio(text: &str) -> Result<f64, String> {
    let ratio = text.trim().parse().ok().filter(|ratio: &f64| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| "must be a number from 0 to 1, such as 0.1".into())
}

pub(super) fn parse_url(text: &str) -> Result<String, String> {
    let text = text.trim();
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    match rest {
        Some(rest) if !rest.is_empty() && !rest.contains(char::is_whitespace) => Ok(text.to_owned()),
        _ => Err("must begin with http:// or https://, such as http://localhost:8029".into()),
    }
}

/// Parses the root token and removes its prefix, which is often pasted with it.
pub(super) fn parse_root_token(text: &str) -> Result<SecretString, String> {
    let token = text.trim().strip_prefix(KEY_PREFIX).unwrap_or(text.trim());
    let is_valid = !token.is_empty() && token.chars().all(|c| c.is_ascii_graphic());
    if is_valid { Ok(token.into()) } else { Err("must consist of visible ASCII characters without spaces".into()) }
}

/// The minimum number of characters of a secret if the server listens on an address that other machines can reach.
pub const MIN_EXPOSED_SECRET_LEN: usize = 16;

/// Returns `true` if a secret is too short for an address that other machines can reach. The prefix `sk-ac-` does not count,
/// because it is the same for all secrets.
pub fn is_short_secret(secret: &str) -> bool {
    secret.strip_prefix(KEY_PREFIX).unwrap_or(secret).chars().count() < MIN_EXPOSED_SECRET_LEN
}

/// Parses a number of bytes, optionally with a unit: `32MiB`, `16KiB` or `1GiB`.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" | "k" => 1 << 10,
        "mib" | "m" => 1 << 20,
        "gib" | "g" => 1 << 30,
        _ => 0,
    };
    let number: Option<u64> = digits.trim().parse().ok();
    number
        .and_then(|n| n.checked_mul(factor))
        .filter(|n| *n > 0)
        .ok_or_else(|| "must be a number of bytes greater than zero, such as 16777216 or 16MiB".into())
}

/// The upper bound of all durations. A longer one is assumed to be a typing error.
const MAX_DURATION: Duration = Duration::from_hours(24 * 1000);

/// Parses a duration such as `250ms`, `10s`, `15m`, `1h` or `1d`; without a unit, it is in seconds.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let millis_per_unit = match &text[digits.len()..] {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => 0,
    };
    let number: Option<u64> = digits.trim().parse().ok();
    number
        .filter(|_| millis_per_unit > 0)
        .and_then(|n| n.checked_mul(millis_per_unit))
        .map(Duration::from_millis)
        .filter(|duration| *duration <= MAX_DURATION)
        .ok_or_else(|| "must be a duration of at most 1000 days, such as 250ms, 10s, 15m or 1h".into())
}

/// Returns `/var/lib/acontextd` for root, and for other users a directory below `HOME`, or below the working directory if `HOME`
/// is not set.
#[expect(clippy::disallowed_methods, reason = "HOME is not a setting of acontextd, and defaults are determined here")]
pub(super) fn default_data_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return "/var/lib/acontextd".into();
    }
    match std::env::var_os("HOME") {
        Some(home) if !home.is_empty() => PathBuf::from(home).join(".local/share/acontextd"),
        _ => ".acontextd".into(),
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn sizes_and_durations_have_units() {
        assert_eq!(parse_bytes("16777216"), Ok(16 << 20));
        assert_eq!(parse_bytes("32MiB"), Ok(32 << 20));
        assert_eq!(parse_bytes("1 k"), Ok(1024));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
        assert!(parse_nonzero_duration("0s").is_err() && parse_nonzero_duration("1ms").is_ok());
        assert!(parse_count("0").is_err() && parse_count("9999999999999999999").is_err());
        for bad in ["", "x", "0", "-1", "5 parsecs", "99999999999999999999", "18446744073709551615k"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
        for bad in ["", "x", "-1s", "5y", "18446744073709551615h", "1001d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn root_token_is_returned_without_its_prefix() {
        assert_eq!(parse_root_token("sk-ac-secret").unwrap().expose_secret(), "secret");
        assert_eq!(parse_root_token(" secret ").unwrap().expose_secret(), "secret");
        assert!(parse_root_token("sk-ac-").is_err());
        assert!(parse_root_token("two words").is_err());
    }

    #[test]
    fn log_filters_consist_of_levels() {
        assert_eq!(parse_log_filter("info").as_deref(), Ok("info"));
        assert_eq!(parse_log_filter("WARNING").as_deref(), Ok("warn"));
        assert_eq!(parse_log_filter(" Info , sqlx::query=Debug,").as_deref(), Ok("info,sqlx::query=debug"));
        assert_eq!(parse_log_filter("off").as_deref(), Ok("off"));
        for bad in ["verbose", "infoo", "info,sqlx", "sqlx=loud", "=info", "info=", "", ",", "sqlx[span]=info"] {
            let error = parse_log_filter(bad).unwrap_err();
            assert!(LOG_LEVELS.iter().all(|level| error.contains(level)), "{bad}: {error}");
        }
    }

    #[test]
    fn choices_ignore_case() {
        assert_eq!(choice(&["AES256", "aws:kms"])("aes256").as_deref(), Ok("AES256"));
        assert_eq!(choice(&["text", "json"])("xml").unwrap_err(), "must be one of text, json");
        assert!(parse_postgres_url("postgres://db/a?sslmode=Verify-Full").is_ok());
        assert!(parse_postgres_url("postgres://db/a?user=me&sslmode=strict").unwrap_err().contains("verify-full"));
    }

    #[test]
    fn urls_require_a_scheme() {
        assert!(parse_url("http://localhost:8029").is_ok());
        assert!(parse_url("localhost:8029").is_err());
        assert!(parse_url("https://").is_err());
    }
}
