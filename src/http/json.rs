//! Free-form JSON that clients hand over to be kept: what of it Postgres can hold.

use bytes::Bytes;
use serde_json::{Map, Value};

use super::context::RequestContext;
use super::memory::Reservations;
use crate::error::{Error, Result};
use crate::json;

/// Longer numbers, or exponents beyond this, are no measure of anything and would blow up where they are stored.
const MAX_DIGITS: usize = 1_000;
const MAX_EXPONENT: i32 = 1_000;

/// Refuses an object that cannot be kept as it is: too large, a NUL in a text, or a number beyond all measure.
///
/// # Errors
/// 400 or, for its size, 413 that names the field.
pub fn validate_storable(field: &str, object: &Map<String, Value>, max_bytes: u64) -> Result<()> {
    let mut size = serde_json::to_vec(object).map_err(Error::internal)?.len();
    object
        .iter()
        .try_for_each(|(key, value)| text(key).and_then(|()| storable(value, &mut size)))
        .map_err(|wrong| Error::invalid_field(field, wrong))?;
    if size as u64 > max_bytes {
        return Err(Error::PayloadTooLarge(format!("{field}: is larger than the maximum of {max_bytes} bytes")));
    }
    Ok(())
}

/// Reads an object that comes as text; nothing and `null` are none.
///
/// # Errors
/// 400 with a text that clients know for it, for what is no JSON object.
pub fn parse_object_field(field: &str, invalid: &str, text: &str) -> Result<Option<Map<String, Value>>> {
    let invalid = |why: &dyn std::fmt::Display| Error::BadRequest {
        msg: invalid.to_owned().into(),
        detail: Some(format!("{field}: {why}")),
    };
    if text.is_empty() {
        return Ok(None);
    }
    match json::parse(text.as_bytes()).map_err(|why| invalid(&why))? {
        Value::Null => Ok(None),
        Value::Object(object) => Ok(Some(object)),
        _ => Err(invalid(&"must be a JSON object")),
    }
}

/// Parses an object that comes as a text of up to [`Limits::form_field`](crate::config::Limits::form_field) bytes, as
/// [`parse_object_field`] does, within the memory of the request.
///
/// # Errors
/// Returns what [`parse_object_field`] and [`BodyMemory::parse`](super::memory::BodyMemory::parse) return.
pub async fn long_object_in(
    ctx: &RequestContext,
    reservations: &Reservations,
    field: &'static str,
    invalid: &'static str,
    text: String,
) -> Result<Option<Map<String, Value>>> {
    let max_values = ctx.limits.json_values;
    let parse = move |text: Bytes| parse_object_field(field, invalid, &String::from_utf8_lossy(&text));
    ctx.body_memory.parse(reservations, field, text.into(), max_values, parse).await
}

/// Reads what the objects of a list must contain, a JSON object as text: nothing, `null` and `{}` narrow nothing.
///
/// # Errors
/// 400 `invalid <field> JSON`, or what [`validate_storable`] says.
pub fn parse_containment_filter(field: &str, text: Option<&str>, max_bytes: u64) -> Result<Option<Map<String, Value>>> {
    let filter = parse_object_field(field, &format!("invalid {field} JSON"), text.unwrap_or_default())?;
    let filter = filter.filter(|filter| !filter.is_empty());
    if let Some(filter) = &filter {
        validate_storable(field, filter, max_bytes)?;
    }
    Ok(filter)
}

/// Sets keys of the first level; `null` removes one.
pub fn merge(mut object: Map<String, Value>, patch: Map<String, Value>) -> Map<String, Value> {
    for (key, value) in patch {
        match value {
            Value::Null => drop(object.remove(&key)),
            value => drop(object.insert(key, value)),
        }
    }
    object
}

/// Adds to `size` what Postgres will write out that is not written here: it knows no exponents.
fn storable(value: &Value, size: &mut usize) -> Result<(), &'static str> {
    match value {
        Value::Null | Value::Bool(_) => Ok(()),
        Value::String(inner) => text(inner),
        Value::Number(number) => measure(&number.to_string()).map(|zeros| *size += zeros),
        Value::Array(items) => items.iter().try_for_each(|item| storable(item, size)),
        Value::Object(inner) => {
            inner.iter().try_for_each(|(key, value)| text(key).and_then(|()| storable(value, size)))
        }
    }
}

fn text(text: &str) -> Result<(), &'static str> {
    if text.contains('\0') { Err("must not contain the character NUL") } else { Ok(()) }
}

/// How many digits the exponent stands for.
fn measure(number: &str) -> Result<usize, &'static str> {
    let exponent = number.split_once(['e', 'E']).map_or(Some(0), |(_, exponent)| exponent.parse::<i32>().ok());
    match exponent {
        Some(n) if n.abs() <= MAX_EXPONENT && number.len() <= MAX_DIGITS => Ok(n.unsigned_abs() as usize),
        _ => Err("contains a number that is too large or too long"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> Result<()> {
        validate_storable("meta", serde_json::from_str::<Value>(json).unwrap().as_object().unwrap(), 1_000_000)
    }

    #[test]
    fn ordinary_objects_are_fine() {
        assert!(check(r#"{"a": [1, 2.50, null, {"ü": true}], "": 12345678901234567890, "e": 1e300}"#).is_ok());
    }

    #[test]
    fn what_postgres_cannot_hold_is_refused_by_name() {
        let long = format!(r#"{{"n": {}}}"#, "9".repeat(2_000));
        for json in
            [r#"{"a": "\u0000"}"#, r#"{"\u0000": 1}"#, r#"{"a": [{"b": "\u0000"}]}"#, r#"{"n": 1e200000}"#, &long]
        {
            let refusal = check(json).unwrap_err();
            assert!(matches!(refusal, Error::BadRequest { detail: Some(detail), .. } if detail.starts_with("meta: ")));
        }
        let grows = format!(r#"{{"n": [{}]}}"#, ["1e1000"; 1_000].join(","));
        assert!(matches!(check(&grows), Err(Error::PayloadTooLarge(_))));
        assert!(validate_storable("meta", &Map::from_iter([("k".into(), Value::from("v".repeat(100)))]), 50).is_err());
    }
}
