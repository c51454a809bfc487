//! Reading the strategies of a request: a JSON list of `{"type": ..., "params": {...}}`. Keys that nobody knows are ignored.

use serde_json::{Map, Value};

use super::middle_out::MiddleOut;
use super::params::{Params, ParseError};
use super::remove_tool_call_params::RemoveToolCallParams;
use super::remove_tool_result::RemoveToolResult;
use super::token_limit::TokenLimit;
use super::{Kind, Strategy};
use crate::json;

/// How many strategies a request may have.
pub const MAX_STRATEGIES: usize = 16;

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
        return Err(ParseError::Invalid { field: "edit_strategies".into(), why });
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
                return Err(ParseError::Invalid { field: format!("{}.type", params.place), why });
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
