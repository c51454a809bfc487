//! Histories with tool calls that are stored in one format and read in another one.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::run;

const SESSIONS: &str = "/api/v1/session";

fn openai_calls(ids: &[&str]) -> Value {
    let call = |id: &&str| json!({"id": id, "type": "function", "function": {"name": "look", "arguments": "{}"}});
    json!({"role": "assistant", "tool_calls": ids.iter().map(call).collect::<Vec<_>>()})
}

fn openai_result(id: &str) -> Value {
    json!({"role": "tool", "tool_call_id": id, "content": format!("result {id}")})
}

fn gemini_response(id: Option<&str>, name: &str) -> Value {
    let mut response = json!({"name": name, "response": {"output": "x"}});
    if let Some(id) = id {
        response["id"] = id.into();
    }
    json!({"role": "user", "parts": [{"functionResponse": response}]})
}

async fn store(client: &Client, session: &str, format: &str, messages: &[Value]) -> Vec<Value> {
    let mut stored = Vec::new();
    for message in messages {
        stored.push(client.store_message(session, format, message.clone()).await.data());
    }
    stored
}

async fn items(client: &Client, session: &str, query: &str) -> Vec<Value> {
    client.messages(session, query).await["items"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_call_id_of_8_kib_is_stored_with_its_result() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let id = "signature/".repeat(819);
        store(&client, &session, "openai", &[openai_calls(&[&id]), openai_result(&id)]).await;
        let messages = items(&client, &session, "format=openai").await;
        assert_eq!(messages[1]["tool_call_id"], *id);
        let messages = items(&client, &session, "format=anthropic").await;
        let call_id = messages[0]["content"][0]["id"].as_str().unwrap();
        assert!(call_id.len() <= 64, "{call_id}");
        assert_eq!(messages[1]["content"][0]["tool_use_id"], call_id);
        // One limit for calls and results.
        let long = "x".repeat(8 * 1024 + 1);
        client.store_message(&session, "openai", openai_calls(&[&long])).await.assert_error(400, "id");
        client.store_message(&session, "openai", openai_result(&long)).await.assert_error(400, "tool_call_id");
    })
    .await;
}

/// Reads a session page by page. Returns the items of all pages, oldest first.
async fn paged_items(client: &Client, session: &str, format: &str, limit: usize, newest_first: bool) -> Vec<Value> {
    let mut pages: Vec<Vec<Value>> = Vec::new();
    let mut cursor = String::new();
    loop {
        let query = format!("format={format}&limit={limit}&time_desc={newest_first}&cursor={cursor}");
        let page = client.messages(session, &query).await;
        pages.push(page["items"].as_array().unwrap().clone());
        match page["next_cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => break,
        }
    }
    if newest_first {
        pages.reverse();
    }
    pages.concat()
}

#[tokio::test]
async fn a_page_is_extended_to_the_end_of_its_turn() {
    run(async |app| {
        let client = app.project().await;
        // The shapes of a few messages after a page are read with it. The results of many calls need another query.
        for count in [3, 14] {
            let session = client.new_session().await;
            let ids: Vec<_> = (0..count).map(|number| format!("call{number}")).collect();
            let ids: Vec<_> = ids.iter().map(String::as_str).collect();
            let mut history = vec![json!({"role": "user", "content": "look"}), openai_calls(&ids)];
            history.extend(ids.iter().map(|id| openai_result(id)));
            history.push(json!({"role": "assistant", "content": "done"}));
            store(&client, &session, "openai", &history).await;
            for format in ["anthropic", "gemini"] {
                let whole = items(&client, &session, &format!("format={format}")).await;
                assert_eq!(whole.len(), 4);
                for limit in [1, 2, 3, count, count + 1, count + 2] {
                    for newest_first in [false, true] {
                        let paged = paged_items(&client, &session, format, limit, newest_first).await;
                        assert_eq!(paged, whole, "{count} calls, {format}, limit {limit}, newest first {newest_first}");
                    }
                }
            }
            // In its own format, a page has as many messages as requested.
            assert_eq!(items(&client, &session, "format=openai&limit=3").await.len(), 3);
            assert_eq!(items(&client, &session, "format=acontext&limit=3").await.len(), 3);
        }
    })
    .await;
}

#[tokio::test]
async fn pages_of_a_growing_session_equal_its_whole_history() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        for round in 0..4 {
            // Some servers number the calls of each response. Providers require different ids.
            let text = json!({"role": "user", "content": format!("round {round}")});
            store(&client, &session, "openai", &[text, openai_calls(&["call_0"]), openai_result("call_0")]).await;
            let whole = items(&client, &session, "format=anthropic").await;
            let ids: HashSet<_> = whole.iter().filter_map(|item| item["content"][0]["id"].as_str()).collect();
            assert_eq!(ids.len(), round + 1, "{whole:?}");
            let newest = items(&client, &session, "format=anthropic&limit=2&time_desc=true").await;
            assert_eq!(newest, whole[whole.len() - 2..]);
            for newest_first in [true, false] {
                let paged = paged_items(&client, &session, "anthropic", 2, newest_first).await;
                assert_eq!(paged, whole, "round {round}, newest first {newest_first}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn calls_of_a_deleted_session_do_not_precede_a_new_one_with_its_id() {
    run(async |app| {
        let client = app.project().await;
        let id = uuid::Uuid::new_v4().to_string();
        let text = json!({"role": "user", "content": "look"});
        let newest_call_id = async |history: &[Value]| {
            store(&client, &id, "openai", history).await;
            let newest = items(&client, &id, "format=anthropic&limit=2&time_desc=true").await;
            newest[0]["content"][0]["id"].clone()
        };
        let round = |id: &str| [text.clone(), openai_calls(&[id]), openai_result(id)];
        client.post(SESSIONS, json!({"use_uuid": id})).await.assert_status(201);
        assert_eq!(newest_call_id(&round("a")).await, "a");
        assert_eq!(newest_call_id(&round("b")).await, "b");
        client.delete(&format!("{SESSIONS}/{id}")).await.assert_status(200);
        client.post(SESSIONS, json!({"use_uuid": id})).await.assert_status(201);
        assert_eq!(newest_call_id(&round("a")).await, "a");
    })
    .await;
}

#[tokio::test]
async fn a_result_gets_the_name_of_a_call_on_an_earlier_page() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let text = |text: &str| json!({"role": "assistant", "content": text});
        let history =
            [openai_calls(&["a"]), json!({"role": "user", "content": "wait"}), text("yes"), openai_result("a")];
        store(&client, &session, "openai", &history).await;
        let messages = items(&client, &session, "format=gemini&limit=1&time_desc=true").await;
        assert_eq!(messages[0]["parts"][0]["functionResponse"]["name"], "look");
    })
    .await;
}

#[tokio::test]
async fn calls_and_results_of_different_formats_match() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        store(&client, &session, "openai", &[openai_calls(&["a", "b"]), openai_result("a")]).await;
        // A Gemini response for a call that was stored in another format.
        let stored = store(&client, &session, "gemini", &[gemini_response(None, "look")]).await;
        assert_eq!(stored[0]["parts"][0]["meta"]["tool_call_id"], "b");
        // A result in another format for a Gemini call.
        let call = json!({"role": "model", "parts": [{"functionCall": {"id": "c", "name": "look"}}]});
        store(&client, &session, "gemini", &[call]).await;
        let pending = async || {
            let items = items(&client, &session, "format=acontext").await;
            items.last().unwrap()["meta"]["__gemini_call_info__"].clone()
        };
        assert_eq!(pending().await, json!([{"id": "c", "name": "look"}]));
        let result = json!({"type": "tool_result", "tool_use_id": "c", "content": "x"});
        store(&client, &session, "anthropic", &[json!({"role": "user", "content": [result]})]).await;
        let listed = items(&client, &session, "format=acontext").await;
        assert!(listed[3]["meta"]["__gemini_call_info__"].is_null(), "{listed:?}");
        let stored = store(&client, &session, "gemini", &[gemini_response(None, "look")]).await;
        assert_eq!(stored[0]["parts"][0]["meta"]["tool_call_id"], Value::Null);
    })
    .await;
}

#[tokio::test]
async fn a_response_belongs_to_the_newest_turn_with_an_unanswered_call() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let call = |id: &str| json!({"role": "model", "parts": [{"functionCall": {"id": id, "name": "look"}}]});
        let user = json!({"role": "user", "parts": [{"text": "again"}]});
        let history = [call("interrupted"), user, call("newest"), gemini_response(None, "look")];
        let stored = store(&client, &session, "gemini", &history).await;
        assert_eq!(stored[3]["parts"][0]["meta"]["tool_call_id"], "newest");
    })
    .await;
}

#[tokio::test]
async fn a_response_in_several_steps_answers_its_call_with_the_last_one() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let mut partial = gemini_response(None, "look");
        partial["parts"][0]["functionResponse"]["willContinue"] = true.into();
        let call = json!({"role": "model", "parts": [{"functionCall": {"id": "a", "name": "look"}}]});
        let responses = [call, partial.clone(), partial, gemini_response(None, "look")];
        let stored = store(&client, &session, "gemini", &responses).await;
        for message in &stored[1..] {
            assert_eq!(message["parts"][0]["meta"]["tool_call_id"], "a");
        }
        // The call is answered, but a response that names it is stored nevertheless.
        let stored = store(&client, &session, "gemini", &[gemini_response(Some("a"), "look")]).await;
        assert_eq!(stored[0]["parts"][0]["meta"]["tool_call_id"], "a");
    })
    .await;
}

#[tokio::test]
async fn an_interrupted_call_is_repaired_on_request() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let user = json!({"role": "user", "content": "look"});
        let history = [user.clone(), openai_calls(&["a", "b"]), openai_result("b"), user];
        store(&client, &session, "openai", &history).await;
        assert_eq!(items(&client, &session, "format=openai").await, history);
        for (format, length) in [("openai", 5), ("anthropic", 4), ("gemini", 4)] {
            let messages = items(&client, &session, &format!("format={format}&repair=true")).await;
            assert_eq!(messages.len(), length, "{format}: {messages:?}");
            let text = json!(messages).to_string();
            assert_eq!(text.matches("[no result: the tool call was interrupted]").count(), 1, "{format}: {text}");
        }
        assert_eq!(items(&client, &session, "format=openai").await, history, "the stored messages are unchanged");
    })
    .await;
}

#[tokio::test]
async fn calls_of_an_encrypted_project_are_matched() {
    run(async |app| {
        let client = app.project().await;
        client.post("/api/v1/project/encrypt", json!({})).await.assert_status(200);
        let session = client.new_session().await;
        store(&client, &session, "openai", &[openai_calls(&["a"])]).await;
        let stored = store(&client, &session, "gemini", &[gemini_response(None, "look")]).await;
        assert_eq!(stored[0]["parts"][0]["meta"]["tool_call_id"], "a");
    })
    .await;
}

#[tokio::test]
async fn corrupt_tool_calls_of_an_earlier_page_do_not_fail_a_page() {
    run(async |app| {
        let client = app.project().await;
        client.post("/api/v1/project/encrypt", json!({})).await.assert_status(200);
        let session = client.new_session().await;
        let history = [openai_calls(&["a"]), json!({"role": "user", "content": "wait"}), openai_calls(&["b"])];
        store(&client, &session, "openai", &history).await;
        sqlx::query("update messages set call_references = '\"AAAA\"' where parent_id is null")
            .execute(&*app.app.db)
            .await
            .unwrap();
        for format in ["gemini", "anthropic"] {
            let messages = items(&client, &session, &format!("format={format}&limit=1&time_desc=true")).await;
            assert_eq!(messages.len(), 1, "{format}");
        }
    })
    .await;
}

#[tokio::test]
async fn calls_without_a_signature_get_a_placeholder_on_request() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let call = |name: &str| json!({"functionCall": {"id": name, "name": name}});
        let calls = json!({"role": "model", "parts": [call("f"), call("g")]});
        store(&client, &session, "openai", &[openai_calls(&["a"]), openai_result("a")]).await;
        store(&client, &session, "gemini", std::slice::from_ref(&calls)).await;
        let default = items(&client, &session, "format=gemini").await;
        assert!(default[0]["parts"][0].get("thoughtSignature").is_none());
        assert_eq!(default[2], calls);
        let signed = items(&client, &session, "format=gemini&signatures=placeholder").await;
        for index in [0, 2] {
            assert_eq!(signed[index]["parts"][0]["thoughtSignature"], "skip_thought_signature_validator");
        }
        assert!(signed[2]["parts"][1].get("thoughtSignature").is_none(), "only the first call has a signature");
        // What is read can be stored again.
        store(&client, &session, "gemini", &signed[2..]).await;
        let anthropic = "format=anthropic";
        let query = format!("{anthropic}&signatures=placeholder");
        assert_eq!(items(&client, &session, &query).await, items(&client, &session, anthropic).await);
        let path = format!("/api/v1/session/{session}/messages?format=gemini&signatures=none");
        client.get(&path).await.assert_error(400, "signatures");
    })
    .await;
}
