//! The parameters of a strategy, and the errors in them.

use serde_json::{Map, Number, Value};

/// An error in the strategies of a request. `field` is its path, such as `edit_strategies[1].params.limit_tokens`; `why` is what
/// is allowed, such as `must be a number of at least 1`.
#[derive(Debug, PartialEq, Eq)]
pub enum ParseError {
    /// It is not a JSON list of objects. Such a request is rejected before anything else is checked.
    Malformed { field: String, why: String },
    /// The strategy does not exist, or one of its parameters is invalid.
    Invalid { field: String, why: String },
}

/// The parameters of a strategy. A parameter that is given must be valid; `null` is not.
pub(super) struct Params {
    pub(super) place: String,
    pub(super) values: Map<String, Value>,
}

impl Params {
    fn invalid(&self, key: &str, why: impl Into<String>) -> ParseError {
        ParseError::Invalid { field: format!("{}.params.{key}", self.place), why: why.into() }
    }

    pub(super) fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, ParseError> {
        value.ok_or_else(|| self.invalid(key, "is required, a number of at least 1"))
    }

    /// Returns an integer; fractions are truncated.
    pub(super) fn number(&self, key: &str, min: usize) -> Result<Option<usize>, ParseError> {
        self.parse_number(key, min, truncated, "a number")
    }

    /// Returns an integer; other fractions than `.0` are invalid.
    pub(super) fn whole_number(&self, key: &str, min: usize) -> Result<Option<usize>, ParseError> {
        let whole = |number: &Number| number.as_f64().filter(|value| value.fract() == 0.0).and(truncated(number));
        self.parse_number(key, min, whole, "a whole number")
    }

    fn parse_number(
        &self,
        key: &str,
        min: usize,
        read: impl Fn(&Number) -> Option<i64>,
        what: &str,
    ) -> Result<Option<usize>, ParseError> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let number = value.as_number().and_then(read).and_then(|number| usize::try_from(number).ok());
        match number.filter(|number| *number >= min) {
            Some(number) => Ok(Some(number)),
            None => Err(self.invalid(key, format!("must be {what} of at least {min} and less than 2^63"))),
        }
    }

    pub(super) fn text(&self, key: &str, max_bytes: usize) -> Result<Option<&str>, ParseError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::String(text)) if text.len() <= max_bytes => Ok(Some(text)),
            Some(_) => Err(self.invalid(key, format!("must be a string of at most {max_bytes} bytes"))),
        }
    }

    /// Returns a list of strings; empty if there is none.
    pub(super) fn strings(&self, key: &str) -> Result<Vec<String>, ParseError> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let texts = match self.values.get(key) {
            None => Some(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(text).collect(),
            Some(_) => None,
        };
        texts.ok_or_else(|| self.invalid(key, "must be a list of strings"))
    }
}

/// Returns the integer part of a number if it fits into an `i64`.
fn truncated(number: &Number) -> Option<i64> {
    number.as_i64().or_else(|| format!("{:.0}", number.as_f64()?.trunc()).parse().ok())
}
