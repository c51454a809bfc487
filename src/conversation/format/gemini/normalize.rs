//! Validates and normalizes messages.

use serde_json::Value;

use super::super::value::{Object, indexed_objects_mut, invalid, str_at};
use super::super::{InvalidMessage, media};
use super::is_partial_call;
use super::keys::{OBJECT_KEYS, normalize_keys, rename_keys_to_camel_case};
use crate::conversation::parts::Role;

/// Normalizes a message and returns its role, meta and body.
pub(in super::super) fn normalize(
    mut body: Object,
    new_call_id: &mut dyn FnMut() -> String,
) -> Result<(Role, Object, Object), InvalidMessage> {
    rename_keys_to_camel_case(&mut body, &["role", "parts"]);
    let role = match body.get("role").map(|role| role.as_str().unwrap_or("of another type")) {
        // Gemini's API treats a content without a role as a user's.
        None if !body.contains_key("parts") => return Err(invalid("role", "is required for a message without parts")),
        None | Some("user" | "function") => Role::User,
        Some("model") => Role::Assistant,
        Some(_) => return Err(invalid("role", "must be user, model or function")),
    };
    let mut no_parts = Vec::new();
    let parts = match body.get_mut("parts") {
        None => &mut no_parts,
        Some(Value::Array(parts)) => parts,
        Some(_) => return Err(invalid("parts", "must be a list")),
    };
    for (index, part) in parts.iter_mut().enumerate() {
        let path = format!("parts[{index}]");
        let Value::Object(part) = part else {
            return Err(invalid(path, "must be an object"));
        };
        normalize_part(part, &path)?;
        if let Some(Value::Object(call)) = part.get_mut("functionCall")
            && str_at(call, "id").is_empty()
            && !is_partial_call(call)
        {
            call.insert("id".into(), new_call_id().into());
        }
    }
    Ok((role, Object::new(), body))
}

/// Converts the keys of a part to camel case and its binary data to standard base64, and validates it.
pub(super) fn normalize_part(part: &mut Object, path: &str) -> Result<(), InvalidMessage> {
    normalize_keys(part);
    validate_field(part, "text", path, "must be a string", Value::is_string)?;
    validate_field(part, "thought", path, "must be true or false", Value::is_boolean)?;
    normalize_base64(part, "thoughtSignature", path)?;
    for (key, _) in OBJECT_KEYS {
        validate_field(part, key, path, "must be an object", Value::is_object)?;
        let Some(Value::Object(inner)) = part.get_mut(key) else { continue };
        let path = format!("{path}.{key}");
        match key {
            "functionCall" if is_partial_call(inner) => {}
            "functionCall" | "functionResponse" => normalize_function(inner, key, &path)?,
            _ => normalize_media(inner, key, &path)?,
        }
    }
    Ok(())
}

/// Validates a function call or a function response, and normalizes the media of a response.
fn normalize_function(function: &mut Object, key: &str, path: &str) -> Result<(), InvalidMessage> {
    validate_nonempty_string(function, "name", path)?;
    let is_valid_id = |id: &Value| id.as_str().is_some_and(|id| !id.contains('\0'));
    validate_field(function, "id", path, "must be a string without the character NUL", is_valid_id)?;
    let json_key = if key == "functionCall" { "args" } else { "response" };
    validate_field(function, json_key, path, "must be an object", Value::is_object)?;
    if key == "functionResponse" {
        for (index, part) in indexed_objects_mut(function.get_mut("parts")) {
            for key in ["inlineData", "fileData"] {
                let path = format!("{path}.parts[{index}]");
                validate_field(part, key, &path, "must be an object", Value::is_object)?;
                if let Some(Value::Object(media)) = part.get_mut(key) {
                    normalize_media(media, key, &format!("{path}.{key}"))?;
                }
            }
        }
    }
    Ok(())
}

/// Validates `inlineData`, whose binary data is converted to standard base64, or `fileData`. Does nothing for another key.
fn normalize_media(media: &mut Object, key: &str, path: &str) -> Result<(), InvalidMessage> {
    match key {
        "inlineData" => {
            validate_field(media, "mimeType", path, "must be a string", Value::is_string)?;
            // Missing data is rejected, like a value that is not a string.
            media.entry("data").or_insert(Value::Null);
            normalize_base64(media, "data", path)
        }
        "fileData" => {
            validate_field(media, "mimeType", path, "must be a string", Value::is_string)?;
            validate_nonempty_string(media, "fileUri", path)
        }
        _ => Ok(()),
    }
}

/// Returns an error with the reason unless the value at the key is missing or valid.
fn validate_field(
    object: &Object,
    key: &str,
    path: &str,
    reason: &str,
    is_valid: impl Fn(&Value) -> bool,
) -> Result<(), InvalidMessage> {
    if object.get(key).is_none_or(is_valid) { Ok(()) } else { Err(invalid(format!("{path}.{key}"), reason)) }
}

/// Returns an error unless the value at the key is a non-empty string without NUL.
fn validate_nonempty_string(object: &Object, key: &str, path: &str) -> Result<(), InvalidMessage> {
    let text = str_at(object, key);
    if !text.is_empty() && !text.contains('\0') {
        return Ok(());
    }
    Err(invalid(format!("{path}.{key}"), "must be a non-empty string without the character NUL"))
}

/// Converts the value at the key, if there is one, to standard base64.
fn normalize_base64(object: &mut Object, key: &str, path: &str) -> Result<(), InvalidMessage> {
    let Some(value) = object.get_mut(key) else { return Ok(()) };
    let Value::String(text) = value.take() else {
        return Err(invalid(format!("{path}.{key}"), "must be a base64 string"));
    };
    match media::to_standard_base64(text) {
        Some(base64) => *value = base64.into(),
        None => return Err(invalid(format!("{path}.{key}"), "must be valid base64")),
    }
    Ok(())
}
