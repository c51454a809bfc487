//! JSON Schemas of the parameters of tools.

use serde_json::{Map, Value, json};

/// Returns the schema of an object with these properties.
pub fn object(properties: &Value, required: &[&str]) -> Value {
    json!({"type": "object", "properties": properties, "required": required})
}

/// Returns the schema of an object whose properties are required strings, given with their names and descriptions.
pub fn strings(properties: &[(&str, &str)]) -> Value {
    let required: Vec<_> = properties.iter().map(|(name, _)| *name).collect();
    let properties: Map<_, _> =
        properties.iter().map(|(name, description)| ((*name).to_owned(), string(description))).collect();
    object(&Value::Object(properties), &required)
}

pub fn string(description: &str) -> Value {
    json!({"type": "string", "description": description})
}
