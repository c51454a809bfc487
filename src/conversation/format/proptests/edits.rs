//! Property tests: changing a stored body has the same result as editing its parts.

use super::*;
use crate::conversation::edit::{self, EditedMessage, Message};
use crate::conversation::tokens;

/// Generates one of few ids, so that results match calls.
fn call_id() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![json!("a"), json!("b"), json!(""), Value::Null, json!(7)])
}

fn or_null<S: Strategy<Value = Value> + 'static>(value: S) -> BoxedStrategy<Value> {
    prop_oneof![4 => value, 1 => Just(Value::Null)].boxed()
}

fn list(item: BoxedStrategy<Value>) -> impl Strategy<Value = Value> {
    prop::collection::vec(item, 0..4).prop_map(Value::from)
}

/// Generates messages with many calls and results, valid and invalid.
fn tool_messages(format: Format) -> BoxedStrategy<Value> {
    match format {
        Format::OpenAi => openai(),
        Format::Anthropic => list(anthropic_block(true)).prop_map(|blocks| json!({"content": blocks})).boxed(),
        Format::Gemini => list(gemini_part(true)).prop_map(|parts| json!({"parts": parts})).boxed(),
        Format::Acontext => {
            let kinds = ["tool-call", "tool-result", "tool-result", "image", "data", "text", "unheard_of"];
            let meta = (call_id(), samples::free_json(), prop::sample::select(vec!["function", "custom"]));
            let meta = meta.prop_map(|(id, args, kind)| {
                json!({"tool_call_id": id, "name": "f", "arguments": args, "type": kind, "data_type": "x"})
            });
            let part = (prop::sample::select(kinds.to_vec()), or_null(meta), samples::free_json());
            let part = part.prop_map(|(kind, meta, text)| json!({"type": kind, "text": text, "meta": meta})).boxed();
            list(part).prop_map(|parts| json!({"parts": parts})).boxed()
        }
    }
}

fn openai() -> BoxedStrategy<Value> {
    let input = or_null(samples::free_json());
    let call = (call_id(), prop::sample::select(vec!["function", "custom", "x"]), input.clone()).prop_map(
        |(id, kind, input)| {
            let inner = json!({"name": "f", "arguments": input, "input": input});
            json!({"id": id, "type": kind, kind: inner, "extra_content": {"signature": "s"}})
        },
    );
    let item = prop_oneof![
        Just(json!({"type": "text", "text": "words"})),
        Just(json!({"type": "image_url", "image_url": {"url": "u"}})),
        Just(json!({"type": "unheard_of"})),
        dialect_block(),
    ];
    let calls = list(prop_oneof![9 => call, 1 => samples::free_json()].boxed());
    let content = prop_oneof![samples::free_json(), list(item.boxed())].boxed();
    let roles = prop::sample::select(vec!["tool", "function", "assistant", "user"]);
    (roles, content, calls, or_null(input.prop_map(|input| json!({"name": "f", "arguments": input}))), call_id())
        .prop_map(|(role, content, calls, old, id)| {
            json!({"role": role, "content": content, "tool_calls": calls, "function_call": old, "name": "f",
                "tool_call_id": id})
        })
        .boxed()
}

/// Generates calls and results of the Vercel AI SDK, valid and invalid.
fn dialect_block() -> BoxedStrategy<Value> {
    let (id, free) = (call_id(), samples::free_json());
    let call = (id, free, any::<bool>()).prop_map(|(id, input, is_old)| {
        let key = if is_old { "args" } else { "input" };
        json!({"type": "tool-call", "toolCallId": id, "toolName": "f", key: input})
    });
    let item = prop_oneof![
        Just(json!({"type": "text", "text": "words"})),
        Just(json!({"type": "media", "data": "AAAA", "mediaType": "image/png"})),
        Just(json!({"type": "tool-call", "toolCallId": "a", "toolName": "f"})),
        samples::free_json(),
    ];
    let kinds = ["text", "json", "error-text", "execution-denied", "content"];
    let output = (prop::sample::select(kinds.to_vec()), prop_oneof![samples::free_json(), list(item.boxed())]);
    let output = output.prop_map(|(kind, value)| json!({"type": kind, "value": value}));
    let keys = prop::sample::select(vec!["output", "result", "experimental_content"]);
    let result = (call_id(), keys, prop_oneof![output, samples::free_json()], any::<bool>()).prop_map(
        |(id, key, value, is_error)| {
            json!({"type": "tool-result", "toolCallId": id, "toolName": "f", key: value, "isError": is_error})
        },
    );
    prop_oneof![call, result].boxed()
}

fn anthropic_block(with_results: bool) -> BoxedStrategy<Value> {
    let cache = json!({"type": "ephemeral"});
    let simple = prop_oneof![
        Just(json!({"type": "text", "text": "words"})),
        Just(json!({"type": "image", "source": {"type": "url", "url": "u"}})),
        Just(json!({"type": "unheard_of"})),
        dialect_block(),
        (call_id(), samples::free_json()).prop_map(move |(id, input)| {
            json!({"type": "tool_use", "id": id, "name": "f", "input": input, "cache_control": cache})
        }),
        samples::free_json(),
    ]
    .boxed();
    if !with_results {
        return simple;
    }
    let content = prop_oneof![samples::free_json(), list(anthropic_block(false))];
    let result = (call_id(), content).prop_map(|(id, content)| {
        json!({"type": "tool_result", "tool_use_id": id, "content": content, "cache_control": {"type": "ephemeral"}})
    });
    prop_oneof![simple, result].boxed()
}

fn gemini_part(with_calls: bool) -> BoxedStrategy<Value> {
    let media = prop_oneof![
        Just(json!({"inlineData": {"mimeType": "image/png", "data": "AAAA"}})),
        Just(json!({"text": "words"})),
    ]
    .boxed();
    if !with_calls {
        return media;
    }
    let values = (call_id(), samples::free_json(), list(gemini_part(false)));
    let flags = any::<[bool; 4]>();
    let tool_part = (values, flags).prop_map(|((id, free, parts), [has_call, has_response, is_chunk, continues])| {
        let mut part = json!({"thoughtSignature": "AAAA"});
        if has_call {
            let values = json!([{"jsonPath": "$.a", "stringValue": "x", "willContinue": continues}, free]);
            part["functionCall"] = if is_chunk {
                json!({"partialArgs": values, "willContinue": continues})
            } else {
                json!({"id": id, "name": "f", "args": free, "willContinue": continues})
            };
        }
        if has_response {
            part["functionResponse"] = json!({"id": id, "name": "f", "response": free, "parts": parts});
        }
        part
    });
    prop_oneof![media, tool_part].boxed()
}

fn any_tool_message() -> impl Strategy<Value = (Format, Value)> {
    any_format().prop_flat_map(|format| {
        let valid = sample(format).prop_map(|sample| sample.blob);
        (Just(format), prop_oneof![8 => tool_messages(format), 1 => valid, 3 => mutated(format)])
    })
}

fn strategies() -> impl Strategy<Value = String> {
    let placeholder = prop::sample::select(vec!["Done", "cut", "null", "{\"cut\":true}"]);
    (0_u8..3, 0_u8..3, placeholder, any::<[bool; 2]>()).prop_map(|(results, calls, placeholder, selected)| {
        let result = json!({"type": "remove_tool_result", "params":
            {"keep_recent_n_tool_results": results, "tool_result_placeholder": placeholder}});
        let call = json!({"type": "remove_tool_call_params", "params": {"keep_recent_n_tool_calls": calls}});
        let list = [result, call].into_iter().zip(selected).filter(|(_, is_selected)| *is_selected);
        list.map(|(strategy, _)| strategy).collect::<Value>().to_string()
    })
}

/// Applies edit strategies to a message.
fn edit_message(format: Format, body: &Value, strategies: &str) -> EditedMessage {
    let parts = to_parts(format, body.clone());
    let message = Message { role: Role::User, is_system: false, tokens: tokens::count_parts(&parts), parts };
    edit::apply(&edit::parse(strategies).unwrap(), vec![message], None).remove(0)
}

/// Returns `true` if a source of unknown type contains the key `tool_call_id`, which makes its block look like an attachment.
fn has_misleading_source(format: Format, body: &Value) -> bool {
    let blocks = body["content"].as_array().map(Vec::as_slice).unwrap_or_default();
    format == Format::Anthropic && blocks.iter().any(|block| block["source"].get("tool_call_id").is_some())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn changed_body_has_the_edited_parts((format, body) in any_tool_message(), strategies in strategies()) {
        prop_assume!(!has_misleading_source(format, &body));
        let edited = edit_message(format, &body, &strategies);
        let mut after = body.clone();
        apply_changes(format, &mut after, &edited.changes);
        prop_assert_eq!(to_parts(format, after.clone()), edited.parts.clone(), "{}", after);
        prop_assert_eq!(edited.changes.is_empty(), after == body);
    }

    #[test]
    fn changed_body_is_still_normalized((format, sample) in any_sample(), strategies in strategies()) {
        let NormalizedMessage { mut body, .. } = normalize_valid(format, sample.blob);
        let changes = edit_message(format, &body, &strategies).changes;
        apply_changes(format, &mut body, &changes);
        prop_assert_eq!(normalize_valid(format, body.clone()).body, body);
    }

    #[test]
    fn changes_with_unknown_index_do_nothing((format, mut body) in any_tool_message()) {
        let before = body.clone();
        let changes = [
            BodyChange::ReplaceResult { result_index: 99, text: "x".into() },
            BodyChange::ClearArguments { call_index: 99 },
        ];
        apply_changes(format, &mut body, &changes);
        prop_assert_eq!(body, before);
    }
}
