//! The tools that link messages to tasks and to the planning section, and that record preferences.

use serde_json::json;

use super::{Calls, calls, finish, in_both_formats, insert, section};
use crate::support::model_server::Step;

fn plan(ids: &[i64]) -> Step {
    Step::call("append_messages_to_planning_section", json!({"message_ids": ids}))
}

#[tokio::test]
async fn later_calls_of_a_response_use_the_new_numbers() {
    in_both_formats(&[], async |s| {
        s.store(&["A"]).await;
        s.observe([insert(0, "A").finish()]).await;
        s.store(&["B"]).await;
        s.observe([insert(0, "B").link(1, &[0, 0]), finish()]).await;
        assert_eq!(s.task_lines().await, ["1 B running", "2 A pending"]);
        assert_eq!(s.links().await, [None, Some(1)]);
    })
    .await;
}

#[tokio::test]
async fn a_finished_task_must_be_reopened_first() {
    in_both_formats(&[], async |s| {
        s.store(&["A"]).await;
        s.observe([insert(0, "A").status(1, "success").finish()]).await;
        s.store(&["again"]).await;
        let reopened = calls().status(1, "running").link(1, &[0, 0]);
        let requests = s.observe([calls().link(1, &[0, 0]), reopened, finish()]).await;
        let results = requests[1].last_results();
        assert!(results[0].contains("is finished") && results[0].contains("`running`"), "{results:?}");
        assert_eq!(s.task_lines().await, ["1 A running"]);
        assert_eq!(s.links().await, [None, Some(1)]);
    })
    .await;
}

#[tokio::test]
async fn ranges_are_clipped_or_reported() {
    in_both_formats(&[], async |s| {
        s.store_numbered(3).await;
        let clipped = insert(0, "A").link(1, &[2, 9]);
        let invalid = calls().link(1, &[2, 1]).link(1, &[5]).link(1, &[]).link(1, &[-1, 0]).link(1, &[3, 9]);
        let invalid = invalid.and_call("append_messages_to_planning_section", json!({"message_ids": [99]}));
        let invalid = invalid.and_call("append_messages_to_planning_section", json!({"message_ids": [-1, 0]}));
        let requests = s.observe([clipped, invalid, finish()]).await;
        assert!(requests[1].last_results()[1].contains("messages 2 to 2 were linked"), "{requests:?}");
        let results = requests[2].last_results();
        let reasons = [
            "greater than the last one",
            "must have 2",
            "must have 2",
            "negative",
            "no message of this batch",
            "no message of this batch",
            "contains -1",
        ];
        assert_eq!(results.len(), reasons.len());
        for (result, reason) in results.iter().zip(reasons) {
            assert!(result.contains(reason), "{reason}: {results:#?}");
        }
        assert_eq!(s.links().await, [None, None, Some(1)]);
        assert_eq!(s.counts().await, [0, 0, 3]);
    })
    .await;
}

#[tokio::test]
async fn planning_messages_are_linked_to_a_hidden_task() {
    in_both_formats(&[], async |s| {
        s.store_numbered(3).await;
        s.observe([plan(&[0, 1]).finish()]).await;
        assert_eq!(s.links().await, [Some(0), Some(0), None]);
        assert!(s.tasks().await.is_empty(), "the list does not contain the planning task");
        let planning = "select \"order\" || ' ' || is_planning || ' ' || status from tasks";
        assert_eq!(s.app.fetch_scalar::<String>(planning).await, "0 true pending");
        assert_eq!(s.created_tasks().await, 0, "a planning task does not count as a created one");
    })
    .await;
}

#[tokio::test]
async fn preferences_are_known_to_later_batches() {
    in_both_formats(&[], async |s| {
        s.store(&["I like P"]).await;
        s.observe([Step::call("submit_user_preference", json!({"preference": " P "})), finish()]).await;
        let stored = "select data ->> 'user_preferences' from tasks where is_planning";
        assert_eq!(s.app.fetch_scalar::<String>(stored).await, "[\"P\"]");
        s.store(&["more"]).await;
        let requests = s.observe([Step::text("ok")]).await;
        assert_eq!(section(&requests[0], "known-preferences"), "<preference>P</preference>");
        assert!(s.tasks().await.is_empty());
    })
    .await;
}
