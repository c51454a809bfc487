//! The rules of the editor.

use TaskStatus::{Failed, Pending, Running, Success};

use super::*;
use crate::learn::task_agent::editor::{MAX_PREFERENCES, MAX_PROGRESS_ENTRIES, MAX_TASKS};
use crate::learn::task_agent::edits::{LinkTarget, TaskDraft};

fn descriptions(edits: &TaskEdits) -> Vec<(i64, &str)> {
    edits.tasks.iter().map(|task| (task.order, task.data.task_description.as_str())).collect()
}

/// Asserts that a reply is an error that contains each of the texts.
#[track_caller]
fn assert_error(reply: Result<String, String>, texts: &[&str]) {
    let error = reply.expect_err("is a mistake");
    for text in texts {
        assert!(error.contains(text), "{text} is not in: {error}");
    }
}

#[test]
fn tasks_are_inserted_at_their_place_without_gaps() {
    let stored = tasks(&["A", "B"]);
    let mut editor = TaskEditor::new(&stored, &[], 0);
    let reply = editor.insert_task(1, " X ").unwrap();
    assert_eq!(reply, "Task 2 was created. The number of each task after it has increased by 1.");
    assert_eq!(editor.insert_task(0, "First").unwrap().split('.').next(), Some("Task 1 was created"));
    assert_eq!(editor.insert_task(99, "Last").unwrap(), "Task 5 was created.");
    assert_eq!(editor.insert_task(i64::MAX, "After").unwrap(), "Task 6 was created.");
    let edits = editor.into_edits();
    assert_eq!(descriptions(&edits), [(1, "First"), (2, "A"), (3, "X"), (4, "B"), (5, "Last"), (6, "After")]);
    assert_eq!(edits.created, 4);
    let flags: Vec<_> = edits.tasks.iter().map(|task| (task.is_new, task.has_changed, task.has_ended)).collect();
    let (new, moved) = ((true, true, false), (false, true, false));
    assert_eq!(flags, [new, moved, new, moved, new, new]);
    assert!(edits.tasks.iter().all(|task| task.status == TaskStatus::Pending));
}

#[test]
fn insertions_are_validated() {
    let mut editor = TaskEditor::new(&[], &[], 0);
    assert_error(editor.insert_task(-1, "A"), &["`after_task_order` is -1", "must be 0 or"]);
    assert_error(editor.insert_task(0, " \n\u{200b}"), &["`task_description` is empty", "1 to 2000"]);
    assert_error(editor.insert_task(0, &"é".repeat(2001)), &["2001 characters", "maximum is 2000"]);
    editor.insert_task(0, &"é".repeat(2000)).unwrap();
    assert_eq!(editor.into_edits().created, 1);
}

#[test]
fn the_number_of_tasks_is_limited() {
    let stored = tasks(&vec!["A"; MAX_TASKS - 1]);
    let mut editor = TaskEditor::new(&stored, &[], 0);
    editor.insert_task(0, "B").unwrap();
    assert_error(editor.insert_task(0, "C"), &["has 100 tasks", "maximum is 100"]);
    assert_eq!(editor.into_edits().tasks.len(), MAX_TASKS);
    // A session with more tasks, which an older version may have stored, can still be edited.
    let stored = tasks(&vec!["A"; MAX_TASKS + 5]);
    let mut editor = TaskEditor::new(&stored, &[], 0);
    assert_error(editor.insert_task(0, "C"), &["has 105 tasks"]);
    editor.update_task(105, Some(TaskStatus::Success), None).unwrap();
}

#[test]
fn numbers_are_positions_and_orders_become_consecutive() {
    let stored = [
        task(3, TaskStatus::Pending, "A", &[]),
        task(8, TaskStatus::Pending, "B", &[]),
        task(9, TaskStatus::Pending, "C", &[]),
    ];
    let mut editor = TaskEditor::new(&stored, &[], 0);
    editor.update_task(2, None, Some("B2")).unwrap();
    for number in [0, 4, 8, -1, i64::MIN, i64::MAX] {
        let reply = editor.update_task(number, Some(TaskStatus::Failed), None);
        assert_error(reply, &[&format!("Task {number} does not exist"), "from 1 to 3"]);
    }
    assert_eq!(descriptions(&editor.into_edits()), [(1, "A"), (2, "B2"), (3, "C")]);
    let mut editor = TaskEditor::new(&[], &[], 0);
    assert_error(editor.update_task(1, Some(TaskStatus::Failed), None), &["has no tasks", "insert_task"]);
}

#[test]
fn only_changed_tasks_are_marked() {
    let mut stored = tasks(&["A", "B", "C", "D", "E"]);
    stored[4].data.user_preferences = vec!["legacy".into()];
    let mut editor = TaskEditor::new(&stored, &[], 1);
    editor.update_task(2, Some(TaskStatus::Pending), Some("B")).unwrap();
    editor.update_task(3, None, Some("C2")).unwrap();
    editor.append_task_progress(4, "p").unwrap();
    editor.append_messages_to_task(5, &[0, 0]).unwrap();
    let edits = editor.into_edits();
    let changed: Vec<_> = edits.tasks.iter().map(|task| task.has_changed).collect();
    assert_eq!(changed, [false, false, true, true, true]);
    assert_eq!(edits.created, 0);
    assert_eq!(edits.tasks[4].data.user_preferences, ["legacy"]);
    assert!(edits.tasks.iter().zip(&stored).all(|(draft, stored)| draft.id == stored.id && !draft.is_new));
}

#[test]
fn updates_are_validated_before_they_have_an_effect() {
    let stored = tasks(&["A"]);
    let mut editor = TaskEditor::new(&stored, &[], 0);
    let reply = editor.update_task(1, Some(TaskStatus::Success), Some(&"x".repeat(2001)));
    assert_error(reply, &["`task_description` has 2001 characters", "nothing was changed"]);
    assert_error(editor.update_task(1, None, None), &["Task 1 was not changed", "neither"]);
    assert_error(editor.update_task(1, None, Some(" ")), &["Task 1 was not changed", "neither"]);
    let edits = editor.into_edits();
    assert!(!edits.tasks[0].has_changed && !edits.tasks[0].has_ended);
    // A blank description keeps the current one.
    let mut editor = TaskEditor::new(&stored, &[], 0);
    assert_eq!(
        editor.update_task(1, Some(TaskStatus::Failed), Some("")).unwrap(),
        "Task 1 was updated. Its status is `failed`."
    );
    assert_eq!(descriptions(&editor.into_edits()), [(1, "A")]);
}

#[test]
fn a_task_has_ended_if_it_was_not_finished_before() {
    let has_ended = |status, written: &[TaskStatus]| {
        let stored = [task(1, status, "A", &[])];
        let mut editor = TaskEditor::new(&stored, &[], 1);
        for status in written {
            editor.update_task(1, Some(*status), None).unwrap();
        }
        editor.into_edits().tasks[0].has_ended
    };
    assert!(has_ended(Running, &[Success]));
    assert!(has_ended(Running, &[Failed, Running, Success]));
    assert!(has_ended(Success, &[Running, Success]), "the task was reopened");
    assert!(has_ended(Success, &[Failed]));
    assert!(!has_ended(Success, &[Success]), "the status was written again");
    assert!(!has_ended(Running, &[Success, Running]));
    assert!(!has_ended(Success, &[]));
    // A change of the description does not finish a task.
    let stored = [task(1, Success, "A", &[])];
    let mut editor = TaskEditor::new(&stored, &[], 0);
    editor.update_task(1, None, Some("B")).unwrap();
    let TaskDraft { has_ended, has_changed, .. } = editor.into_edits().tasks[0];
    assert_eq!((has_ended, has_changed), (false, true));
    assert!(!has_ended_of_pending(&[Pending]));
}

fn has_ended_of_pending(written: &[TaskStatus]) -> bool {
    let mut editor = TaskEditor::new(&[], &[], 0);
    editor.insert_task(0, "A").unwrap();
    for status in written {
        editor.update_task(1, Some(*status), None).unwrap();
    }
    editor.into_edits().tasks[0].has_ended
}

#[test]
fn linking_makes_a_pending_task_running() {
    let stored = [task(1, TaskStatus::Pending, "A", &[]), task(2, TaskStatus::Running, "B", &[])];
    let mut editor = TaskEditor::new(&stored, &[], 4);
    assert_eq!(
        editor.append_messages_to_task(1, &[0, 1]).unwrap(),
        "The messages 0 to 1 were linked to task 1. Its status is `running`."
    );
    editor.append_messages_to_task(2, &[1, 2]).unwrap();
    let edits = editor.into_edits();
    let (first, second) = (LinkTarget::Task(stored[0].id), LinkTarget::Task(stored[1].id));
    assert_eq!(edits.links, [(0, first), (1, second), (2, second)]);
    assert!(edits.tasks.iter().all(|task| task.status == TaskStatus::Running));
}

#[test]
fn ranges_are_clipped_at_the_end_of_the_batch() {
    let stored = tasks(&["A"]);
    let id = LinkTarget::Task(stored[0].id);
    let mut editor = TaskEditor::new(&stored, &[], 3);
    let reply = editor.append_messages_to_task(1, &[2, 9]).unwrap();
    assert!(reply.starts_with("The messages 2 to 2 were linked"), "{reply}");
    editor.append_messages_to_task(1, &[1, i64::MAX]).unwrap();
    assert_eq!(editor.into_edits().links, [(1, id), (2, id)]);
}

#[test]
fn ranges_are_validated() {
    let stored = tasks(&["A"]);
    let mut editor = TaskEditor::new(&stored, &[], 3);
    for (range, reason) in [
        (&[2, 1][..], "first id that is greater than the last one. The ids of the messages are 0 to 2."),
        (&[5], "`message_id_range` has 1 numbers"),
        (&[], "`message_id_range` has 0 numbers"),
        (&[0, 1, 2], "`message_id_range` has 3 numbers"),
        (&[-1, 0], "contains a negative number. The ids of the messages are 0 to 2."),
        (&[-2, -1], "contains a negative number"),
        (&[0, -1], "contains a negative number"),
        (&[3, 7], "contains no message of this batch"),
    ] {
        assert_error(editor.append_messages_to_task(1, range), &[reason]);
    }
    assert_error(editor.append_messages_to_task(2, &[0, 0]), &["Task 2 does not exist"]);
    let edits = editor.into_edits();
    assert!(edits.links.is_empty() && !edits.tasks[0].has_changed);
    let mut editor = TaskEditor::new(&stored, &[], 0);
    assert_error(editor.append_messages_to_task(1, &[0, 0]), &["This batch has no messages."]);
}

#[test]
fn finished_tasks_must_be_running_before_links_and_progress() {
    for status in [TaskStatus::Success, TaskStatus::Failed] {
        let stored = [task(1, status, "A", &[])];
        let mut editor = TaskEditor::new(&stored, &[], 1);
        let expected = ["Task 1 is finished", status.as_str(), "`running`", "`update_task`"];
        assert_error(editor.append_messages_to_task(1, &[0, 0]), &expected);
        assert_error(editor.append_task_progress(1, "p"), &expected);
        editor.update_task(1, Some(TaskStatus::Running), None).unwrap();
        editor.append_messages_to_task(1, &[0, 0]).unwrap();
        editor.append_task_progress(1, "p").unwrap();
        let edits = editor.into_edits();
        assert_eq!((edits.links.len(), edits.tasks[0].data.progresses.len()), (1, 1));
        assert_eq!(edits.tasks[0].status, TaskStatus::Running);
        assert!(!edits.tasks[0].has_ended);
    }
}

#[test]
fn progress_is_validated() {
    let full = vec!["p"; MAX_PROGRESS_ENTRIES - 1];
    let stored = [task(1, TaskStatus::Running, "A", &full)];
    let mut editor = TaskEditor::new(&stored, &[], 0);
    assert_error(editor.append_task_progress(1, " \t"), &["`progress` is empty"]);
    assert_error(editor.append_task_progress(1, &"x".repeat(1001)), &["`progress` has 1001 characters", "1000"]);
    assert_error(editor.append_task_progress(0, "p"), &["Task 0 does not exist"]);
    editor.append_task_progress(1, " last\u{0}\u{202e} ").unwrap();
    assert_error(editor.append_task_progress(1, "p"), &["has 100 progress entries", "maximum is 100"]);
    let edits = editor.into_edits();
    assert_eq!(edits.tasks[0].data.progresses.len(), MAX_PROGRESS_ENTRIES);
    assert_eq!(edits.tasks[0].data.progresses[MAX_PROGRESS_ENTRIES - 1], "last");
}

#[test]
fn messages_are_linked_to_the_planning_section() {
    let stored = tasks(&["A"]);
    let mut editor = TaskEditor::new(&stored, &[], 3);
    editor.append_messages_to_task(1, &[0, 0]).unwrap();
    editor.append_messages_to_planning_section(&[1, 0, 1]).unwrap();
    let reply = editor.append_messages_to_planning_section(&[2, 3, 99]).unwrap();
    assert!(reply.contains("except for 2 that do not exist. The ids of the messages are 0 to 2."), "{reply}");
    assert_error(editor.append_messages_to_planning_section(&[99]), &["contains no message", "0 to 2"]);
    assert_error(editor.append_messages_to_planning_section(&[]), &["contains no message", "0 to 2"]);
    assert_error(editor.append_messages_to_planning_section(&[0, -1]), &["contains -1", "0 to 2"]);
    let planning = LinkTarget::Planning;
    let edits = editor.into_edits();
    assert_eq!(edits.links, [(0, planning), (1, planning), (2, planning)], "a later link replaces an earlier one");
}

#[test]
fn preferences_are_trimmed_and_recorded_once() {
    let known = ["The user likes tea.".to_owned()];
    let mut editor = TaskEditor::new(&[], &known, 0);
    assert_eq!(editor.submit_user_preference(" The user likes tea.\n").unwrap(), "This preference is known already.");
    assert_eq!(editor.submit_user_preference(" The user is Ann. ").unwrap(), "The preference was recorded.");
    assert_eq!(editor.submit_user_preference("The user\u{200b} is Ann.").unwrap(), "This preference is known already.");
    assert_error(editor.submit_user_preference("\n"), &["`preference` is empty"]);
    assert_error(editor.submit_user_preference(&"x".repeat(1001)), &["`preference` has 1001 characters"]);
    assert_eq!(editor.into_edits().new_preferences, ["The user is Ann."]);
}

#[test]
fn the_number_of_preferences_is_limited() {
    let known: Vec<String> = (1..MAX_PREFERENCES).map(|n| format!("Fact {n}")).collect();
    let mut editor = TaskEditor::new(&[], &known, 0);
    editor.submit_user_preference("one").unwrap();
    assert_error(editor.submit_user_preference("two"), &["has 200 preferences", "maximum is 200"]);
    assert_eq!(editor.into_edits().new_preferences, ["one"]);
}
