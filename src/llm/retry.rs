//! The delays between the attempts of a request.

use std::time::Duration;

use chrono::{DateTime, Utc};
use rand::Rng;
use reqwest::header::{HeaderMap, RETRY_AFTER};

/// The maximum number of attempts of a request.
pub(super) const MAX_ATTEMPTS: u32 = 3;

/// The delay after the first attempt. It doubles with each further attempt.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(8);

/// The maximum delay that a server can request with `Retry-After`. It limits the effect of a wrong value.
const MAX_RETRY_AFTER: Duration = Duration::from_mins(1);

/// The maximum delay between two attempts. If the server requests a longer one, the request fails, so that the job is retried
/// after the delay and other jobs can run in the meantime.
pub(super) const MAX_DELAY: Duration = Duration::from_secs(10);

/// Returns the delay after the failed attempt with the number `attempt`, which begins with 1. A quarter of the delay is random,
/// so that the requests that failed together are not repeated together.
pub(super) fn backoff(attempt: u32) -> Duration {
    let delay = FIRST_BACKOFF.saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1))).min(MAX_BACKOFF);
    delay.mul_f64(rand::rng().random_range(0.75..=1.0))
}

/// Returns the delay that a response requests. `retry-after-ms` is an extension of `OpenAI` in milliseconds. `Retry-After` is a
/// number of seconds or an HTTP date (RFC 9110, section 10.2.3).
pub(super) fn retry_after(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let duration = |seconds: f64| Duration::try_from_secs_f64(seconds).ok();
    let millis = value("retry-after-ms").and_then(|text| text.parse::<f64>().ok()).and_then(|ms| duration(ms / 1e3));
    let delay = millis.or_else(|| {
        let text = value(RETRY_AFTER.as_str())?;
        if let Ok(seconds) = text.parse() {
            return duration(seconds);
        }
        let date = DateTime::parse_from_rfc2822(text).ok()?;
        Some((date.to_utc() - now).to_std().unwrap_or_default())
    });
    delay.map(|delay| delay.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn backoff_doubles_up_to_a_maximum() {
        for (attempt, millis) in [(1, 500), (2, 1_000), (3, 2_000), (9, 8_000), (40, 8_000)] {
            let delay = backoff(attempt);
            let max = Duration::from_millis(millis);
            assert!(delay >= max.mul_f64(0.75) && delay <= max, "{attempt}: {delay:?}");
        }
    }

    #[test]
    fn retry_after_is_a_number_of_seconds_or_a_date() {
        let now = "2026-11-29T12:00:00Z".parse().unwrap();
        let parse = |name: &'static str, value: &str| {
            retry_after(&HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_str(value).unwrap())]), now)
        };
        for (value, millis) in [
            ("1", Some(1_000)),
            (" 0.5 ", Some(500)),
            ("Sun, 29 Nov 2026 12:00:07 GMT", Some(7_000)),
            ("Sun, 29 Nov 2026 11:00:00 GMT", Some(0)),
            ("3600", Some(60_000)),
            ("Sun, 29 Nov 2026 13:00:00 GMT", Some(60_000)),
            ("-1", None),
            ("1e300", None),
            ("NaN", None),
            ("soon", None),
        ] {
            assert_eq!(parse("retry-after", value), millis.map(Duration::from_millis), "{value}");
        }
        assert_eq!(parse("retry-after-ms", "20"), Some(Duration::from_millis(20)));
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
