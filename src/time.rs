//! Timestamps in JSON: RFC 3339 in UTC, with up to six decimals and no trailing zeros, as upstream's clients expect them.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};

/// A point in time with microsecond precision, as in Postgres.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, sqlx::Type, utoipa::ToSchema)]
#[sqlx(transparent)]
#[schema(value_type = String, format = DateTime, example = "2025-01-02T03:04:05.12Z")]
pub struct Timestamp(pub DateTime<Utc>);

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        let full = self.0.to_rfc3339_opts(SecondsFormat::Micros, true);
        let trimmed = full.trim_end_matches('Z').trim_end_matches('0').trim_end_matches('.');
        output.collect_str(&format_args!("{trimmed}Z"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailing_zeros_are_trimmed() {
        for (micros, text) in [
            (1_735_787_045_120_000, "2025-01-02T03:04:05.12Z"),
            (1_735_787_045_000_000, "2025-01-02T03:04:05Z"),
            (1_735_787_040_000_000, "2025-01-02T03:04:00Z"),
            (1_735_787_045_000_001, "2025-01-02T03:04:05.000001Z"),
        ] {
            let time = Timestamp(DateTime::from_timestamp_micros(micros).unwrap());
            assert_eq!(serde_json::to_value(time).unwrap(), text);
        }
    }
}
