//! Random conversations. They are independent of the formats: `write` writes each message in the format that the model names.

use std::ops::Range;

use acontextd::conversation::format::Format;
use proptest::prelude::*;
use serde_json::Value;

pub const PROVIDERS: [Format; 3] = [Format::OpenAi, Format::Anthropic, Format::Gemini];

/// A part of a user message or of a tool result.
#[derive(Clone, Debug)]
pub enum Item {
    Text(String),
    /// Only spaces, which Anthropic rejects. There, it is a text.
    Blank,
    Image,
    ImageUrl,
    Pdf,
    /// A kind of media that only this format has.
    Special(u8),
}

#[derive(Clone, Debug)]
pub struct Thought {
    pub text: String,
    pub is_signed: bool,
    /// In Anthropic, the text of the thought is encrypted.
    pub is_redacted: bool,
}

#[derive(Clone, Debug)]
pub struct Call {
    pub name: String,
    /// A JSON object.
    pub args: Value,
    pub id_style: u8,
    /// The index of the call in its history, for a unique id.
    pub index: usize,
    pub is_signed: bool,
    pub result: Vec<Item>,
    pub result_format: Format,
    pub has_failed: bool,
}

/// A message of the assistant with calls, and their results.
#[derive(Clone, Debug)]
pub struct Step {
    pub format: Format,
    pub thought: Option<Thought>,
    pub text: Option<String>,
    pub calls: Vec<Call>,
    /// In Anthropic, each block is a message; in `OpenAI`, the text is a message of its own.
    pub is_split: bool,
    /// Each result is a message.
    pub has_split_results: bool,
    /// The results are in the reverse order of the calls.
    pub is_reversed: bool,
}

/// A message of the assistant without calls.
#[derive(Clone, Debug)]
pub struct Answer {
    pub format: Format,
    pub thought: Option<Thought>,
    pub texts: Vec<String>,
    pub is_signed: bool,
}

#[derive(Clone, Debug)]
pub struct Turn {
    pub format: Format,
    /// Instructions before the user message, which only `OpenAI` has.
    pub system: Option<String>,
    pub user: Vec<Item>,
    pub steps: Vec<Step>,
    pub answers: Vec<Answer>,
}

fn words() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[a-z]{1,9}( [a-z]{1,9}){0,3}", 1 => "[ -~]{1,20}[a-z]", 1 => "\\PC{1,12}z", 1 => "[a-z]\n\"[a-z]{1,4}"]
}

fn item() -> impl Strategy<Value = Item> {
    prop_oneof![
        8 => words().prop_map(Item::Text),
        1 => Just(Item::Blank),
        1 => Just(Item::Image),
        1 => Just(Item::ImageUrl),
        1 => Just(Item::Pdf),
        1 => any::<u8>().prop_map(Item::Special),
    ]
}

fn result_item() -> impl Strategy<Value = Item> {
    prop_oneof![
        6 => words().prop_map(Item::Text),
        1 => Just(Item::Blank),
        1 => Just(Item::Image),
        1 => Just(Item::Pdf),
    ]
}

/// Generates items, sometimes with two media of equal content.
fn items(item: impl Strategy<Value = Item>, count: Range<usize>) -> impl Strategy<Value = Vec<Item>> {
    let media = prop::sample::select(vec![Item::Image, Item::ImageUrl, Item::Pdf]);
    (prop::collection::vec(item, count), prop::option::weighted(0.2, media)).prop_map(|(mut items, repeated)| {
        items.extend(repeated.into_iter().flat_map(|media| [media.clone(), media]));
        items
    })
}

fn thought() -> impl Strategy<Value = Option<Thought>> {
    let thought = (prop_oneof![3 => words(), 1 => Just(String::new())], any::<bool>(), prop::bool::weighted(0.2));
    prop::option::weighted(
        0.4,
        thought.prop_map(|(text, is_signed, is_redacted)| Thought { text, is_signed, is_redacted }),
    )
}

fn args() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![any::<i64>().prop_map(Value::from), words().prop_map(Value::from), Just(Value::Null)];
    let value = leaf.prop_recursive(2, 6, 3, |inner| prop::collection::vec(inner, 0..3).prop_map(Value::from));
    prop::collection::btree_map("[a-z_]{1,6}", value, 0..3).prop_map(|map| map.into_iter().collect())
}

/// The formats of the messages of a history.
pub fn one_format(format: Format) -> BoxedStrategy<Format> {
    Just(format).boxed()
}

pub fn any_format() -> BoxedStrategy<Format> {
    prop::sample::select(PROVIDERS.to_vec()).boxed()
}

fn call(format: BoxedStrategy<Format>) -> impl Strategy<Value = Call> {
    // Few names, so that parallel calls have the same one.
    let name = prop::sample::select(vec!["search", "get_weather", "run"]);
    let result = items(result_item(), 0..3);
    let flags = (any::<bool>(), prop::bool::weighted(0.2));
    (name, args(), any::<u8>(), result, format, flags).prop_map(
        |(name, args, id_style, result, result_format, (is_signed, has_failed))| Call {
            name: name.into(),
            args,
            id_style,
            index: 0,
            is_signed,
            result,
            result_format,
            has_failed,
        },
    )
}

fn step(format: &BoxedStrategy<Format>, is_split: bool) -> impl Strategy<Value = Step> + use<> {
    let calls = prop::collection::vec(call(format.clone()), 1..4);
    let flags = (prop::bool::weighted(if is_split { 0.4 } else { 0.0 }), any::<bool>(), any::<bool>());
    (format.clone(), thought(), prop::option::of(words()), calls, flags).prop_map(
        |(format, thought, text, calls, (is_split, has_split_results, is_reversed))| Step {
            format,
            thought,
            text,
            calls,
            is_split,
            has_split_results,
            is_reversed,
        },
    )
}

fn turn(format: &BoxedStrategy<Format>, is_split: bool) -> impl Strategy<Value = Turn> + use<> {
    let answer = (format.clone(), thought(), prop::collection::vec(words(), 1..3), prop::bool::weighted(0.3));
    let answer = answer.prop_map(|(format, thought, texts, is_signed)| Answer { format, thought, texts, is_signed });
    (
        format.clone(),
        prop::option::weighted(0.2, words()),
        items(item(), 1..4),
        prop::collection::vec(step(format, is_split), 0..3),
        prop::collection::vec(answer, 0..3),
    )
        .prop_map(|(format, system, user, steps, answers)| Turn { format, system, user, steps, answers })
}

/// Generates the turns of a history. `format` generates the format of each message. With `is_split`, some turns of the assistant are
/// stored block by block.
pub fn turns(format: &BoxedStrategy<Format>, is_split: bool) -> BoxedStrategy<Vec<Turn>> {
    let turns = prop::collection::vec(turn(format, is_split), 1..4);
    turns
        .prop_map(|mut turns| {
            let calls = turns.iter_mut().flat_map(|turn| &mut turn.steps).flat_map(|step| &mut step.calls);
            calls.enumerate().for_each(|(index, call)| call.index = index);
            turns
        })
        .boxed()
}
