use serde_json::json;

use super::*;
use crate::conversation::format::{NormalizedMessage, normalize};

/// Converts messages that are stored in these formats.
fn convert_with(messages: &[(Format, Value)], target: Format, ctx: &RenderContext) -> Vec<Item> {
    convert_page(messages, target, ctx, EarlierCalls::default())
}

/// Converts messages that follow the given calls.
fn convert_page(
    messages: &[(Format, Value)],
    target: Format,
    ctx: &RenderContext,
    earlier_calls: EarlierCalls,
) -> Vec<Item> {
    let mut converter = HistoryConverter::new(target, ctx, Arc::new(earlier_calls));
    let mut items = Vec::new();
    for (index, (format, blob)) in messages.iter().enumerate() {
        let mut call_count = 0;
        let mut new_call_id = || {
            call_count += 1;
            format!("call_{index}_{call_count}")
        };
        let NormalizedMessage { role, meta, body, .. } = normalize(*format, blob.clone(), &mut new_call_id).unwrap();
        let body = if *format == target {
            HistoryBody::Own(body)
        } else {
            HistoryBody::Parts(format::to_parts(*format, body))
        };
        let id = Uuid::from_u128(index as u128);
        items.extend(converter.push(HistoryMessage { id, role, meta: &meta, body, follows_gap: false }));
    }
    items.extend(converter.finish());
    items
}

fn convert(messages: &[(Format, Value)], target: Format) -> Vec<Value> {
    convert_with(messages, target, &RenderContext::default()).into_iter().map(|item| item.value).collect()
}

fn openai(messages: &[Value]) -> Vec<(Format, Value)> {
    messages.iter().map(|message| (Format::OpenAi, message.clone())).collect()
}

fn anthropic(messages: &[Value]) -> Vec<(Format, Value)> {
    messages.iter().map(|message| (Format::Anthropic, message.clone())).collect()
}

fn parallel_calls() -> Vec<Value> {
    let call = |id: &str| json!({"id": id, "type": "function", "function": {"name": "look", "arguments": "{}"}});
    let result = |id: &str| json!({"role": "tool", "tool_call_id": id, "content": format!("result {id}")});
    vec![
        json!({"role": "user", "content": "look"}),
        json!({"role": "assistant", "tool_calls": [call("a"), call("b"), call("c")]}),
        result("a"),
        result("b"),
        result("c"),
        json!({"role": "assistant", "content": "done"}),
    ]
}

#[test]
fn parallel_results_become_one_turn() {
    let messages = convert(&openai(&parallel_calls()), Format::Anthropic);
    assert_eq!(messages.len(), 4, "{messages:?}");
    let ids: Vec<_> = messages[2]["content"].as_array().unwrap().iter().map(|block| &block["tool_use_id"]).collect();
    assert_eq!(ids, ["a", "b", "c"]);
    let messages = convert(&openai(&parallel_calls()), Format::Gemini);
    assert_eq!(messages.len(), 4, "{messages:?}");
    let names: Vec<_> =
        messages[2]["parts"].as_array().unwrap().iter().map(|part| &part["functionResponse"]["name"]).collect();
    assert_eq!(names, ["look", "look", "look"]);
}

#[test]
fn a_joined_item_names_its_last_message() {
    let items = convert_with(&openai(&parallel_calls()), Format::Anthropic, &RenderContext::default());
    assert_eq!(items.iter().map(|item| item.message).collect::<Vec<_>>(), [0, 1, 4, 5]);
}

#[test]
fn a_turn_that_is_stored_block_by_block_becomes_one_openai_message() {
    let call = |id: &str| {
        let block = json!({"type": "tool_use", "id": id, "name": "look", "input": {}});
        json!({"role": "assistant", "content": [block]})
    };
    let result = |id: &str| {
        let block = json!({"type": "tool_result", "tool_use_id": id, "content": "x"});
        json!({"role": "user", "content": [block]})
    };
    let user = json!({"role": "user", "content": "look"});
    let messages = convert(&anthropic(&[user, call("a"), call("b"), result("a"), result("b")]), Format::OpenAi);
    let roles: Vec<_> = messages.iter().map(|message| message["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["user", "assistant", "tool", "tool"]);
    assert_eq!(messages[1]["tool_calls"].as_array().unwrap().len(), 2);
}

#[test]
fn texts_of_one_role_are_never_joined() {
    let user = json!({"role": "user", "content": "look"});
    let assistant = json!({"role": "assistant", "content": "yes"});
    let history = openai(&[user.clone(), user, assistant.clone(), assistant]);
    assert_eq!(convert(&history, Format::Anthropic).len(), 4);
    assert_eq!(convert(&history, Format::Gemini).len(), 4);
}

#[test]
fn turns_in_their_own_format_are_returned_as_they_are_stored() {
    let history = parallel_calls();
    assert_eq!(convert(&openai(&history), Format::OpenAi), history);
}

#[test]
fn a_turn_in_two_formats_is_joined() {
    let history = parallel_calls();
    let result = |id: &str| json!({"type": "tool_result", "tool_use_id": id, "content": "x"});
    let mut mixed = openai(&history[..4]);
    mixed.extend(anthropic(&[json!({"role": "user", "content": [result("c")]})]));
    let messages = convert(&mixed, Format::Anthropic);
    assert_eq!(messages.len(), 3, "{messages:?}");
    assert_eq!(messages[2]["content"].as_array().unwrap().len(), 3);
}

#[test]
fn results_precede_texts_of_the_same_turn() {
    let mut history = parallel_calls();
    history.insert(3, json!({"role": "user", "content": "wait"}));
    let messages = convert(&openai(&history), Format::Anthropic);
    let kinds: Vec<_> =
        messages[2]["content"].as_array().unwrap().iter().map(|block| block["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["tool_result", "tool_result", "tool_result", "text"]);
}

#[test]
fn the_name_of_a_call_on_an_earlier_page_is_used() {
    let earlier_calls = [("a", "look")].into_iter().collect();
    let history = openai(&parallel_calls()[2..3]);
    let items = convert_page(&history, Format::Gemini, &RenderContext::default(), earlier_calls);
    assert_eq!(items[0].value["parts"][0]["functionResponse"]["name"], "look");
}
