//! The names of functions, and the signatures of calls that Gemini has not made.

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Names that the provider of each format accepts; see the acceptors.
fn function_name(format: Format) -> BoxedStrategy<String> {
    let pattern = match format {
        Format::OpenAi => "[a-zA-Z0-9_-]{1,64}",
        Format::Anthropic => "[a-zA-Z0-9_-]{1,128}",
        _ => "[a-zA-Z_][a-zA-Z0-9_.:-]{0,127}",
    };
    pattern.boxed()
}

/// A user's message, a call of a function, and its result.
fn call_history(format: Format, name: &str) -> History {
    let messages = match format {
        Format::OpenAi => vec![
            json!({"role": "user", "content": "go"}),
            json!({"role": "assistant", "content": null, "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": name, "arguments": "{}"}}]}),
            json!({"role": "tool", "tool_call_id": "a", "content": "done"}),
        ],
        Format::Anthropic => vec![
            json!({"role": "user", "content": "go"}),
            json!({"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": name, "input": {}}]}),
            json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "done"}]}),
        ],
        _ => vec![
            json!({"role": "user", "parts": [{"text": "go"}]}),
            json!({"role": "model", "parts": [{"functionCall": {"id": "a", "name": name}}]}),
            json!({"role": "user", "parts": [
                {"functionResponse": {"id": "a", "name": name, "response": {"output": "done"}}}]}),
        ],
    };
    messages.into_iter().map(|message| (format, message)).collect()
}

#[test]
fn function_names_are_accepted_in_every_format() {
    for format in PROVIDERS {
        hold(&function_name(format), |name| {
            let history = call_history(format, name);
            PROVIDERS.into_iter().try_for_each(|target| check(target, &render(&history, target, &Options::default())))
        });
    }
}

#[test]
fn calls_with_placeholder_signatures_are_accepted_by_gemini_3() {
    let options = || Options { with_placeholder_signatures: true, ..Options::default() };
    hold_in_mixed_formats(|written| check_variant("gemini-3", &render(&written.history, Format::Gemini, &options())));
}
