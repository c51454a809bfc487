//! The tools that create and change tasks, and the ends of a run.

use serde_json::json;
use tracing::Level;

use super::{Calls, batch_texts, calls, finish, in_both_formats, insert};
use crate::support::captured_log::CapturedLog;
use crate::support::model_server::Step;

#[tokio::test]
async fn a_conversation_becomes_a_finished_task() {
    in_both_formats(&[], async |s| {
        s.store_numbered(3).await;
        let thinking = Step::call("report_thinking", json!({"thinking": "one request"}));
        let work = thinking.insert(0, "A").link(1, &[0, 2]).progress(1, "p").status(1, "success");
        let requests = s.observe([work, finish()]).await;
        assert_eq!(requests.len(), 2);
        let tools = [
            "insert_task",
            "update_task",
            "append_messages_to_planning_section",
            "append_messages_to_task",
            "append_task_progress",
            "submit_user_preference",
            "finish",
            "report_thinking",
        ];
        assert_eq!(requests[0].tool_names(), tools);
        assert_eq!(requests[1].last_results().len(), 5);
        let tasks = s.tasks().await;
        let [task] = &tasks[..] else { panic!("{tasks:?}") };
        assert_eq!((&task["order"], &task["status"]), (&json!(1), &json!("success")));
        assert_eq!(task["data"], json!({"task_description": "A", "progresses": ["p"]}));
        assert_eq!(s.links().await, [Some(1); 3]);
        assert_eq!(s.created_tasks().await, 1);
        assert_eq!(s.counts().await, [0, 0, 3]);
    })
    .await;
}

#[tokio::test]
async fn a_task_is_inserted_between_others() {
    in_both_formats(&[], async |s| {
        s.store(&["A, B and C"]).await;
        s.observe([insert(0, "A").insert(1, "B").insert(2, "C").finish()]).await;
        let before = s.tasks().await;
        s.store(&["X after A"]).await;
        s.observe([insert(1, "X").finish()]).await;
        assert_eq!(s.task_lines().await, ["1 A pending", "2 X pending", "3 B pending", "4 C pending"]);
        let after = s.tasks().await;
        assert_eq!([&after[0]["id"], &after[2]["id"], &after[3]["id"]], [0, 1, 2].map(|index| &before[index]["id"]));
        let duplicate = sqlx::query(
            "insert into tasks (id, project_id, session_id, \"order\", data)
             select gen_random_uuid(), project_id, session_id, 2, '{}' from tasks limit 1",
        );
        duplicate.execute(&*s.app.app.db).await.expect_err("the orders of a session are unique");
    })
    .await;
}

#[tokio::test]
async fn an_insertion_after_the_end_leaves_no_gap() {
    in_both_formats(&[], async |s| {
        s.store(&["A"]).await;
        s.observe([insert(0, "A").finish()]).await;
        s.store(&["X"]).await;
        let requests = s.observe([insert(7, "X"), calls().status(2, "running"), finish()]).await;
        assert!(requests[1].last_results()[0].contains("Task 2 was created"), "{:?}", requests[1].last_results());
        assert_eq!(s.task_lines().await, ["1 A pending", "2 X running"]);
    })
    .await;
}

#[tokio::test]
async fn an_unknown_task_is_reported_to_the_model() {
    in_both_formats(&[], async |s| {
        s.store(&["A"]).await;
        s.observe([insert(0, "A").finish()]).await;
        s.store(&["done"]).await;
        let requests = s.observe([calls().status(5, "success"), calls().status(1, "success").finish()]).await;
        let results = requests[1].tool_results();
        let [(id, text)] = &results[..] else { panic!("{results:?}") };
        assert!(requests[1].body.to_string().matches(id.as_str()).count() >= 2, "the result has the id of the call");
        assert!(text.contains("Task 5 does not exist") && text.contains("from 1 to 1"), "{text}");
        assert_eq!(requests.len(), 2);
        assert_eq!(s.task_lines().await, ["1 A success"]);
    })
    .await;
}

#[tokio::test]
async fn wrong_arguments_are_corrected_by_the_model() {
    in_both_formats(&[], async |s| {
        s.store(&["A"]).await;
        let wrong = Step::call("insert_task", json!({"task_description": "A"}))
            .and_call("update_task", json!({"task_order": "1", "task_status": "done"}));
        let requests = s.observe([wrong, insert(0, "A").status(1, "success"), finish()]).await;
        let results = requests[1].last_results();
        assert!(results[0].contains("after_task_order"), "{results:?}");
        assert!(results[1].contains("task_status") && results[1].contains("success"), "{results:?}");
        assert_eq!(requests.len(), 3);
        assert_eq!((s.task_lines().await, s.counts().await), (vec!["1 A success".to_owned()], [0, 0, 1]));
    })
    .await;
}

#[tokio::test]
async fn an_unknown_tool_is_reported_to_the_model() {
    in_both_formats(&[], async |s| {
        s.store(&["A"]).await;
        let requests = s.observe([Step::call("nope", json!({})), finish()]).await;
        let results = requests[1].last_results();
        assert!(results[0].contains("no tool of this name") && results[0].contains("insert_task"), "{results:?}");
        assert_eq!((s.tasks().await.len(), s.counts().await), (0, [0, 0, 1]));
    })
    .await;
}

#[tokio::test]
async fn calls_after_finish_are_executed() {
    in_both_formats(&[], async |s| {
        s.store(&["A"]).await;
        assert_eq!(s.observe([finish().insert(0, "A")]).await.len(), 1);
        assert_eq!((s.task_lines().await, s.counts().await), (vec!["1 A pending".to_owned()], [0, 0, 1]));
    })
    .await;
}

#[tokio::test]
async fn a_text_ends_the_run() {
    in_both_formats(&[], async |s| {
        s.store(&["hello"]).await;
        let requests = s.observe([Step::text("nothing to do")]).await;
        assert_eq!((requests.len(), batch_texts(&requests[0])), (1, vec!["hello".to_owned()]));
        assert_eq!((s.tasks().await.len(), s.counts().await), (0, [0, 0, 1]));
    })
    .await;
}

#[tokio::test]
async fn a_run_ends_after_the_maximum_number_of_calls() {
    in_both_formats(&[], async |s| {
        let (log, _guard) = CapturedLog::start(Level::INFO);
        s.store(&["hello"]).await;
        let think = || Step::call("report_thinking", json!({"thinking": "hm"}));
        assert_eq!(s.observe((0..6).map(|_| think())).await.len(), 6);
        assert_eq!(s.counts().await, [0, 0, 1]);
        let log = log.text();
        assert!(log.contains("iterations=6") && log.contains("outcome=\"max_iterations\""), "{log}");
        let metrics = s.app.admin().get("/metrics").await.text();
        let runs = "acontextd_agent_runs_total{agent=\"task_agent\",outcome=\"max_iterations\"} 1";
        assert!(metrics.contains(runs), "{metrics}");
        // A project can set another maximum.
        s.app
            .execute("update projects set configs = '{\"project_config\": {\"default_task_agent_max_iterations\": 2}}'")
            .await;
        s.store(&["hello"]).await;
        assert_eq!(s.observe((0..2).map(|_| think())).await.len(), 2);
    })
    .await;
}
