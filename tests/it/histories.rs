//! Laws for all histories: a history that one provider accepts is read in the format of every other provider, which accepts it.
//!
//! The environment variable `HISTORY_CASES` sets the number of cases of each law, and `HISTORY_SEED` the seed of the first one.

use std::ops::Range;
use std::sync::Arc;

use acontextd::conversation::edit::{self, EditedMessage, Strategy as EditStrategy};
use acontextd::conversation::format::{self, Format, NormalizedMessage, RenderContext, RenderOptions};
use acontextd::conversation::history::{
    CallResolver, EarlierCalls, HistoryBody, HistoryConverter, HistoryMessage, all_ids, generate_call_id,
};
use acontextd::conversation::parts::{Part, PartKind, Role};
use acontextd::conversation::tokens;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use serde_json::Value;
use uuid::Uuid;

use self::model::{PROVIDERS, Turn, any_format, one_format, turns};
use crate::acceptors;

mod edits;
mod media;
mod model;
mod names;
mod repair;
mod served;
mod write;

/// The number of cases of each law by default.
const DEFAULT_CASES: u64 = 250;

type History = Vec<(Format, Value)>;

/// How a history is read.
#[derive(Default)]
struct Options {
    strategies: Vec<EditStrategy>,
    /// The messages of the page; `None` for all.
    page: Option<Range<usize>>,
    with_repair: bool,
    with_placeholder_signatures: bool,
}

/// Stores a history and reads it in a format, as the server does.
fn render(history: &[(Format, Value)], target: Format, options: &Options) -> Vec<Value> {
    let stored = store(history);
    let page = options.page.clone().unwrap_or(0..stored.len());
    let Options { with_repair, with_placeholder_signatures, .. } = *options;
    let render_options = RenderOptions { with_repair, with_placeholder_signatures, ..RenderOptions::default() };
    let earlier_calls = Arc::new(earlier_calls(&stored[..page.start]));
    let ctx = RenderContext { options: render_options, ..RenderContext::default() };
    let mut converter = HistoryConverter::new(target, &ctx, Arc::clone(&earlier_calls));
    let mut items = Vec::new();
    let mut to_edit = to_edit(&stored[page.clone()]);
    if target != Format::Acontext && !options.strategies.is_empty() {
        let mut resolver = CallResolver::new(earlier_calls);
        for (index, message) in to_edit.iter_mut().enumerate() {
            resolver.resolve(message_id(page.start + index), message.role, &mut message.parts);
        }
    }
    let edited = edit::apply(&options.strategies, to_edit, None);
    let mut next_index = page.start;
    for EditedMessage { index, parts, changes, .. } in edited {
        let index = page.start + index;
        let follows_gap = index != next_index;
        next_index = index + 1;
        let NormalizedMessage { format, role, meta, body } = &stored[index];
        if target == Format::Acontext {
            items.extend(format::from_parts(target, *role, meta, parts, &ctx));
            continue;
        }
        let body = if *format == target {
            let mut body = body.clone();
            format::apply_changes(target, &mut body, &changes);
            HistoryBody::Own(body)
        } else {
            HistoryBody::Parts(parts)
        };
        let message = HistoryMessage { id: message_id(index), role: *role, meta, body, follows_gap };
        items.extend(converter.push(message).into_iter().map(|item| item.value));
    }
    items.extend(converter.finish().into_iter().map(|item| item.value));
    items
}

fn message_id(index: usize) -> Uuid {
    Uuid::from_u128(u128::try_from(index).unwrap())
}

fn string_at(part: &Part, key: &str) -> String {
    part.meta.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Returns the ids and names of the calls in stored messages. A call without an id has a generated one.
fn calls(index: usize, message: &NormalizedMessage) -> Vec<(String, String)> {
    let parts = format::to_parts(message.format, message.body.clone());
    let calls = parts.iter().filter(|part| part.kind == PartKind::ToolCall && message.role == Role::Assistant);
    let call = |(number, call)| {
        let id = Some(string_at(call, "id")).filter(|id| !id.is_empty());
        (id.unwrap_or_else(|| generate_call_id(message_id(index), number)), string_at(call, "name"))
    };
    calls.enumerate().map(call).collect()
}

fn earlier_calls(stored: &[NormalizedMessage]) -> EarlierCalls {
    let mut earlier = EarlierCalls::default();
    for (index, message) in stored.iter().enumerate() {
        for (id, name) in calls(index, message) {
            earlier.add(id, name);
        }
    }
    earlier
}

fn to_edit(stored: &[NormalizedMessage]) -> Vec<edit::Message> {
    let to_message = |message: &NormalizedMessage| {
        let parts = format::to_parts(message.format, message.body.clone());
        edit::Message {
            role: message.role,
            is_system: message.meta.contains_key("original_role"),
            tokens: tokens::count_parts(&parts),
            parts,
        }
    };
    stored.iter().map(to_message).collect()
}

/// Normalizes the messages of a history, and gives function responses without an id the id of the first unanswered call with their
/// name.
fn store(history: &[(Format, Value)]) -> Vec<NormalizedMessage> {
    let mut open = Vec::new();
    let mut new_ids = 0;
    let normalized = history.iter().enumerate().map(|(index, (format, message))| {
        let mut new_call_id = || {
            new_ids += 1;
            format!("new_{new_ids}")
        };
        let mut message = format::normalize(*format, message.clone(), &mut new_call_id)
            .unwrap_or_else(|err| panic!("{err:?}: {message}"));
        open.extend(calls(index, &message));
        for part in format::to_parts(*format, message.body.clone()) {
            let answered = string_at(&part, "tool_call_id");
            open.retain(|(id, _)| part.kind != PartKind::ToolResult || !all_ids(id).any(|id| id == answered));
        }
        for response in message.function_responses().iter().filter(|response| response.id.is_none()) {
            if let Some((id, _)) = open.iter().find(|(_, name)| *name == response.name).cloned() {
                message.set_response_id(response.part_index, &id);
                open.retain(|(open, _)| *open != id);
            }
        }
        message
    });
    normalized.collect()
}

/// A history, and the numbers of messages after which a turn or a step ends.
#[derive(Debug)]
struct Written {
    history: History,
    boundaries: Vec<usize>,
}

/// Writes the messages of a conversation. A client that returns a result in another format than that of the call names the id that
/// it has read.
fn write(turns: &[Turn]) -> Written {
    let mut written = Written { history: Vec::new(), boundaries: Vec::new() };
    for turn in turns {
        let history = &mut written.history;
        let system = turn.system.as_ref().filter(|_| turn.format == Format::OpenAi);
        history.extend(system.map(|text| (Format::OpenAi, write::system_message(text))));
        history.push((turn.format, write::user_message(turn.format, &turn.user)));
        written.boundaries.push(history.len());
        for step in &turn.steps {
            history.extend(write::call_messages(step).into_iter().map(|message| (step.format, message)));
            write_results(step, history);
            written.boundaries.push(history.len());
        }
        for answer in &turn.answers {
            history.push((answer.format, write::answer_message(answer)));
            written.boundaries.push(history.len());
        }
    }
    written
}

fn write_results(step: &model::Step, history: &mut History) {
    let before = history.clone();
    let mut calls: Vec<_> = step.calls.iter().enumerate().collect();
    // Results without ids are in the order of the calls.
    if step.is_reversed && step.calls.iter().all(|call| write::call_id(step.format, call).is_some()) {
        calls.reverse();
    }
    // Results of one format that follow each other may be in one message.
    for group in calls.chunk_by(|(_, one), (_, next)| one.result_format == next.result_format) {
        let format = group[0].1.result_format;
        let read_ids = if format == step.format { Vec::new() } else { read_call_ids(&before, format, calls.len()) };
        let id = |index: usize, call| read_ids.get(index).cloned().or_else(|| write::call_id(step.format, call));
        let results: Vec<_> = group.iter().map(|(index, call)| (*call, id(*index, call))).collect();
        let messages = write::result_messages(format, &results, step.has_split_results);
        history.extend(messages.into_iter().map(|message| (format, message)));
    }
}

/// Returns the ids of the last calls of a history as a client reads them.
fn read_call_ids(history: &[(Format, Value)], format: Format, count: usize) -> Vec<String> {
    let items = render(history, format, &Options::default());
    let mut ids = Vec::new();
    for item in &items {
        let list = |key: &str| item[key].as_array().cloned().unwrap_or_default().into_iter();
        let calls = list("tool_calls")
            .chain(list("content").filter(|block| block["type"] == "tool_use"))
            .chain(list("parts").filter_map(|part| part.get("functionCall").cloned()));
        ids.extend(calls.filter_map(|call| call["id"].as_str().map(str::to_owned)));
    }
    ids.split_off(ids.len().saturating_sub(count))
}

fn check(format: Format, items: &[Value]) -> Result<(), TestCaseError> {
    check_variant(format.as_str(), items)
}

fn check_variant(format: &str, items: &[Value]) -> Result<(), TestCaseError> {
    acceptors::check(format, items).map_err(|error| {
        let items: Vec<_> = items.iter().map(Value::to_string).collect();
        TestCaseError::fail(format!("{format}: {error}\n{}", items.join("\n")))
    })
}

/// Checks items that may contain messages in their own format, which are not joined. Anthropic's API joins them itself.
fn check_stored(format: Format, items: &[Value]) -> Result<(), TestCaseError> {
    if format == Format::Anthropic { check_variant("anthropic-combined", items) } else { check(format, items) }
}

/// Returns the seeds of a law's inputs. The number of cases is divided by `cost`.
fn seeds(cost: u64) -> Range<u64> {
    #[expect(clippy::disallowed_methods, reason = "the test has no configuration")]
    let variable = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let cases = variable("HISTORY_CASES").unwrap_or(DEFAULT_CASES).div_ceil(cost);
    let first = variable("HISTORY_SEED").unwrap_or_else(|| Uuid::new_v4().as_u64_pair().0 >> 16);
    first..first + cases
}

fn new_runner(seed: u64) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases: 1, failure_persistence: None, max_shrink_iters: 2_000, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

/// Checks a law with many random inputs. A failure names the seed of the input.
fn hold<T: std::fmt::Debug>(inputs: &BoxedStrategy<T>, law: impl Fn(&T) -> Result<(), TestCaseError>) {
    for seed in seeds(1) {
        if let Err(error) = new_runner(seed).run(inputs, |input| law(&input)) {
            panic!("HISTORY_SEED={seed} HISTORY_CASES=1 repeats this: {error}");
        }
    }
}

/// Checks a law with histories of each format.
fn hold_in_each_format(law: impl Fn(Format, &Written) -> Result<(), TestCaseError>) {
    for format in PROVIDERS {
        hold(&turns(&one_format(format), true), |turns| law(format, &write(turns)));
    }
}

/// Checks a law with histories whose messages have different formats.
fn hold_in_mixed_formats(law: impl Fn(&Written) -> Result<(), TestCaseError>) {
    hold(&turns(&any_format(), true), |turns| law(&write(turns)));
}

#[test]
fn generated_histories_are_accepted_by_their_provider() {
    hold_in_each_format(|format, written| check_stored(format, &messages(&written.history)));
}

fn messages(history: &[(Format, Value)]) -> Vec<Value> {
    history.iter().map(|(_, message)| message.clone()).collect()
}

#[test]
fn a_history_is_accepted_in_every_other_format() {
    hold_in_each_format(|format, written| {
        let others = PROVIDERS.into_iter().filter(|target| *target != format);
        others.into_iter().try_for_each(|target| check(target, &render(&written.history, target, &Options::default())))
    });
}

#[test]
fn a_history_that_changes_its_format_is_accepted_in_every_format() {
    hold_in_mixed_formats(|written| {
        let check_target = |target| check_stored(target, &render(&written.history, target, &Options::default()));
        PROVIDERS.into_iter().try_for_each(check_target)
    });
}

#[test]
fn a_history_is_read_as_it_was_stored() {
    hold_in_each_format(|format, written| {
        let mut items = render(&written.history, format, &Options::default());
        let sent = messages(&written.history);
        items.iter_mut().zip(&sent).for_each(|(item, sent)| remove_new_ids(item, sent));
        prop_assert_eq!(items, sent);
        Ok(())
    });
}

/// Removes the ids of Gemini calls that the client has not sent.
fn remove_new_ids(item: &mut Value, sent: &Value) {
    let Some(Value::Array(parts)) = item.get_mut("parts") else { return };
    for (part, sent) in parts.iter_mut().zip(sent["parts"].as_array().into_iter().flatten()) {
        for key in ["functionCall", "functionResponse"] {
            if let Some(Value::Object(inner)) = part.get_mut(key)
                && sent[key].get("id").is_none()
            {
                inner.remove("id");
            }
        }
    }
}

#[test]
fn items_do_not_depend_on_the_page() {
    hold_in_mixed_formats(|written| {
        let Written { history, boundaries } = written;
        for target in PROVIDERS.into_iter().chain([Format::Acontext]) {
            let all = render(history, target, &Options::default());
            for boundary in boundaries {
                let page = |page| Options { page: Some(page), ..Options::default() };
                let mut items = render(history, target, &page(0..*boundary));
                items.extend(render(history, target, &page(*boundary..history.len())));
                prop_assert_eq!(&items, &all, "{} cut at {}", target.as_str(), boundary);
            }
        }
        Ok(())
    });
}

#[test]
fn what_is_written_can_be_stored_and_says_the_same() {
    hold_in_mixed_formats(|written| {
        for target in PROVIDERS.into_iter().chain([Format::Acontext]) {
            let items = render(&written.history, target, &Options::default());
            let mut again = Vec::new();
            for item in &items {
                if let Err(err) = format::normalize(target, item.clone(), &mut || "new".into()) {
                    return Err(TestCaseError::fail(format!("{}: {err:?}: {item}", target.as_str())));
                }
                again.push((target, item.clone()));
            }
            prop_assert_eq!(&render(&again, target, &Options::default()), &items, "{}", target.as_str());
            for other in PROVIDERS {
                check_stored(other, &render(&again, other, &Options::default()))?;
            }
        }
        Ok(())
    });
}

#[test]
fn repeated_ids_are_accepted_in_every_other_format() {
    let conversations = turns(&one_format(Format::OpenAi), false);
    let repeated = conversations.prop_map(|mut turns| {
        // Some servers number the calls of each response.
        for step in turns.iter_mut().flat_map(|turn| &mut turn.steps) {
            step.calls.iter_mut().enumerate().for_each(|(index, call)| call.index = index);
        }
        turns
    });
    hold(&repeated.boxed(), |turns| {
        let written = write(turns);
        check(Format::OpenAi, &messages(&written.history))?;
        let targets = [Format::Anthropic, Format::Gemini];
        targets.into_iter().try_for_each(|target| check(target, &render(&written.history, target, &Options::default())))
    });
}
