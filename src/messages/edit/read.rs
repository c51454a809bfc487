//! Reading the strategies of a request: a JSON list of `{"type": ..., "params": {...}}`. Keys that nobody knows are ignored.

use serde_json::{Map, Number, Value};

use super::middle_out::MiddleOut;
use super::remove_tool_call_params::RemoveToolCallParams;
use super::remove_tool_result::RemoveToolResult;
use super::token_limit::TokenLimit;
use super::{Kind, Strategy};
use crate::json;

/// How many strategies a request may have.
pub const MAX_STRATEGIES: usize = 16;

/// What is wrong with the strategies of a request. `field` says where, such as `edit_strategies[1].params.limit_tokens`;
/// `why` what would do, such as `must be a number of at least 1`.
#[derive(Debug, PartialEq, Eq)]
pub enum ParseError {
    /// It is no JSON list of objects. A request is refused for this before anything else is looked at.
    Malformed { field: String, why: String },
    /// A strategy that does not exist, or cannot be as it is asked for.
    Refused { field: String, why: String },
}

/// Reads strategies, and puts them in the order in which they work. An empty text, `null` and an empty list are none.
pub fn parse(text: &str) -> Result<Vec<Strategy>, ParseError> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let entries: Option<Vec<Value>> =
        json::parse(text.as_bytes()).and_then(serde_json::from_value).map_err(|error| {
            malformed(
                "edit_strategies".into(),
                format!("must be a JSON list of objects with type and params ({error})"),
            )
        })?;
    let entries = entries.unwrap_or_default().into_iter().enumerate();
    let entries = entries.map(|(at, entry)| read_entry(at, entry)).collect::<Result<Vec<_>, _>>()?;
    if entries.len() > MAX_STRATEGIES {
        let why = format!("must not hold more than {MAX_STRATEGIES} strategies");
        return Err(ParseError::Refused { field: "edit_strategies".into(), why });
    }
    let strategies = entries.iter().map(|(name, params)| Strategy::read(name, params));
    let mut strategies = strategies.collect::<Result<Vec<_>, _>>()?;
    strategies.sort_by_key(Strategy::rank);
    Ok(strategies)
}

fn malformed(field: String, why: impl Into<String>) -> ParseError {
    ParseError::Malformed { field, why: why.into() }
}

/// The type and the parameters of an entry. `null` is the same as absent, for an entry too: one without a type.
fn read_entry(at: usize, entry: Value) -> Result<(String, Params), ParseError> {
    let place = format!("edit_strategies[{at}]");
    let mut entry = match entry {
        Value::Object(entry) => entry,
        Value::Null => Map::new(),
        _ => return Err(malformed(place, "must be an object with type and params")),
    };
    let name = match entry.remove("type") {
        Some(Value::String(name)) => name,
        None | Some(Value::Null) => String::new(),
        Some(_) => return Err(malformed(format!("{place}.type"), "must be a string")),
    };
    match entry.remove("params") {
        Some(Value::Object(values)) => Ok((name, Params { place, values })),
        None | Some(Value::Null) => Ok((name, Params { place, values: Map::new() })),
        Some(_) => Err(malformed(format!("{place}.params"), "must be an object")),
    }
}

impl Strategy {
    fn read(name: &str, params: &Params) -> Result<Self, ParseError> {
        Ok(Self(match name {
            "remove_tool_result" => Kind::RemoveToolResult(RemoveToolResult::read(params)?),
            "remove_tool_call_params" => Kind::RemoveToolCallParams(RemoveToolCallParams::read(params)?),
            "middle_out" => Kind::MiddleOut(MiddleOut::read(params)?),
            "token_limit" => Kind::TokenLimit(TokenLimit::read(params)?),
            _ => {
                let why = "must be remove_tool_result, remove_tool_call_params, middle_out or token_limit".into();
                return Err(ParseError::Refused { field: format!("{}.type", params.place), why });
            }
        }))
    }

    /// What makes messages shorter comes before what takes them out, and the hard limit comes last.
    fn rank(&self) -> u8 {
        match self.0 {
            Kind::RemoveToolResult(_) => 0,
            Kind::RemoveToolCallParams(_) => 1,
            Kind::MiddleOut(_) => 2,
            Kind::TokenLimit(_) => 3,
        }
    }
}

/// The parameters of a strategy. What is there must be right, `null` is not.
pub(super) struct Params {
    place: String,
    values: Map<String, Value>,
}

impl Params {
    fn refused(&self, key: &str, why: impl Into<String>) -> ParseError {
        ParseError::Refused { field: format!("{}.params.{key}", self.place), why: why.into() }
    }

    pub(super) fn needed<T>(&self, key: &str, value: Option<T>) -> Result<T, ParseError> {
        value.ok_or_else(|| self.refused(key, "is required, a number of at least 1"))
    }

    /// A number; what it has behind the point is cut off.
    pub(super) fn number(&self, key: &str, min: usize) -> Result<Option<usize>, ParseError> {
        self.number_by(key, min, truncated, "a number")
    }

    /// A number that has nothing but zeros behind the point.
    pub(super) fn whole_number(&self, key: &str, min: usize) -> Result<Option<usize>, ParseError> {
        let whole = |number: &Number| number.as_f64().filter(|value| value.fract() == 0.0).and(truncated(number));
        self.number_by(key, min, whole, "a whole number")
    }

    fn number_by(
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
            None => Err(self.refused(key, format!("must be {what} of at least {min} and less than 2^63"))),
        }
    }

    pub(super) fn text(&self, key: &str, max_bytes: usize) -> Result<Option<&str>, ParseError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::String(text)) if text.len() <= max_bytes => Ok(Some(text)),
            Some(_) => Err(self.refused(key, format!("must be a string of at most {max_bytes} bytes"))),
        }
    }

    /// A list of texts; empty if there is none.
    pub(super) fn texts(&self, key: &str) -> Result<Vec<String>, ParseError> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let texts = match self.values.get(key) {
            None => Some(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(text).collect(),
            Some(_) => None,
        };
        texts.ok_or_else(|| self.refused(key, "must be a list of strings"))
    }
}

/// A number without what stands behind the point, if that fits into 64 bits with a sign.
fn truncated(number: &Number) -> Option<i64> {
    number.as_i64().or_else(|| format!("{:.0}", number.as_f64()?.trunc()).parse().ok())
}
