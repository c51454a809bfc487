//! Parses the strategies of a request, a JSON array of `{"type": ..., "params": {...}}`. Unknown keys are ignored.

use serde_json::{Map, Value};

use super::middle_out::MiddleOut;
use super::params::{Params, ParseError};
use super::remove_tool_call_params::RemoveToolCallParams;
use super::remove_tool_result::RemoveToolResult;
use super::token_limit::TokenLimit;
use super::{Strategy, StrategyKind};
use crate::json;

/// The maximum number of strategies of a request.
pub const MAX_STRATEGIES: usize = 16;

/// Parses strategies and sorts them in the order in which they are applied. An empty text, `null` and an empty array yield no
/// strategies.
///
/// # Errors
/// Returns an error if the text is not an array of objects, there are too many strategies, or a strategy is invalid.
pub fn parse(text: &str) -> Result<Vec<Strategy>, ParseError> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let entries: Option<Vec<Value>> =
        json::parse(text.as_bytes()).and_then(serde_json::from_value).map_err(|error| {
            malformed(
                "edit_strategies".into(),
                format!("must be a JSON array of objects with type and params ({error})"),
            )
        })?;
    let entries = entries.unwrap_or_default().into_iter().enumerate();
    let entries = entries.map(|(index, entry)| parse_entry(index, entry)).collect::<Result<Vec<_>, _>>()?;
    if entries.len() > MAX_STRATEGIES {
        let reason = format!("must not contain more than {MAX_STRATEGIES} strategies");
        return Err(ParseError::Invalid { field: "edit_strategies".into(), reason });
    }
    let strategies = entries.iter().map(|(name, params)| Strategy::parse(name, params));
    let mut strategies = strategies.collect::<Result<Vec<_>, _>>()?;
    strategies.sort_by_key(Strategy::application_order);
    Ok(strategies)
}

fn malformed(field: String, reason: impl Into<String>) -> ParseError {
    ParseError::Malformed { field, reason: reason.into() }
}

/// Returns the type and the parameters of an entry. An absent type yields an empty string. `null` is treated as absent, and an
/// entry that is `null` as an empty object.
fn parse_entry(index: usize, entry: Value) -> Result<(String, Params), ParseError> {
    let path = format!("edit_strategies[{index}]");
    let mut entry = match entry {
        Value::Object(entry) => entry,
        Value::Null => Map::new(),
        _ => return Err(malformed(path, "must be an object with type and params")),
    };
    let name = match entry.remove("type") {
        Some(Value::String(name)) => name,
        None | Some(Value::Null) => String::new(),
        Some(_) => return Err(malformed(format!("{path}.type"), "must be a string")),
    };
    match entry.remove("params") {
        Some(Value::Object(values)) => Ok((name, Params { path, values })),
        None | Some(Value::Null) => Ok((name, Params { path, values: Map::new() })),
        Some(_) => Err(malformed(format!("{path}.params"), "must be an object")),
    }
}

impl Strategy {
    fn parse(name: &str, params: &Params) -> Result<Self, ParseError> {
        Ok(Self(match name {
            "remove_tool_result" => StrategyKind::RemoveToolResult(RemoveToolResult::parse(params)?),
            "remove_tool_call_params" => StrategyKind::RemoveToolCallParams(RemoveToolCallParams::parse(params)?),
            "middle_out" => StrategyKind::MiddleOut(MiddleOut::parse(params)?),
            "token_limit" => StrategyKind::TokenLimit(TokenLimit::parse(params)?),
            _ => {
                let reason = "must be remove_tool_result, remove_tool_call_params, middle_out or token_limit".into();
                return Err(ParseError::Invalid { field: format!("{}.type", params.path), reason });
            }
        }))
    }

    /// Returns the position in the order of application. Strategies that shorten messages precede strategies that remove
    /// messages. `token_limit` is last, because its limit must never be exceeded.
    fn application_order(&self) -> u8 {
        match self.0 {
            StrategyKind::RemoveToolResult(_) => 0,
            StrategyKind::RemoveToolCallParams(_) => 1,
            StrategyKind::MiddleOut(_) => 2,
            StrategyKind::TokenLimit(_) => 3,
        }
    }
}
