//! Random tool calls, compared with a reference model of the rules.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::learn::task_agent::edits::LinkTarget;
use crate::learn::task_agent::toolbox::TaskToolbox;
use crate::llm::agent::{ToolReply, Toolbox};

/// The number of messages in the batch.
const MESSAGES: i64 = 4;

/// A call with its arguments, which may be invalid.
#[derive(Clone, Debug)]
enum Call {
    Insert(Value, Value),
    Update(Value, Option<Value>, Option<Value>),
    Plan(Value),
    Link(Value, Value),
    Progress(Value, Value),
    Preference(Value),
}

/// A task of the reference model. Links and tasks refer to each other by a key, because numbers change.
#[derive(Clone, Debug, PartialEq)]
struct ReferenceTask {
    key: usize,
    status: String,
    description: String,
    progresses: Vec<String>,
    /// The statuses before those that `update_task` has written.
    replaced_statuses: BTreeSet<String>,
}

impl ReferenceTask {
    /// A task has ended if it has a final status, and had another status before.
    fn has_ended(&self) -> bool {
        let is_final = matches!(self.status.as_str(), "success" | "failed");
        is_final && self.replaced_statuses.iter().any(|status| *status != self.status)
    }
}

/// The reference model: the rules of the editor, written as directly as possible.
#[derive(Clone, Debug, Default)]
struct Reference {
    tasks: Vec<ReferenceTask>,
    /// The key of the linked task for each message; `None` for the planning task.
    links: BTreeMap<i64, Option<usize>>,
    known: Vec<String>,
    next_key: usize,
}

impl Reference {
    /// Applies a call. Returns `None` if it is a mistake, which has no effect.
    fn apply(&mut self, call: &Call) -> Option<()> {
        match call {
            Call::Insert(after, description) => self.insert(integer(after)?, text(description)?),
            Call::Update(number, status, description) => {
                self.update(integer(number)?, status.as_ref(), description.as_ref())
            }
            Call::Plan(ids) => self.plan(&integers(ids)?),
            Call::Link(number, range) => self.link(integer(number)?, &integers(range)?),
            Call::Progress(number, progress) => {
                let (number, progress) = (integer(number)?, text(progress)?);
                self.unfinished_task(number)?.progresses.push(progress);
                Some(())
            }
            Call::Preference(preference) => {
                let preference = text(preference)?;
                if !self.known.contains(&preference) {
                    self.known.push(preference);
                }
                Some(())
            }
        }
    }

    fn insert(&mut self, after: i64, description: String) -> Option<()> {
        if after < 0 {
            return None;
        }
        let index = usize::try_from(after).unwrap().min(self.tasks.len());
        let (key, status) = (self.next_key, "pending".to_owned());
        self.next_key += 1;
        let (progresses, replaced_statuses) = (Vec::new(), BTreeSet::new());
        let task = ReferenceTask { key, status, description, progresses, replaced_statuses };
        self.tasks.insert(index, task);
        Some(())
    }

    fn update(&mut self, number: i64, status: Option<&Value>, description: Option<&Value>) -> Option<()> {
        let status = match status {
            None | Some(Value::Null) => None,
            Some(status) => Some(status.as_str().filter(|status| TaskStatus::VALUES.contains(status))?),
        };
        let description = match description {
            None | Some(Value::Null) => None,
            Some(description) => Some(description.as_str()?.trim()).filter(|text| !text.is_empty()),
        };
        let task = self.task(number)?;
        if let Some(status) = status {
            task.replaced_statuses.insert(std::mem::replace(&mut task.status, status.into()));
        }
        if let Some(description) = description {
            task.description = description.into();
        }
        (status.is_some() || description.is_some()).then_some(())
    }

    fn plan(&mut self, ids: &[i64]) -> Option<()> {
        if ids.iter().any(|id| *id < 0) || ids.iter().all(|id| *id >= MESSAGES) {
            return None;
        }
        self.links.extend(ids.iter().filter(|id| **id < MESSAGES).map(|id| (*id, None)));
        Some(())
    }

    fn link(&mut self, number: i64, range: &[i64]) -> Option<()> {
        let &[first, last] = range else { return None };
        if first < 0 || first > last || first >= MESSAGES {
            return None;
        }
        let task = self.unfinished_task(number)?;
        task.status = "running".into();
        let key = task.key;
        self.links.extend((first..=last.min(MESSAGES - 1)).map(|id| (id, Some(key))));
        Some(())
    }

    fn task(&mut self, number: i64) -> Option<&mut ReferenceTask> {
        if number < 1 { None } else { self.tasks.get_mut(usize::try_from(number).unwrap() - 1) }
    }

    fn unfinished_task(&mut self, number: i64) -> Option<&mut ReferenceTask> {
        self.task(number).filter(|task| task.status == "pending" || task.status == "running")
    }
}

fn integer(value: &Value) -> Option<i64> {
    value.as_i64()
}

fn integers(value: &Value) -> Option<Vec<i64>> {
    value.as_array()?.iter().map(integer).collect()
}

fn text(value: &Value) -> Option<String> {
    let text = value.as_str()?.trim();
    (!text.is_empty() && text.len() <= 1000).then(|| text.into())
}

fn any_integer() -> impl Strategy<Value = Value> {
    prop_oneof![
        12 => (-1_i64..7).prop_map(Value::from),
        1 => Just(json!(i64::MAX)),
        1 => Just(json!(i64::MIN)),
        1 => prop_oneof![Just(json!(null)), Just(json!("1")), Just(json!(1.5)), Just(json!([1])), Just(json!(true))],
    ]
}

fn any_text() -> impl Strategy<Value = Value> {
    prop_oneof![
        10 => "[a-c]{1,2}".prop_map(Value::from),
        2 => "[ ab\n]{0,3}".prop_map(Value::from),
        1 => prop_oneof![Just(json!(null)), Just(json!(7)), Just(json!({"a": 1})), Just(json!("x".repeat(2_500)))],
    ]
}

fn any_integers(length: std::ops::Range<usize>) -> impl Strategy<Value = Value> {
    prop_oneof![
        8 => prop::collection::vec(any_integer(), length).prop_map(Value::from),
        1 => any_integer(),
    ]
}

fn any_call() -> impl Strategy<Value = Call> {
    let status = prop_oneof![
        8 => prop::sample::select(TaskStatus::VALUES.to_vec()).prop_map(Value::from),
        1 => prop_oneof![Just(json!("done")), Just(json!(null)), Just(json!(1)), Just(json!(""))],
    ];
    let description =
        any_text().prop_filter("too long for the reference", |text| text.as_str().is_none_or(|text| text.len() < 1000));
    prop_oneof![
        3 => (any_integer(), any_text()).prop_map(|(after, text)| Call::Insert(after, text)),
        3 => (any_integer(), prop::option::of(status), prop::option::of(description))
            .prop_map(|(number, status, text)| Call::Update(number, status, text)),
        1 => any_integers(0..4).prop_map(Call::Plan),
        3 => (any_integer(), any_integers(1..4)).prop_map(|(number, range)| Call::Link(number, range)),
        2 => (any_integer(), any_text()).prop_map(|(number, text)| Call::Progress(number, text)),
        1 => any_text().prop_map(Call::Preference),
    ]
}

/// Returns the tool call of a call. Arguments that are `None` are left out.
fn to_tool_call(call: &Call) -> (&'static str, Map<String, Value>) {
    let object = |fields: &[(&str, Option<&Value>)]| {
        fields.iter().filter_map(|(name, value)| Some(((*name).to_owned(), (*value)?.clone()))).collect()
    };
    match call {
        Call::Insert(after, text) => {
            ("insert_task", object(&[("after_task_order", Some(after)), ("task_description", Some(text))]))
        }
        Call::Update(number, status, text) => (
            "update_task",
            object(&[
                ("task_order", Some(number)),
                ("task_status", status.as_ref()),
                ("task_description", text.as_ref()),
            ]),
        ),
        Call::Plan(ids) => ("append_messages_to_planning_section", object(&[("message_ids", Some(ids))])),
        Call::Link(number, range) => {
            ("append_messages_to_task", object(&[("task_order", Some(number)), ("message_id_range", Some(range))]))
        }
        Call::Progress(number, text) => {
            ("append_task_progress", object(&[("task_order", Some(number)), ("progress", Some(text))]))
        }
        Call::Preference(text) => ("submit_user_preference", object(&[("preference", Some(text))])),
    }
}

/// Asserts that the edits of a toolbox are those of the reference model. `stored` are the tasks before the calls; their keys are
/// their indexes.
fn assert_same(toolbox: TaskToolbox<'_>, reference: &Reference, stored: &[ExistingTask], known: usize) {
    let edits = toolbox.into_edits();
    let keys: BTreeMap<TaskId, usize> =
        edits.tasks.iter().zip(&reference.tasks).map(|(draft, task)| (draft.id, task.key)).collect();
    assert_eq!(keys.len(), reference.tasks.len());
    assert_eq!(edits.tasks.len(), reference.tasks.len());
    for ((draft, task), order) in edits.tasks.iter().zip(&reference.tasks).zip(1..) {
        assert_eq!(draft.order, order);
        assert_eq!(draft.status.as_str(), task.status);
        assert_eq!(draft.data.task_description, task.description);
        assert_eq!(draft.data.progresses, task.progresses);
        assert_eq!(draft.is_new, task.key >= stored.len());
        assert_eq!(draft.has_ended, task.has_ended());
        let has_changed = stored.get(task.key).is_none_or(|stored| {
            assert_eq!(stored.id, draft.id);
            (stored.order, stored.status.as_str(), &stored.data.task_description, &stored.data.progresses)
                != (order, task.status.as_str(), &task.description, &task.progresses)
                || task.has_ended()
        });
        assert_eq!(draft.has_changed, has_changed);
    }
    assert_eq!(edits.created, reference.tasks.len() - stored.len());
    let links = edits.links.into_iter().map(|(index, target)| match target {
        LinkTarget::Planning => (i64::try_from(index).unwrap(), None),
        LinkTarget::Task(id) => (i64::try_from(index).unwrap(), Some(keys[&id])),
    });
    assert_eq!(links.collect::<Vec<_>>(), reference.links.clone().into_iter().collect::<Vec<_>>());
    assert_eq!(edits.new_preferences, reference.known[known..]);
}

proptest! {
    #[test]
    fn random_calls_have_the_effects_of_the_reference_model(
        statuses in prop::collection::vec(prop::sample::select(TaskStatus::VALUES.to_vec()), 0..4),
        gap in 0_i64..3,
        calls in prop::collection::vec(any_call(), 0..30),
    ) {
        let stored: Vec<ExistingTask> = statuses.iter().zip(1..).map(|(status, n)| {
            task(n * (gap + 1) - gap, status.parse().unwrap(), &format!("stored {n}"), &["old"])
        }).collect();
        let known = vec!["a".to_owned()];
        let mut reference = Reference { known: known.clone(), next_key: stored.len(), ..Reference::default() };
        reference.tasks = stored.iter().enumerate().map(|(key, task)| ReferenceTask {
            key,
            status: task.status.as_str().into(),
            description: task.data.task_description.clone(),
            progresses: task.data.progresses.clone(),
            replaced_statuses: BTreeSet::new(),
        }).collect();
        let mut toolbox = TaskToolbox::new(TaskEditor::new(&stored, &known, usize::try_from(MESSAGES).unwrap()));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for call in &calls {
            let (name, arguments) = to_tool_call(call);
            let reply = runtime.block_on(toolbox.call(name, arguments));
            let is_valid = reference.apply(call).is_some();
            prop_assert_eq!(matches!(reply, ToolReply::Text(_)), is_valid, "{:?}: {:?}", call, reply);
        }
        assert_same(toolbox, &reference, &stored, known.len());
    }
}
