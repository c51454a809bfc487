//! Acceptors: what the API of each provider demands of a history, which is the list of messages of a request.
//!
//! The rules come from the type definitions of the providers' Python packages (`openai` 3.57, `anthropic` 2.14, `google-genai`
//! 3.6) and from the public API references. Each rule names its source. Where two sources differ, the stricter one holds. A rule
//! that depends on the model or on other fields of the request is left out, unless its comment says otherwise.
//!
//! A history is complete: every tool call has its result. This file has no dependency on the server, so that a mistake of the
//! server is not repeated here.

use std::fmt::Display;

use serde_json::{Map, Value};

mod anthropic;
mod blocks;
mod gemini;
mod openai;
mod server_tools;
#[cfg(test)]
mod tests;

type Check = Result<(), String>;

/// Checks a history of the format `openai`, `anthropic` or `gemini`. There are two variants: `anthropic-combined` first combines
/// messages as the API does, see [`anthropic::combine_turns`]; `gemini-3` has one more rule, which only the models of this
/// generation enforce, see [`gemini::check_signatures`].
///
/// # Errors
/// Returns the path of the invalid value and the violated rule, such as `messages[2].content[0].text: must not be blank`.
pub fn check(format: &str, history: &[Value]) -> Check {
    // All three: `messages` and `contents` are required and have at least one entry.
    if history.is_empty() {
        return violation("must contain at least one message").at("messages");
    }
    match format {
        "openai" => openai::check(history),
        "anthropic" => anthropic::check(history),
        "anthropic-combined" => anthropic::check(&anthropic::combine_turns(history)),
        "gemini" => gemini::check(history),
        "gemini-3" => gemini::check(history).and_then(|()| gemini::check_signatures(history)),
        _ => Err(format!("unknown format {format}")),
    }
}

/// Returns the violation of a rule by the value itself; [`At::at`] adds its path.
fn violation<T>(rule: impl Display) -> Result<T, String> {
    Err(format!(": {rule}"))
}

trait At: Sized {
    /// Adds the key or index at which the invalid value is located to the path of an error.
    fn at(self, step: impl Display) -> Self;

    fn at_index(self, list: &str, index: usize) -> Self {
        self.at(format_args!("{list}[{index}]"))
    }
}

impl<T> At for Result<T, String> {
    fn at(self, step: impl Display) -> Self {
        self.map_err(|err| {
            let separator = if err.starts_with([':', '[']) { "" } else { "." };
            format!("{step}{separator}{err}")
        })
    }
}

/// Returns `Ok` if the condition holds, or else a violation.
fn demand(holds: bool, rule: impl Display) -> Check {
    if holds { Ok(()) } else { violation(rule) }
}

fn object(value: &Value) -> Result<&Map<String, Value>, String> {
    value.as_object().map_or_else(|| violation("must be an object"), Ok)
}

fn list(value: &Value) -> Result<&[Value], String> {
    value.as_array().map_or_else(|| violation("must be a list"), |list| Ok(list.as_slice()))
}

/// Returns the string at a key, which must not be missing.
fn string<'a>(object: &'a Map<String, Value>, key: &str) -> Result<&'a str, String> {
    match object.get(key) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => violation("must be a string").at(key),
        None => violation("is required").at(key),
    }
}

/// Returns the non-empty string at a key, which must not be missing.
fn nonempty<'a>(object: &'a Map<String, Value>, key: &str) -> Result<&'a str, String> {
    let text = string(object, key)?;
    demand(!text.is_empty(), "must not be empty").at(key)?;
    Ok(text)
}

/// Returns the type of a block, or an empty string.
fn type_of(block: &Value) -> &str {
    block.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// Checks that an object has all required fields and no unknown fields. The APIs of all three providers reject unknown fields.
/// `null` is allowed only for optional fields whose name ends with `?`, because their type is `Optional` in the package.
fn fields(object: &Map<String, Value>, required: &[&str], optional: &[&str]) -> Check {
    if let Some(missing) = required.iter().find(|key| !object.contains_key(**key)) {
        return violation("is required").at(missing);
    }
    for (key, value) in object {
        let nullable = optional.iter().any(|name| name.strip_suffix('?') == Some(key));
        let known = nullable || required.contains(&key.as_str()) || optional.contains(&key.as_str());
        demand(known, "unknown field").at(key)?;
        demand(nullable || !value.is_null(), "must not be null").at(key)?;
    }
    Ok(())
}

fn one_of(text: &str, allowed: &[&str]) -> Check {
    demand(allowed.contains(&text), format_args!("must be one of {}", allowed.join(", ")))
}

/// Checks for standard base64 with padding: RFC 4648, section 4.
fn base64(text: &str) -> Check {
    let data = text.trim_end_matches('=');
    let is_valid = text.len().is_multiple_of(4)
        && text.len() - data.len() <= 2
        && !data.is_empty()
        && data.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'));
    demand(is_valid, "must be non-empty base64")
}

/// Checks for base64 of either alphabet. In the JSON mapping of protocol buffers, "Either standard or URL-safe base64 encoding
/// with/without paddings are accepted"; `google.genai._common.encode_unserializable_types` writes the URL-safe one.
fn any_base64(text: &str) -> Check {
    let mut text = text.trim_end_matches('=').replace('-', "+").replace('_', "/");
    while !text.len().is_multiple_of(4) {
        text.push('=');
    }
    base64(&text)
}

/// Checks for a URL that a provider's server can download.
fn web_url(url: &str) -> Check {
    let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    demand(host.is_some_and(|host| !host.is_empty()), "must be an http or https URL")
}

/// Splits a `data:` URL with base64 content into its MIME type and content.
fn split_data_url(url: &str) -> Option<(&str, &str)> {
    url.strip_prefix("data:")?.split_once(";base64,")
}

/// Checks that a text consists of 1 to `max` characters that are ASCII letters, digits or contained in `others`.
fn identifier(text: &str, others: &str, max: usize) -> Check {
    let is_valid = |character: char| character.is_ascii_alphanumeric() || others.contains(character);
    demand(!text.is_empty() && text.chars().all(is_valid), format_args!("must match ^[a-zA-Z0-9{others}]+$"))?;
    demand(text.len() <= max, format_args!("must not be longer than {max} characters"))
}
