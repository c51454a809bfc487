//! How single values are read, each with a message that says what would do.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use crate::crypto::KEY_PREFIX;

pub(super) fn port(text: &str) -> Result<u16, String> {
    text.trim().parse().map_err(|_| "must be a port from 0 to 65535, such as 8029".into())
}

pub(super) fn ip(text: &str) -> Result<IpAddr, String> {
    text.trim().parse().map_err(|_| "must be an IP address, such as 127.0.0.1 or 0.0.0.0".into())
}

pub(super) fn postgres_url(text: &str) -> Result<SecretString, String> {
    let text = text.trim();
    if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
        return Err("must begin with postgres://, such as postgres://user:password@host:5432/name".into());
    }
    let parameters = text.split_once('?').map_or("", |(_, parameters)| parameters);
    for (name, value) in parameters.split('&').filter_map(|parameter| parameter.split_once('=')) {
        if matches!(name, "sslmode" | "ssl-mode") {
            choice(SSL_MODES)(value).map_err(|wrong| format!("has an unknown {name}, which {wrong}"))?;
        }
    }
    Ok(text.into())
}

const SSL_MODES: &[&str] = &["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// More of anything than this is a slip of the keyboard.
const MAX_COUNT: usize = 1_000_000;

pub(super) fn count(text: &str) -> Result<usize, String> {
    let number = text.trim().parse().ok().filter(|n| (1..=MAX_COUNT).contains(n));
    number.ok_or_else(|| format!("must be a whole number from 1 to {MAX_COUNT}, such as 100"))
}

/// As [`duration`], but not nothing.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be longer than nothing, such as 10s".into()),
        span => Ok(span),
    }
}

/// One of a closed set of values, whatever its case.
pub(super) fn choice(choices: &'static [&'static str]) -> impl Fn(&str) -> Result<String, String> + Clone {
    move |text| {
        let found = choices.iter().find(|choice| choice.eq_ignore_ascii_case(text.trim()));
        found.map(|choice| (*choice).to_owned()).ok_or_else(|| format!("must be one of {}", choices.join(", ")))
    }
}

const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// A log filter: levels, each for everything or for a target, in the spelling that the logging library reads. A word that is
/// not a level is refused, because that library takes it for a target and then logs nothing else.
pub(super) fn log_filter(text: &str) -> Result<String, String> {
    let directive = |directive: &str| {
        let (target, level) = match directive.rsplit_once('=') {
            Some((target, level)) => (Some(target.trim()), level.trim()),
            None => (None, directive),
        };
        let level = level.to_ascii_lowercase();
        let level = if level == "warning" { "warn" } else { LEVELS.into_iter().find(|known| *known == level)? };
        let is_path = |target: &str| target.chars().all(|c| c.is_ascii_alphanumeric() || "_:-".contains(c));
        match target {
            None => Some(level.to_owned()),
            Some(target) if !target.is_empty() && is_path(target) => Some(format!("{target}={level}")),
            Some(_) => None,
        }
    };
    let directives = text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(directive);
    let filter: Option<Vec<String>> = directives.collect();
    filter.filter(|filter| !filter.is_empty()).map(|filter| filter.join(",")).ok_or_else(|| {
        format!("must be one of {}, or a list with levels of targets such as info,sqlx=debug", LEVELS.join(", "))
    })
}

pub(super) fn flag(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "t" | "1" | "yes" | "on" => Ok(true),
        "false" | "f" | "0" | "no" | "off" => Ok(false),
        _ => Err("must be true or false".into()),
    }
}

pub(super) fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.trim().parse().ok().filter(|ratio: &f64| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| "must be a number from 0 to 1, such as 0.1".into())
}

pub(super) fn url(text: &str) -> Result<String, String> {
    let text = text.trim();
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    match rest {
        Some(rest) if !rest.is_empty() && !rest.contains(char::is_whitespace) => Ok(text.to_owned()),
        _ => Err("must begin with http:// or https://, such as http://localhost:8029".into()),
    }
}

/// The token without its prefix, which people paste along.
pub(super) fn root_token(text: &str) -> Result<SecretString, String> {
    let body = text.trim().strip_prefix(KEY_PREFIX).unwrap_or(text.trim());
    let visible = !body.is_empty() && body.chars().all(|c| c.is_ascii_graphic());
    if visible { Ok(body.into()) } else { Err("must be visible ASCII characters without spaces".into()) }
}

/// A number of bytes, also as `32MiB`, `16KiB` or `1GiB`.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
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
        .ok_or_else(|| "must be a number of bytes, such as 16777216 or 16MiB".into())
}

const LONGEST: Duration = Duration::from_hours(24 * 1000);

/// A length of time: `250ms`, `10s`, `15m`, `1h`, or a number of seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let millis = match &text[digits.len()..] {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => 0,
    };
    let number: Option<u64> = digits.trim().parse().ok();
    number
        .filter(|_| millis > 0)
        .and_then(|n| n.checked_mul(millis))
        .map(Duration::from_millis)
        .filter(|time| *time <= LONGEST)
        .ok_or_else(|| "must be a length of time of at most 1000 days, such as 250ms, 10s, 15m or 1h".into())
}

/// Where data is kept if no folder is named.
#[expect(clippy::disallowed_methods, reason = "HOME is no setting of ours, and this is where defaults are made")]
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
    fn sizes_and_times_are_read_with_their_units() {
        assert_eq!(bytes("16777216"), Ok(16 << 20));
        assert_eq!(bytes("32MiB"), Ok(32 << 20));
        assert_eq!(bytes("1 k"), Ok(1024));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert!(span("0s").is_err() && span("1ms").is_ok());
        assert!(count("0").is_err() && count("9999999999999999999").is_err());
        for bad in ["", "x", "0", "-1", "5 parsecs", "99999999999999999999", "18446744073709551615k"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        for bad in ["", "x", "-1s", "5y", "18446744073709551615h", "1001d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_root_token_loses_its_prefix() {
        assert_eq!(root_token("sk-ac-secret").unwrap().expose_secret(), "secret");
        assert_eq!(root_token(" secret ").unwrap().expose_secret(), "secret");
        assert!(root_token("sk-ac-").is_err());
        assert!(root_token("two words").is_err());
    }

    #[test]
    fn log_filters_are_levels_and_nothing_else() {
        assert_eq!(log_filter("info").as_deref(), Ok("info"));
        assert_eq!(log_filter("WARNING").as_deref(), Ok("warn"));
        assert_eq!(log_filter(" Info , sqlx::query=Debug,").as_deref(), Ok("info,sqlx::query=debug"));
        assert_eq!(log_filter("off").as_deref(), Ok("off"));
        for bad in ["verbose", "infoo", "info,sqlx", "sqlx=loud", "=info", "info=", "", ",", "sqlx[span]=info"] {
            let refusal = log_filter(bad).unwrap_err();
            assert!(LEVELS.iter().all(|level| refusal.contains(level)), "{bad}: {refusal}");
        }
    }

    #[test]
    fn choices_ignore_case() {
        assert_eq!(choice(&["AES256", "aws:kms"])("aes256").as_deref(), Ok("AES256"));
        assert_eq!(choice(&["text", "json"])("xml").unwrap_err(), "must be one of text, json");
        assert!(postgres_url("postgres://db/a?sslmode=Verify-Full").is_ok());
        assert!(postgres_url("postgres://db/a?user=me&sslmode=strict").unwrap_err().contains("verify-full"));
    }

    #[test]
    fn urls_want_a_scheme() {
        assert!(url("http://localhost:8029").is_ok());
        assert!(url("localhost:8029").is_err());
        assert!(url("https://").is_err());
    }
}
