//! The arguments of tool calls.

use serde::de::{DeserializeOwned, Error as _, Unexpected};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::json;
use crate::llm::Tool;

/// The maximum length of the reason in an error, in characters. The reason may quote arguments of any length.
const MAX_REASON_CHARS: usize = 300;

/// Parses the arguments of a call as a JSON object. No arguments, as some models send for a tool without parameters, are an empty
/// object.
///
/// # Errors
/// Returns the reason in the form `are …`, for a sentence about the arguments.
pub(super) fn parse_object(arguments: &str) -> Result<Map<String, Value>, String> {
    if matches!(arguments.trim(), "" | "null") {
        return Ok(Map::new());
    }
    match json::parse(arguments.as_bytes()) {
        Ok(Value::Object(arguments)) => Ok(arguments),
        Ok(_) => Err("are JSON, but not an object".into()),
        Err(err) => Err(shorten(&format!("are not valid JSON: {err}"))),
    }
}

/// Parses the arguments of a call of `tool` as a type with the tool's parameters. Unknown arguments are ignored.
///
/// # Errors
/// Returns a text for the model that names the argument, what is wrong with it, and the expected arguments.
pub(super) fn parse_arguments<T: DeserializeOwned>(tool: &Tool, arguments: Map<String, Value>) -> Result<T, String> {
    serde_path_to_error::deserialize(Value::Object(arguments)).map_err(|err| {
        let reason = shorten(&err.inner().to_string());
        let path = err.path().to_string();
        let subject = if path == "." { "The arguments are".into() } else { format!("The argument `{path}` is") };
        format!("{subject} not valid: {reason}. {}", expected_arguments(tool))
    })
}

/// Describes the parameters of a tool, such as `Expected: {"task_order": integer, "progress": string (optional)}.`.
pub(super) fn expected_arguments(tool: &Tool) -> String {
    let required: Vec<_> = tool.parameters["required"].as_array().into_iter().flatten().collect();
    let properties = tool.parameters["properties"].as_object().into_iter().flatten();
    let parameters = properties.map(|(name, schema)| {
        let optional = if required.iter().any(|required| *required == name) { "" } else { " (optional)" };
        format!("\"{name}\": {}{optional}", type_name(schema))
    });
    format!("Expected: {{{}}}.", parameters.collect::<Vec<_>>().join(", "))
}

fn type_name(schema: &Value) -> String {
    match (schema["type"].as_str(), schema["enum"].as_array()) {
        (_, Some(values)) => values.iter().map(Value::to_string).collect::<Vec<_>>().join(" | "),
        (Some("array"), _) => match schema["maxItems"].as_u64() {
            Some(length) => format!("[{length} x {}]", type_name(&schema["items"])),
            None => format!("[{}, ...]", type_name(&schema["items"])),
        },
        (name, _) => name.unwrap_or("value").into(),
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(MAX_REASON_CHARS).collect()
}

/// An integer argument. As in JSON Schema, `1.0` is an integer. A value that an `i64` cannot represent becomes the nearest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Integer(pub i64);

impl<'de> Deserialize<'de> for Integer {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(input)?;
        let unexpected = match &value {
            Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(integer), _) => return Ok(Self(integer)),
                (None, Some(float)) if float.fract() == 0.0 => return Ok(Self(saturate(float))),
                (None, float) => Unexpected::Float(float.unwrap_or(f64::NAN)),
            },
            Value::Null => Unexpected::Other("null"),
            Value::Bool(value) => Unexpected::Bool(*value),
            Value::String(text) => Unexpected::Str(text),
            Value::Array(_) => Unexpected::Seq,
            Value::Object(_) => Unexpected::Map,
        };
        Err(D::Error::invalid_type(unexpected, &"an integer"))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the cast saturates")]
fn saturate(float: f64) -> i64 {
    float as i64
}
