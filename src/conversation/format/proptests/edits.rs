//! A change in a stored body is the same change in its parts.

use super::*;
use crate::conversation::edit::{self, Edited, Message};
use crate::conversation::tokens;

/// Few, so that they meet.
fn id() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![json!("a"), json!("b"), json!(""), Value::Null, json!(7)])
}

fn maybe<S: Strategy<Value = Value> + 'static>(value: S) -> BoxedStrategy<Value> {
    prop_oneof![4 => value, 1 => Just(Value::Null)].boxed()
}

fn list(of: BoxedStrategy<Value>) -> impl Strategy<Value = Value> {
    prop::collection::vec(of, 0..4).prop_map(Value::from)
}

/// Messages full of calls and results, as they should be and as they should not.
fn tools(format: Format) -> BoxedStrategy<Value> {
    match format {
        Format::OpenAi => openai(),
        Format::Anthropic => list(anthropic_block(true)).prop_map(|blocks| json!({"content": blocks})).boxed(),
        Format::Gemini => list(gemini_part(true)).prop_map(|parts| json!({"parts": parts})).boxed(),
        Format::Acontext => {
            let kinds = ["tool-call", "tool-result", "tool-result", "image", "data", "text", "unheard_of"];
            let meta = (id(), samples::free_json(), prop::sample::select(vec!["function", "custom"]));
            let meta = meta.prop_map(|(id, args, kind)| {
                json!({"tool_call_id": id, "name": "f", "arguments": args, "type": kind, "data_type": "x"})
            });
            let part = (prop::sample::select(kinds.to_vec()), maybe(meta), samples::free_json());
            let part = part.prop_map(|(kind, meta, text)| json!({"type": kind, "text": text, "meta": meta})).boxed();
            list(part).prop_map(|parts| json!({"parts": parts})).boxed()
        }
    }
}

fn openai() -> BoxedStrategy<Value> {
    let input = maybe(samples::free_json());
    let call =
        (id(), prop::sample::select(vec!["function", "custom", "x"]), input.clone()).prop_map(|(id, kind, input)| {
            let called = json!({"name": "f", "arguments": input, "input": input});
            json!({"id": id, "type": kind, kind: called, "extra_content": {"signature": "s"}})
        });
    let item = prop_oneof![
        Just(json!({"type": "text", "text": "words"})),
        Just(json!({"type": "image_url", "image_url": {"url": "u"}})),
        Just(json!({"type": "unheard_of"})),
    ];
    let calls = list(prop_oneof![9 => call, 1 => samples::free_json()].boxed());
    let content = prop_oneof![samples::free_json(), list(item.boxed())].boxed();
    let roles = prop::sample::select(vec!["tool", "function", "assistant", "user"]);
    (roles, content, calls, maybe(input.prop_map(|input| json!({"name": "f", "arguments": input}))), id())
        .prop_map(|(role, content, calls, old, id)| {
            json!({"role": role, "content": content, "tool_calls": calls, "function_call": old, "name": "f",
                "tool_call_id": id})
        })
        .boxed()
}

fn anthropic_block(results: bool) -> BoxedStrategy<Value> {
    let cache = json!({"type": "ephemeral"});
    let simple = prop_oneof![
        Just(json!({"type": "text", "text": "words"})),
        Just(json!({"type": "image", "source": {"type": "url", "url": "u"}})),
        Just(json!({"type": "unheard_of"})),
        (id(), samples::free_json()).prop_map(move |(id, input)| {
            json!({"type": "tool_use", "id": id, "name": "f", "input": input, "cache_control": cache})
        }),
        samples::free_json(),
    ]
    .boxed();
    if !results {
        return simple;
    }
    let content = prop_oneof![samples::free_json(), list(anthropic_block(false))];
    let result = (id(), content).prop_map(|(id, content)| {
        json!({"type": "tool_result", "tool_use_id": id, "content": content, "cache_control": {"type": "ephemeral"}})
    });
    prop_oneof![simple, result].boxed()
}

fn gemini_part(calls: bool) -> BoxedStrategy<Value> {
    let media = prop_oneof![
        Just(json!({"inlineData": {"mimeType": "image/png", "data": "AAAA"}})),
        Just(json!({"text": "words"})),
    ]
    .boxed();
    if !calls {
        return media;
    }
    let inside = (id(), samples::free_json(), list(gemini_part(false)));
    let whole = (inside, any::<[bool; 2]>()).prop_map(|((id, free, parts), [call, answer])| {
        let mut part = json!({"thoughtSignature": "AAAA"});
        if call {
            part["functionCall"] = json!({"id": id, "name": "f", "args": free});
        }
        if answer {
            part["functionResponse"] = json!({"id": id, "name": "f", "response": free, "parts": parts});
        }
        part
    });
    prop_oneof![media, whole].boxed()
}

fn any_tools() -> impl Strategy<Value = (Format, Value)> {
    any_format().prop_flat_map(|format| {
        let sent = sample(format).prop_map(|sample| sample.blob);
        (Just(format), prop_oneof![8 => tools(format), 1 => sent, 3 => mutated(format)])
    })
}

fn strategies() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec!["Done", "cut", "null", "{\"cut\":true}"]);
    (0_u8..3, 0_u8..3, word, any::<[bool; 2]>()).prop_map(|(results, calls, word, wanted)| {
        let result = json!({"type": "remove_tool_result", "params":
            {"keep_recent_n_tool_results": results, "tool_result_placeholder": word}});
        let call = json!({"type": "remove_tool_call_params", "params": {"keep_recent_n_tool_calls": calls}});
        let list = [result, call].into_iter().zip(wanted).filter_map(|(strategy, wanted)| wanted.then_some(strategy));
        list.collect::<Value>().to_string()
    })
}

/// A message edited alone.
fn edited(format: Format, body: &Value, strategies: &str) -> Edited {
    let parts = parts(format, body.clone());
    let message = Message { tokens: tokens::of_parts(&parts), parts };
    edit::apply(&edit::parse(strategies).unwrap(), vec![message], None).remove(0)
}

/// The parts of an edited message, with changed results as Gemini must say them.
fn as_stored(format: Format, edited: &Edited) -> Vec<Part> {
    let mut parts = edited.parts.clone();
    let mut results: Vec<_> = parts.iter_mut().filter(|part| part.kind == Kind::ToolResult).collect();
    for change in edited.changes.iter().filter(|_| format == Format::Gemini) {
        if let Change::Result { nth, text } = change {
            results[*nth].text = match text.as_str() {
                "null" | "{\"cut\":true}" => text.clone(),
                text => json!({"output": text}).to_string(),
            };
        }
    }
    parts
}

/// A source that nobody knows may hold anything, even the id of a call that it has nothing to do with.
fn is_misleading(format: Format, body: &Value) -> bool {
    let blocks = body["content"].as_array().map(Vec::as_slice).unwrap_or_default();
    format == Format::Anthropic && blocks.iter().any(|block| block["source"].get("tool_call_id").is_some())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn an_edited_body_has_the_edited_parts((format, body) in any_tools(), strategies in strategies()) {
        prop_assume!(!is_misleading(format, &body));
        let edited = edited(format, &body, &strategies);
        let mut after = body.clone();
        super::super::edit(format, &mut after, &edited.changes);
        prop_assert_eq!(parts(format, after.clone()), as_stored(format, &edited), "{}", after);
        prop_assert_eq!(edited.changes.is_empty(), after == body);
        // Written from its parts it says the same.
        if format == Format::Gemini {
            let written = |parts| write(format, Role::User, &Map::new(), parts, &RenderContext::default());
            prop_assert_eq!(written(parts(format, after)), written(edited.parts));
        }
    }

    #[test]
    fn an_edited_message_is_still_one((format, sample) in any_sample(), strategies in strategies()) {
        let NormalizedMessage { mut body, .. } = accepted(format, sample.blob);
        let changes = edited(format, &body, &strategies).changes;
        super::super::edit(format, &mut body, &changes);
        prop_assert_eq!(accepted(format, body.clone()).body, body);
    }

    #[test]
    fn changes_of_what_is_not_there_change_nothing((format, mut body) in any_tools()) {
        let before = body.clone();
        let changes = [Change::Result { nth: 99, text: "x".into() }, Change::Arguments { nth: 99 }];
        super::super::edit(format, &mut body, &changes);
        prop_assert_eq!(body, before);
    }
}
