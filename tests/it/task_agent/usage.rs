//! The usage of the model, and the mock model.

use serde_json::json;

use super::{TTL, finish, flush, flushed, in_both_formats, insert};
use crate::support::model_server::Step;
use crate::support::{TestConfig, run_with};

#[tokio::test]
async fn each_call_is_counted_with_its_cached_tokens() {
    in_both_formats(&[], async |s| {
        let usage = async |client: &crate::support::Client| {
            let response = client.get("/api/v1/project/model_usage").await;
            response.assert_status(200);
            response.data()["items"].as_array().unwrap().clone()
        };
        assert!(usage(&s.client).await.is_empty());
        s.store(&["A"]).await;
        let first = insert(0, "A").with_usage(1_000, 0, 50);
        s.observe([first, finish().with_usage(1_200, 900, 7)]).await;
        s.store(&["B"]).await;
        s.observe([finish().without_usage()]).await;
        let items = usage(&s.client).await;
        let [item] = &items[..] else { panic!("{items:?}") };
        let ms = item["ms"].as_i64().unwrap();
        assert!((0..60_000).contains(&ms), "{item}");
        let expected = json!({
            "day": chrono::Utc::now().date_naive(), "purpose": "task_agent", "model": "test-model-1",
            "calls": 3, "failed": 0, "input_tokens": 2_200, "cached_tokens": 900, "output_tokens": 57, "ms": ms,
        });
        assert_eq!(*item, expected);
        // A failed call counts too, under the configured name of the model.
        s.store(&["C"]).await;
        s.observe([Step::status(400)]).await;
        let items = usage(&s.client).await;
        let failed = items.iter().find(|item| item["model"] == "test-model").unwrap();
        assert_eq!((&failed["calls"], &failed["failed"], &failed["input_tokens"]), (&json!(1), &json!(1), &json!(0)));
        assert!(usage(&s.app.project().await).await.is_empty());
        let rows = "select count(*) from model_calls where project_id is not null and purpose = 'task_agent'";
        assert_eq!(s.app.fetch_scalar::<i64>(rows).await, 4, "one row for each call");
    })
    .await;
}

#[tokio::test]
async fn the_mock_model_observes_without_tasks() {
    run_with(TestConfig::default().with("LLM_SDK", "mock").with(TTL, "1h"), async |app| {
        let client = app.project().await;
        for text in ["hello", "Simple Hello", "CALL_TOOL_DISK_LIST"] {
            let session = client.new_session().await;
            client.store_text(&session, text).await;
            let result = tokio::select! {
                ended = app.run_jobs() => panic!("the runner ended: {ended:?}"),
                result = flush(&client, &session) => result,
            };
            assert_eq!(result, flushed(), "{text}");
            let page = client.messages(&session, "format=acontext").await;
            assert_eq!(page["items"][0]["session_task_process_status"], "success", "{text}");
            assert_eq!(client.get(&format!("/api/v1/session/{session}/task")).await.data()["items"], json!([]));
        }
        let usage = client.get("/api/v1/project/model_usage").await.data()["items"].clone();
        // The third message has a call of a tool that does not exist, and therefore a second request.
        assert_eq!((&usage[0]["model"], &usage[0]["calls"]), (&json!("mock"), &json!(4)), "{usage}");
    })
    .await;
}
