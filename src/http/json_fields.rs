//! Parses request fields that contain a free-form JSON object, and checks that Postgres can store the object.

use bytes::Bytes;
use serde_json::{Map, Value};

use super::context::RequestContext;
use super::memory::Reservations;
use crate::error::{Error, Result};
use crate::json;

/// The maximum length of a number in characters. The text of [`INVALID_NUMBER`] contains this limit and the next one.
const MAX_NUMBER_LEN: usize = 1_000;
/// The maximum absolute value of an exponent. Postgres stores zeros instead of the exponent, so a number with a large exponent
/// would take much more space than its text.
const MAX_EXPONENT: u32 = 1_000;
/// The maximum nesting depth of an object in a column. A column is read with the limit of `serde_json`, 127, and may contain the
/// object inside of another one.
const MAX_COLUMN_DEPTH: usize = 120;
const TOO_DEEP: &str = "must not be nested more than 120 levels deep";
const INVALID_NUMBER: &str =
    "must not contain a number that has more than 1000 characters, or an exponent below -1000 or above 1000";

/// Checks that Postgres can store an object: it takes at most `max_bytes` as JSON, is not nested too deeply, and contains neither
/// NUL characters nor numbers that are too long.
///
/// # Errors
/// Returns 413 if the object is too large, and 400 if it contains a value that cannot be stored. Both name the field.
pub fn validate_storable(field: &str, object: &Map<String, Value>, max_bytes: u64) -> Result<()> {
    let mut size = serde_json::to_vec(object).map_err(Error::internal)?.len();
    object
        .iter()
        .try_for_each(|(key, value)| validate_string(key).and_then(|()| validate_value(value, 2, &mut size)))
        .map_err(|reason| Error::invalid_field(field, reason))?;
    if size as u64 > max_bytes {
        return Err(Error::PayloadTooLarge(format!("{field}: exceeds the maximum of {max_bytes} bytes")));
    }
    Ok(())
}

/// Parses a field that contains a JSON object as text. Returns `None` if the text is empty or `null`.
///
/// # Errors
/// Returns 400 with the message `invalid_msg`, which clients match, if the text is not a JSON object.
pub fn parse_object_field(field: &str, invalid_msg: &str, text: &str) -> Result<Option<Map<String, Value>>> {
    let invalid = |reason: &dyn std::fmt::Display| Error::BadRequest {
        msg: invalid_msg.to_owned().into(),
        detail: Some(format!("{field}: {reason}")),
    };
    if text.is_empty() {
        return Ok(None);
    }
    match json::parse(text.as_bytes()).map_err(|reason| invalid(&reason))? {
        Value::Null => Ok(None),
        Value::Object(object) => Ok(Some(object)),
        _ => Err(invalid(&"must be a JSON object")),
    }
}

/// Parses a field with [`BodyMemory::parse`](super::memory::BodyMemory::parse) and [`parse_object_field`]. Use this function for
/// a field that may be large, such as a text field of a form.
///
/// # Errors
/// Returns the errors of [`parse_object_field`] and [`BodyMemory::parse`](super::memory::BodyMemory::parse).
pub async fn parse_large_object_field(
    ctx: &RequestContext,
    reservations: &Reservations,
    field: &'static str,
    invalid_msg: &'static str,
    text: String,
) -> Result<Option<Map<String, Value>>> {
    let max_values = ctx.limits.max_json_values;
    let parse = move |text: Bytes| parse_object_field(field, invalid_msg, &String::from_utf8_lossy(&text));
    ctx.body_memory.parse(reservations, field, text.into(), max_values, parse).await
}

/// Parses a filter of a list: a JSON object that the listed objects must contain. A missing or empty text, `null` and `{}` mean
/// that there is no filter; the result is `None`.
///
/// # Errors
/// Returns 400 `invalid <field> JSON` if the text is not a JSON object, or the errors of [`validate_storable`].
pub fn parse_containment_filter(field: &str, text: Option<&str>, max_bytes: u64) -> Result<Option<Map<String, Value>>> {
    let filter = parse_object_field(field, &format!("invalid {field} JSON"), text.unwrap_or_default())?;
    let filter = filter.filter(|filter| !filter.is_empty());
    if let Some(filter) = &filter {
        validate_storable(field, filter, max_bytes)?;
    }
    Ok(filter)
}

/// Returns `object` with the top-level keys of `patch`. A key that is `null` in `patch` is removed.
pub fn merge_top_level(mut object: Map<String, Value>, patch: Map<String, Value>) -> Map<String, Value> {
    for (key, value) in patch {
        match value {
            Value::Null => drop(object.remove(&key)),
            value => drop(object.insert(key, value)),
        }
    }
    object
}

/// Validates a value, and adds the zeros that Postgres stores instead of exponents to `size`. `depth` is the nesting depth of the
/// value if it is an array or object.
fn validate_value(value: &Value, depth: usize, size: &mut usize) -> Result<(), &'static str> {
    match value {
        Value::Array(_) | Value::Object(_) if depth > MAX_COLUMN_DEPTH => Err(TOO_DEEP),
        Value::Null | Value::Bool(_) => Ok(()),
        Value::String(inner) => validate_string(inner),
        Value::Number(number) => validate_number(&number.to_string()).map(|zeros| *size += zeros),
        Value::Array(items) => items.iter().try_for_each(|item| validate_value(item, depth + 1, size)),
        Value::Object(inner) => inner
            .iter()
            .try_for_each(|(key, value)| validate_string(key).and_then(|()| validate_value(value, depth + 1, size))),
    }
}

fn validate_string(text: &str) -> Result<(), &'static str> {
    if text.contains('\0') { Err("must not contain the character NUL") } else { Ok(()) }
}

/// Validates a number. Returns how many zeros Postgres stores instead of its exponent.
fn validate_number(number: &str) -> Result<usize, &'static str> {
    let exponent = number.split_once(['e', 'E']).map_or(Some(0), |(_, exponent)| exponent.parse::<i32>().ok());
    match exponent {
        Some(n) if n.unsigned_abs() <= MAX_EXPONENT && number.len() <= MAX_NUMBER_LEN => Ok(n.unsigned_abs() as usize),
        _ => Err(INVALID_NUMBER),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> Result<()> {
        validate_storable("meta", serde_json::from_str::<Value>(json).unwrap().as_object().unwrap(), 1_000_000)
    }

    #[test]
    fn ordinary_objects_are_accepted() {
        assert!(check(r#"{"a": [1, 2.50, null, {"ü": true}], "": 12345678901234567890, "e": 1e300}"#).is_ok());
    }

    #[test]
    fn objects_that_are_too_deep_for_a_column_are_rejected() {
        let nested = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
        assert!(check(&nested(120)).is_ok());
        let error = check(&nested(121)).unwrap_err();
        assert!(
            matches!(error, Error::BadRequest { detail: Some(detail), .. } if detail == format!("meta: {TOO_DEEP}"))
        );
    }

    #[test]
    fn objects_that_postgres_cannot_store_are_rejected() {
        let long = format!(r#"{{"n": {}}}"#, "9".repeat(2_000));
        for json in
            [r#"{"a": "\u0000"}"#, r#"{"\u0000": 1}"#, r#"{"a": [{"b": "\u0000"}]}"#, r#"{"n": 1e200000}"#, &long]
        {
            let error = check(json).unwrap_err();
            assert!(matches!(error, Error::BadRequest { detail: Some(detail), .. } if detail.starts_with("meta: ")));
        }
        let large_exponents = format!(r#"{{"n": [{}]}}"#, ["1e1000"; 1_000].join(","));
        assert!(matches!(check(&large_exponents), Err(Error::PayloadTooLarge(_))));
        assert!(validate_storable("meta", &Map::from_iter([("k".into(), Value::from("v".repeat(100)))]), 50).is_err());
    }
}
