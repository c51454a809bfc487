use super::*;

fn repaired(target: Format, values: Value) -> Vec<Value> {
    let Value::Array(values) = values else { panic!("not a list") };
    let items = values.into_iter().enumerate().map(|(message, value)| Item { message, value });
    repair(target, items.collect()).into_iter().map(|item| item.value).collect()
}

#[test]
fn system_messages_are_where_anthropic_accepts_them() {
    let message = |role: &str| json!({"role": role, "content": "x"});
    let history = json!(["system", "user", "system", "assistant", "system", "user", "system"].map(message));
    let roles = ["user", "user", "system", "assistant", "user", "user", "system"];
    assert_eq!(repaired(Format::Anthropic, history).iter().map(role).collect::<Vec<_>>(), roles);
}

#[test]
fn interrupted_openai_calls_get_results() {
    let call = |id: &str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let user = json!({"role": "user", "content": "x"});
    let calls = json!({"role": "assistant", "tool_calls": [call("a"), call("b")]});
    let result = |id: &str, text: &str| json!({"role": "tool", "tool_call_id": id, "content": text});
    let messages = repaired(Format::OpenAi, json!([user, calls, result("b", "y"), user, result("a", "late")]));
    let late = json!({"role": "user", "content": orphan_text("late")});
    assert_eq!(messages, [user.clone(), calls, result("b", "y"), result("a", INTERRUPTED), user, late]);
}

#[test]
fn interrupted_anthropic_calls_get_results() {
    let user = json!({"role": "user", "content": "x"});
    let call = json!({"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]});
    let messages = repaired(Format::Anthropic, json!([user, call, user, {"role": "assistant", "content": "z"}]));
    assert_eq!(messages[2]["content"][0]["tool_use_id"], "a");
    assert_eq!(messages[2]["content"][1]["text"], "x");
    let messages = repaired(Format::Anthropic, json!([user, call, call]));
    assert_eq!(messages.iter().map(role).collect::<Vec<_>>(), ["user", "assistant", "user", "assistant", "user"]);
}

#[test]
fn interrupted_gemini_calls_get_results() {
    let user = json!({"role": "user", "parts": [{"text": "x"}]});
    let call = json!({"role": "model", "parts": [{"functionCall": {"name": "f"}}, {"functionCall": {"name": "g"}}]});
    let response = json!({"functionResponse": {"name": "g", "response": {}}});
    let messages = repaired(Format::Gemini, json!([user, call, {"role": "user", "parts": [response]}]));
    let interrupted = json!({"functionResponse": {"name": "f", "response": {"error": INTERRUPTED}}});
    assert_eq!(messages[2]["parts"], json!([response, interrupted]));
}

#[test]
fn orphaned_results_become_text() {
    let result = json!({"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "y"}]});
    let messages = repaired(Format::Anthropic, json!([{"role": "user", "content": [result]}]));
    assert_eq!(messages[0]["content"], json!([{"type": "text", "text": orphan_text("y")}]));
}

#[test]
fn empty_items_are_removed_and_the_first_turn_is_a_users() {
    let empty = json!({"role": "assistant", "content": []});
    let text = json!({"role": "assistant", "content": "x"});
    let start = json!({"role": "user", "content": CONVERSATION_START});
    assert_eq!(repaired(Format::Anthropic, json!([empty, text])), [start.clone(), text.clone()]);
    let system = json!({"role": "system", "content": "s"});
    assert_eq!(repaired(Format::OpenAi, json!([system, text])), [system.clone(), start, text]);
}

#[test]
fn texts_that_only_anthropic_rejects_are_kept_in_the_other_formats() {
    let blank = json!({"role": "user", "content": " "});
    let text = json!({"role": "user", "content": "x"});
    assert_eq!(repaired(Format::Anthropic, json!([blank, text])), std::slice::from_ref(&text));
    assert_eq!(repaired(Format::OpenAi, json!([blank, text])), [blank, text]);
    let blank = json!({"role": "user", "parts": [{"text": " "}]});
    assert_eq!(repaired(Format::Gemini, json!([blank])), [blank]);
}

#[test]
fn empty_texts_of_a_message_are_removed() {
    let blocks = json!([{"type": "text", "text": " "}, {"type": "text", "text": "x"}]);
    let messages = repaired(Format::Anthropic, json!([{"role": "user", "content": blocks}]));
    assert_eq!(messages[0]["content"], json!([{"type": "text", "text": "x"}]));
    let signed = json!({"text": "", "thoughtSignature": "c2ln"});
    let user = json!({"role": "user", "parts": [{"text": "x"}, {}, {"text": ""}]});
    let messages = repaired(Format::Gemini, json!([user, {"role": "model", "parts": [{"text": ""}, signed]}]));
    assert_eq!([&messages[0]["parts"], &messages[1]["parts"]], [&json!([{"text": "x"}]), &json!([signed])]);
}

#[test]
fn empty_lists_of_openai_messages_are_replaced() {
    let call = json!({"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let history = json!([
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": [], "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": []},
        {"role": "assistant", "content": "y", "tool_calls": []},
        {"role": "assistant", "tool_calls": []},
    ]);
    let expected = [
        json!({"role": "user", "content": "x"}),
        json!({"role": "assistant", "content": null, "tool_calls": [call]}),
        json!({"role": "tool", "tool_call_id": "a", "content": ""}),
        json!({"role": "assistant", "content": "y"}),
    ];
    assert_eq!(repaired(Format::OpenAi, history), expected);
}

#[test]
fn gemini_contents_of_a_user_may_have_another_role() {
    let call = json!({"role": "model", "parts": [{"functionCall": {"id": "a", "name": "f"}}]});
    let response = json!([{"functionResponse": {"id": "a", "name": "f", "response": {}}}]);
    let history = json!([{"parts": [{"text": "x"}]}, call, {"role": "function", "parts": response}]);
    let messages = repaired(Format::Gemini, history);
    assert_eq!(messages, [json!({"parts": [{"text": "x"}]}), call, json!({"role": "user", "parts": response})]);
}

#[test]
fn gemini_calls_are_joined_with_the_model_contents_before_them() {
    let user = json!({"role": "user", "parts": [{"text": "x"}]});
    let text = json!({"role": "model", "parts": [{"text": "y"}]});
    let call = json!({"role": "model", "parts": [{"functionCall": {"name": "f"}}]});
    let empty = json!({"role": "user", "parts": [{"text": ""}]});
    let messages = repaired(Format::Gemini, json!([user, text, text, empty, call]));
    assert_eq!(messages.iter().map(role).collect::<Vec<_>>(), ["user", "model", "user"]);
    assert_eq!(messages[1]["parts"], json!([text["parts"][0], text["parts"][0], call["parts"][0]]));
}

#[test]
fn gemini_responses_to_another_function_are_orphaned() {
    let user = json!({"role": "user", "parts": [{"text": "x"}]});
    let call = json!({"role": "model", "parts": [{"functionCall": {"id": "a", "name": "f"}}]});
    let response = json!({"functionResponse": {"id": "a", "name": "g", "response": {}}});
    let messages = repaired(Format::Gemini, json!([user, call, {"role": "user", "parts": [response]}]));
    assert_eq!(messages[2]["parts"][0]["functionResponse"]["name"], "f");
    assert_eq!(messages[2]["parts"][1], json!({"text": orphan_text("{}")}));
}

#[test]
fn accepted_items_are_unchanged() {
    let history = json!([
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "y"}]},
        {"role": "assistant", "content": "z"},
    ]);
    assert_eq!(Value::Array(repaired(Format::Anthropic, history.clone())), history);
}
