//! The parameters of a strategy, and the errors in them.

use serde_json::{Map, Number, Value};

/// An error in the strategies of a request. `field` is the path of the invalid value, such as
/// `edit_strategies[1].params.limit_tokens`. `reason` is the requirement, such as `must be an array of strings`.
#[derive(Debug, PartialEq, Eq)]
pub enum ParseError {
    /// The value is not a JSON array of objects with the string `type` and the object `params`. This error is returned even if
    /// the session does not exist.
    Malformed { field: String, reason: String },
    /// There are too many strategies, a strategy does not exist, or one of its parameters is invalid. As in upstream, this error
    /// is returned only if the session exists.
    Invalid { field: String, reason: String },
}

/// The parameters of a strategy. A parameter that is present must be valid; `null` is invalid.
pub(super) struct Params {
    /// The path of the strategy, such as `edit_strategies[1]`.
    pub(super) path: String,
    pub(super) values: Map<String, Value>,
}

impl Params {
    fn invalid(&self, key: &str, reason: impl Into<String>) -> ParseError {
        ParseError::Invalid { field: format!("{}.params.{key}", self.path), reason: reason.into() }
    }

    /// Returns `value`, the value of the parameter `key`, or an error if the parameter is absent. The parameter is a number of at
    /// least 1.
    pub(super) fn require(&self, key: &str, value: Option<usize>) -> Result<usize, ParseError> {
        value.ok_or_else(|| self.invalid(key, "is required and must be a number of at least 1"))
    }

    /// Returns a number as an integer. Fractions are truncated.
    pub(super) fn truncated_number(&self, key: &str, min: usize) -> Result<Option<usize>, ParseError> {
        self.parse_number(key, min, truncate, "a number")
    }

    /// Returns an integer. `2.0` is an integer, too; other fractions are invalid.
    pub(super) fn integer(&self, key: &str, min: usize) -> Result<Option<usize>, ParseError> {
        let exact = |number: &Number| number.as_f64().filter(|value| value.fract() == 0.0).and(truncate(number));
        self.parse_number(key, min, exact, "an integer")
    }

    fn parse_number(
        &self,
        key: &str,
        min: usize,
        to_integer: impl Fn(&Number) -> Option<i64>,
        type_name: &str,
    ) -> Result<Option<usize>, ParseError> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let number = value.as_number().and_then(to_integer).and_then(|number| usize::try_from(number).ok());
        match number.filter(|number| *number >= min) {
            Some(number) => Ok(Some(number)),
            None => Err(self.invalid(key, format!("must be {type_name} of at least {min} and less than 2^63"))),
        }
    }

    /// Returns a boolean. An absent parameter is `false`.
    pub(super) fn boolean(&self, key: &str) -> Result<bool, ParseError> {
        match self.values.get(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.invalid(key, "must be true or false")),
        }
    }

    /// Returns a string of at most `max_bytes` bytes.
    pub(super) fn string(&self, key: &str, max_bytes: usize) -> Result<Option<&str>, ParseError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::String(text)) if text.len() <= max_bytes => Ok(Some(text)),
            Some(_) => Err(self.invalid(key, format!("must be a string of at most {max_bytes} bytes"))),
        }
    }

    /// Returns an array of strings. An absent parameter yields an empty array.
    pub(super) fn strings(&self, key: &str) -> Result<Vec<String>, ParseError> {
        let to_string = |value: &Value| value.as_str().map(str::to_owned);
        let strings = match self.values.get(key) {
            None => Some(Vec::new()),
            Some(Value::Array(values)) => values.iter().map(to_string).collect(),
            Some(_) => None,
        };
        strings.ok_or_else(|| self.invalid(key, "must be an array of strings"))
    }
}

/// Returns the integer part of a number if it fits into an `i64`.
fn truncate(number: &Number) -> Option<i64> {
    // A cast of a float that is out of range would saturate. The parser returns an error instead.
    number.as_i64().or_else(|| format!("{:.0}", number.as_f64()?.trunc()).parse().ok())
}
