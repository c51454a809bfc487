//! Runs of the agent with several lessons, and their ends.

use super::*;
use crate::llm::scripted::{stopped_by, text};
use crate::llm::{ChatMessage, StopReason};

/// All lessons are in one conversation, in which every call is answered.
#[tokio::test]
async fn the_next_lesson_is_a_message_of_the_same_conversation() {
    let mut space = space(&[skill("a", &[])]);
    space.lessons.extend([lesson("the second lesson"), lesson("the third lesson")]);
    let script = vec![
        calls(&[think(), create("a", "1.md", "1")]),
        calls(&[finish()]),
        calls(&[create("a", "2.md", "2"), finish()]),
        text("Nothing to add."),
    ];
    let (result, requests) = run(&mut space, script).await;
    // The model is reminded once to call a tool.
    assert_eq!(result.unwrap(), SkillAgentResult { outcome: AgentOutcome::NoToolCalls, iterations: 5 });
    let users: Vec<&str> = requests[3]
        .messages
        .iter()
        .filter_map(|message| match message {
            ChatMessage::User(text) => Some(text.as_str()),
            _ => None,
        })
        .collect();
    let lessons = ["the first lesson", "the second lesson", "the third lesson"];
    assert_eq!(users.len(), 3);
    for (text, lesson) in users.iter().zip(lessons) {
        assert!(text.contains(&format!("date=\"2026-03-14\">{lesson}</text>")), "{text}");
    }
    assert!(users[2].contains("<file>1.md</file>\n<file>2.md</file>"), "the skills are the current ones: {}", users[2]);
    let counts: Vec<_> = space.stored.iter().map(|(outcome, edits)| (*outcome, edits.len())).collect();
    let finished = AgentOutcome::Finished;
    assert_eq!(counts, [(finished, 1), (finished, 1), (AgentOutcome::NoToolCalls, 0)]);
}

/// Each further lesson adds iterations to those that are left.
#[tokio::test]
async fn the_number_of_responses_is_limited() {
    let thinking = || (0..20).map(|_| calls(&[think()]));
    let mut endless = space(&[skill("a", &[])]);
    endless.lessons.push_back(lesson("not requested"));
    let script = [calls(&[think(), create("a", "1.md", "1")])].into_iter().chain(thinking()).collect();
    let (result, requests) = run(&mut endless, script).await;
    assert_eq!(result.unwrap(), SkillAgentResult { outcome: AgentOutcome::MaxIterations, iterations: 6 });
    assert_eq!(requests.len(), 6);
    assert_eq!(endless.text("a", "1.md"), Some("1"), "the edits are stored");
    assert_eq!(endless.stored.iter().map(|(outcome, _)| *outcome).collect::<Vec<_>>(), [AgentOutcome::MaxIterations]);

    let mut two = space(&[skill("a", &[])]);
    two.lessons.push_back(lesson("second"));
    let script = [calls(&[finish()])].into_iter().chain(thinking()).collect();
    let (result, _) = run(&mut two, script).await;
    assert_eq!(result.unwrap(), SkillAgentResult { outcome: AgentOutcome::MaxIterations, iterations: 8 });

    // The last response of the limit may finish a lesson.
    let mut late = space(&[skill("a", &[])]);
    late.lessons.push_back(lesson("second"));
    let script = thinking().take(5).chain([calls(&[finish()])]).chain(thinking()).collect();
    let (result, _) = run(&mut late, script).await;
    assert_eq!(result.unwrap(), SkillAgentResult { outcome: AgentOutcome::MaxIterations, iterations: 8 });
    assert_eq!(late.stored.len(), 2);
}

#[tokio::test]
async fn edits_of_a_failed_run_are_not_stored() {
    let edit = || calls(&[think(), create("a", "1.md", "1")]);
    let mistake = || calls(&[("nope", json!({}))]);
    let withheld = || stopped_by(StopReason::ContentFilter, text("I cannot."));
    for (script, outcome) in [
        (vec![edit(), mistake(), mistake(), mistake()], AgentOutcome::OnlyErrors),
        (vec![edit(), withheld()], AgentOutcome::ContentFilter),
    ] {
        let mut space = space(&[skill("a", &[])]);
        space.lessons.push_back(lesson("not requested"));
        let (result, _) = run(&mut space, script).await;
        assert_eq!(result.unwrap().outcome, outcome);
        assert!(space.stored.is_empty() && space.lessons.len() == 1);
    }
    let mut space = space(&[skill("a", &[])]);
    space.lessons.push_back(lesson("second"));
    let script = vec![edit(), calls(&[finish()]), Err(LlmError::Unavailable(anyhow::anyhow!("overloaded")))];
    let (result, _) = run(&mut space, script).await;
    assert!(matches!(result, Err(SkillAgentError::Llm(LlmError::Unavailable(_)))));
    assert_eq!(space.stored.len(), 1, "the edits of the first lesson are stored");
}

#[tokio::test]
async fn errors_of_the_storage_end_the_run() {
    let mut space = space(&[skill("a", &[("unreadable", "")])]);
    let script = || vec![calls(&[think(), get("a", "unreadable"), create("a", "1.md", "1")]), calls(&[finish()])];
    let (result, requests) = run(&mut space, script()).await;
    assert_eq!(result.unwrap_err().to_string(), "the object store does not respond");
    assert_eq!((requests.len(), space.stored.len()), (1, 0));
    space.is_broken = true;
    let (result, _) = run(&mut space, vec![calls(&[finish()])]).await;
    assert!(matches!(result, Err(SkillAgentError::Store(_))));
}

/// D-51. A file that is deleted during the run is a mistake, and the run continues.
#[tokio::test]
async fn a_deleted_file_is_reported_to_the_model() {
    let mut space = space(&[skill("a", &[("n.md", "old")])]);
    let mut input = space.stored_skills();
    input[0].files.push(StoredFile { path: path("gone.md"), mime: "text/markdown".into(), size: 3 });
    let mut draft = SpaceDraft::new(input, LIMITS);
    let edit = SkillEdit::Replace { skill: "a".into(), path: path("gone.md"), old: "x".into(), new: "y".into() };
    let reply = super::super::edits::apply_edit(&mut draft, &edit, &space).await.unwrap();
    assert!(reply.unwrap_err().contains("`gone.md` has just been deleted"));
    assert!(draft.diff().is_empty());
    space.skills.clear();
    let reply = draft.load_text("a", &path("n.md"), &space).await.unwrap();
    assert!(reply.unwrap_err().contains("`n.md` has just been deleted"));
}
