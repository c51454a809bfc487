//! This file has the rules with which providers validate a request. The rules for the messages are those of the acceptors.

use serde_json::{Map, Value};

use super::Wire;
use super::wire::list;
use crate::acceptors;

/// The fields of reasoning, which only some servers accept: those that have sent them.
const REASONING_FIELDS: [&str; 3] = ["reasoning_content", "reasoning", "reasoning_details"];

/// Checks a request.
///
/// # Errors
/// Returns the violated rule.
pub(super) fn check_request(wire: Wire, body: &Value) -> Result<(), String> {
    require(body.is_object(), "the body must be a JSON object")?;
    require(body["model"].as_str().is_some_and(|name| !name.is_empty()), "model is required")?;
    let limit = [&body["max_tokens"], &body["max_completion_tokens"]].into_iter().find(|limit| !limit.is_null());
    require(limit.is_some_and(|limit| limit.as_u64().is_some_and(|limit| limit > 0)), "max_tokens is required")?;
    let has_tools = !list(&body["tools"]).is_empty();
    require(body.get("tools").is_none() || has_tools, "tools must not be empty")?;
    require(body.get("tool_choice").is_none() || has_tools, "tool_choice requires tools")?;
    let schema_path = match wire {
        Wire::OpenAi => "/function/parameters",
        Wire::Anthropic => "/input_schema",
    };
    for tool in list(&body["tools"]) {
        let is_strict = tool.pointer("/function/strict").or(tool.get("strict")) == Some(&Value::Bool(true));
        let schema = tool.pointer(schema_path).unwrap_or(&Value::Null);
        check_schema(schema, is_strict).map_err(|rule| format!("tool {tool}: {rule}"))?;
    }
    match wire {
        Wire::OpenAi => check_openai(list(&body["messages"])),
        Wire::Anthropic => check_anthropic(body),
    }
}

fn check_openai(messages: &[Value]) -> Result<(), String> {
    let mut messages = messages.to_vec();
    for message in messages.iter_mut().filter_map(Value::as_object_mut) {
        let null = message.iter().find(|(_, value)| value.is_null());
        require(null.is_none(), "a message must not contain null")?;
        message.retain(|name, _| !REASONING_FIELDS.contains(&name.as_str()));
    }
    // Mistral: "Unexpected role 'user' after role 'tool'".
    let has_user_after_tool = messages.windows(2).any(|pair| pair[0]["role"] == "tool" && pair[1]["role"] == "user");
    require(!has_user_after_tool, "a user message must not follow a tool message directly")?;
    acceptors::check("openai", &messages)
}

fn check_anthropic(body: &Value) -> Result<(), String> {
    let messages = list(&body["messages"]);
    let has_system = messages.iter().any(|message| message["role"] == "system");
    require(!has_system, "the instructions must be in the field system")?;
    require(
        messages.first().is_some_and(|message| message["role"] == "user"),
        "the first message must be that of a user",
    )?;
    let breakpoints = body.to_string().matches(r#""cache_control":{"#).count();
    require(breakpoints <= 4, "there must not be more than 4 blocks with cache_control")?;
    acceptors::check("anthropic", messages)?;
    // The API combines such messages, but servers that convert to other APIs may not.
    let has_equal_roles = messages.windows(2).any(|pair| pair[0]["role"] == pair[1]["role"]);
    require(!has_equal_roles, "the roles of consecutive messages must differ")
}

/// Checks the schema of the arguments of a tool, and the schemas of objects in it.
fn check_schema(schema: &Value, is_strict: bool) -> Result<(), String> {
    require(schema["type"] == "object", "the type of the schema must be object")?;
    let none = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&none);
    require(schema.get("properties").is_none_or(Value::is_object), "properties must be an object")?;
    let required = list(&schema["required"]);
    for name in required {
        let is_property = name.as_str().is_some_and(|name| properties.contains_key(name));
        require(is_property, &format!("{name} is required, but not a property"))?;
    }
    let optional = properties.keys().find(|name| !required.iter().any(|required| required == name.as_str()));
    require(!is_strict || optional.is_none(), "a strict schema must not have optional properties")?;
    require(!schema.to_string().contains("$ref"), "$ref is not supported")?;
    let objects = properties.values().flat_map(|property| [property, &property["items"]]);
    objects.filter(|schema| schema["type"] == "object").try_for_each(|schema| check_schema(schema, is_strict))
}

fn require(holds: bool, rule: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(rule.to_owned()) }
}
