//! Messages: stored in one format and read in every format, in order and in pages.

use std::collections::HashSet;

use acontextd::features;
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::client::{Client, Form};
use crate::support::{TestConfig, run, run_with};

const PIXEL: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mP4z8AAAAMBAQD3A0FDAAAAAElFTkSuQmCC";

/// Returns the last message of a session in a format.
async fn last_item(client: &Client, session: &str, format: &str) -> Value {
    let page = client.messages(session, &format!("format={format}&limit=1&time_desc=true")).await;
    // In another format, the page may begin with the calls of a result.
    page["items"].as_array().unwrap().last().unwrap().clone()
}

#[tokio::test]
async fn a_message_reads_back_equal_in_its_own_format() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let call = json!({"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{ \"a\" : 1.50 }"}});
        for (format, blob) in [
            ("openai", json!({"role": "user", "content": "words\u{0} with a NUL"})),
            ("openai", json!({"role": "assistant", "content": "both", "tool_calls": [call], "refusal": "no"})),
            ("openai", json!({"role": "tool", "tool_call_id": "c1", "content": ""})),
            ("openai", json!({"role": "developer", "name": "policy", "content": [
                {"type": "text", "text": "be brief"},
            ]})),
            ("anthropic", json!({"role": "user", "content": [
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
                {"type": "unheard_of", "beam": {"x": [null]}},
                {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "t"}, "title": "T"},
            ]})),
            ("anthropic", json!({"role": "assistant", "unheard_of": 1, "content": [
                {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"n": 9_007_199_254_740_993_i64, "x": null},
                 "cache_control": {"type": "ephemeral", "ttl": "1h"}},
            ]})),
            ("gemini", json!({"role": "model", "parts": [
                {"text": "so", "thoughtSignature": "c2ln"},
                {"functionCall": {"id": "g1", "name": "f", "args": {}}, "thoughtSignature": "c2ln"},
                {"executableCode": {"language": "PYTHON", "code": "1"}},
            ]})),
        ] {
            let stored = client.store_message(&session, format, blob.clone()).await;
            assert_eq!(stored.status, StatusCode::CREATED, "{blob}: {}", stored.text());
            assert_eq!(last_item(&client, &session, format).await, blob);
            for other in ["openai", "anthropic", "gemini", "acontext"] {
                assert!(last_item(&client, &session, other).await["role"].is_string(), "{blob} in {other}");
            }
        }
        let parts = json!([
            {"type": "text", "text": "a", "meta": {"n": 1.50}},
            {"type": "data", "meta": {"data_type": "chart", "values": [1, null]}},
        ]);
        let blob = json!({"role": "assistant", "parts": parts, "meta": {"origin": "import"}});
        client.store_message(&session, "acontext", blob).await;
        let returned = last_item(&client, &session, "acontext").await;
        assert_eq!((&returned["parts"], &returned["meta"]["origin"]), (&parts, &json!("import")));
    })
    .await;
}

#[tokio::test]
async fn numbers_keep_their_digits() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let input = r#"{"a":1.10,"b":1e+400,"c":-0.0}"#;
        let block = format!(r#"{{"type":"tool_use","id":"t","name":"f","input":{input}}}"#);
        let blob = format!(r#"{{"role":"assistant","content":[{block}]}}"#);
        let path = format!("/api/v1/session/{session}/messages");
        let body = format!("{{\"format\":\"anthropic\",\"blob\":{blob}}}");
        assert_eq!(client.json(Method::POST, &path, &body).await.status, StatusCode::CREATED);
        for format in ["anthropic", "openai", "gemini"] {
            let text = client.get(&format!("{path}?format={format}")).await.text().replace('\\', "");
            for number in ["1.10", "1e+400", "-0.0"] {
                assert!(text.contains(&format!(":{number}")), "{number} in {format}: {text}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn split_tool_results_repeat_the_id_and_meta_of_their_message() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let calls = json!({"role": "assistant", "content": [
            {"type": "tool_use", "id": "a", "name": "first", "input": {}},
            {"type": "tool_use", "id": "b", "name": "second", "input": {}},
        ]});
        let results = json!({"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "a", "content": "one"},
            {"type": "tool_result", "tool_use_id": "b", "content": "two"},
            {"type": "text", "text": "continue"},
        ]});
        let first = client.store_message(&session, "anthropic", calls).await.data()["id"].clone();
        let path = format!("/api/v1/session/{session}/messages");
        let body = json!({"format": "anthropic", "blob": results, "meta": {"turn": 2}});
        let second = client.post(&path, body).await.data()["id"].clone();
        let page = client.messages(&session, "format=openai").await;
        let roles: Vec<&str> = page["items"].as_array().unwrap().iter().map(|i| i["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["assistant", "tool", "tool", "user"]);
        assert_eq!(page["ids"], json!([first, second, second, second]));
        assert_eq!(page["metas"], json!([{}, {"turn": 2}, {"turn": 2}, {"turn": 2}]));
        assert_eq!(page["edit_at_message_id"], second);
        // The name of a function is taken from its call, also if the call is returned as it was stored.
        let gemini = json!({"role": "model", "parts": [{"functionCall": {"id": "c", "name": "third", "args": {}}}]});
        client.store_message(&session, "gemini", gemini).await;
        client
            .store_message(&session, "openai", json!({"role": "tool", "tool_call_id": "c", "content": "three"}))
            .await;
        let response = last_item(&client, &session, "gemini").await;
        // The last page contains only the response. The whole conversation also contains the call.
        assert_eq!(response["parts"][0]["functionResponse"]["response"], json!({"output": "three"}));
        let all = client.messages(&session, "format=gemini").await;
        assert_eq!(all["items"][3]["parts"][0]["functionResponse"]["name"], "third", "{all}");
    })
    .await;
}

#[tokio::test]
async fn concurrent_writers_lose_nothing_and_keep_one_order() {
    run(async |app| {
        let client = app.project().await;
        // Another process writes to the same session.
        let second_process = app.second_process(TestConfig::default()).await;
        let session = client.new_session().await;
        let writer = |n: usize| {
            let router = if n.is_multiple_of(2) {
                features::router(&app.app).unwrap()
            } else {
                features::router(&second_process.app).unwrap()
            };
            let client = Client::new(router, Some((client.project(), client.key().to_owned())));
            let session = session.clone();
            async move {
                let mut ids = Vec::new();
                for turn in 0..20 {
                    ids.push(client.store_text(&session, &format!("{n}-{turn}")).await);
                }
                ids
            }
        };
        let stored_ids = futures_util::future::join_all((0..16).map(writer)).await;
        let page = client.messages(&session, "format=acontext").await;
        let items = page["items"].as_array().unwrap();
        assert_eq!(items.len(), 320);
        let ids: Vec<&str> = items.iter().map(|item| item["id"].as_str().unwrap()).collect();
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 320);
        for (index, item) in items.iter().enumerate() {
            let parent = if index == 0 { Value::Null } else { items[index - 1]["id"].clone() };
            assert_eq!(item["parent_id"], parent);
        }
        let times: Vec<i64> = sqlx::query_scalar(
            "select (extract(epoch from created_at) * 1000000)::bigint from messages order by created_at",
        )
        .fetch_all(&*app.app.db)
        .await
        .unwrap();
        assert!(
            times.windows(2).all(|pair| pair[0] < pair[1]),
            "every message has a later time than the one before it"
        );
        for writer_ids in stored_ids {
            let positions: Vec<_> =
                writer_ids.iter().map(|id| ids.iter().position(|listed| listed == id).unwrap()).collect();
            assert!(positions.is_sorted(), "the messages of one writer are in the order in which it stored them");
        }
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from jobs where kind = 'observe'").await, 1);
    })
    .await;
}

#[tokio::test]
async fn pages_in_both_directions_have_no_gaps_or_overlaps() {
    run(async |app| {
        let (client, stranger) = (app.project().await, app.project().await);
        let (session, empty) = (client.new_session().await, client.new_session().await);
        client.store_text(&client.new_session().await, "of another session").await;
        let mut ids = Vec::new();
        for n in 0..7 {
            ids.push(client.store_text(&session, &format!("m{n}")).await);
        }
        for direction in ["false", "true"] {
            let mut pages = Vec::new();
            let mut query = format!("limit=3&time_desc={direction}");
            loop {
                let page = client.messages(&session, &query).await;
                pages.push(page["ids"].as_array().unwrap().clone());
                assert_eq!(page["has_more"], page["next_cursor"].is_string());
                let Some(cursor) = page["next_cursor"].as_str() else { break };
                query = format!("limit=3&time_desc={direction}&cursor={cursor}");
            }
            if direction == "true" {
                assert_eq!(json!(pages[0]), json!(ids[4..]), "the newest messages, oldest first");
                pages.reverse();
            }
            assert_eq!(json!(pages.concat()), json!(ids));
        }
        let page = client.messages(&empty, "").await;
        assert_eq!(page, json!({"items": [], "ids": [], "metas": [], "has_more": false, "this_time_tokens": 0}));
        let path = format!("/api/v1/session/{session}/messages");
        for query in ["", "?limit=2"] {
            stranger.get(&format!("{path}{query}")).await.assert_error(404, "session not found");
        }
        for (query, field) in [
            ("limit=-1", "limit"),
            ("limit=201", "limit"),
            ("limit=1&cursor=%21", "cursor"),
            ("format=xml", "format"),
            ("time_desc=yes", "time_desc"),
            ("with_events=maybe", "with_events"),
            ("with_asset_public_url=no", "with_asset_public_url"),
            ("edit_strategies=%7B", "edit_strategies"),
            ("edit_strategies=%5B%7B%22type%22%3A%22shrink%22%7D%5D", "edit_strategies"),
        ] {
            client.get(&format!("{path}?{query}")).await.assert_error(400, field);
        }
        assert_eq!(
            client.messages(&session, "cursor=%21").await["ids"],
            json!(ids),
            "the cursor has no effect without a limit"
        );
    })
    .await;
}

#[tokio::test]
async fn a_list_without_a_limit_has_maximum_sizes() {
    let config = TestConfig::default().with("ACONTEXTD_MESSAGES_LIMIT", "3").with("ACONTEXTD_MESSAGES_BYTES", "1000");
    run_with(config, async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        for n in 0..4 {
            client.store_text(&session, &format!("m{n}")).await;
        }
        let page = client.messages(&session, "").await;
        assert_eq!((page["ids"].as_array().unwrap().len(), &page["has_more"]), (3, &json!(true)));
        let rest =
            client.messages(&session, &format!("limit=9&cursor={}", page["next_cursor"].as_str().unwrap())).await;
        assert_eq!((rest["ids"].as_array().unwrap().len(), &rest["has_more"]), (1, &json!(false)));
        let long = client.new_session().await;
        for _ in 0..2 {
            client.store_text(&long, &"long ".repeat(300)).await;
        }
        let page = client.messages(&long, "").await;
        assert_eq!(
            (page["ids"].as_array().unwrap().len(), &page["has_more"]),
            (1, &json!(true)),
            "a page has at least one message"
        );
    })
    .await;
}

#[tokio::test]
async fn a_function_response_takes_the_id_of_its_pending_call() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let call = |id: Value, name: &str| {
            let call = match id {
                Value::Null => json!({"name": name, "args": {"q": 1}}),
                id => json!({"id": id, "name": name}),
            };
            json!({"functionCall": call})
        };
        let response = |id: Value, name: &str| match id {
            Value::Null => json!({"functionResponse": {"name": name, "response": {"n": 1}}}),
            id => json!({"functionResponse": {"id": id, "name": name, "response": {"n": 1}}}),
        };
        let calls = json!({"role": "model", "parts": [call(Value::Null, "look"), call(json!("x2"), "listen")]});
        let stored = client.store_message(&session, "gemini", calls).await.data();
        let id = stored["parts"][0]["meta"]["id"].clone();
        assert!(id.as_str().unwrap().starts_with("call_") && id.as_str().unwrap().len() == 13, "{id}");
        let pending = &last_item(&client, &session, "acontext").await["meta"]["__gemini_call_info__"];
        assert_eq!(*pending, json!([{"id": id, "name": "look"}, {"id": "x2", "name": "listen"}]));
        // Responses that match no call are stored too, and use up no call.
        for response in [response(Value::Null, "smell"), response(json!("x9"), "listen")] {
            let message = json!({"role": "user", "parts": [{"text": "a"}, response]});
            client.store_message(&session, "gemini", message.clone()).await.data();
            assert_eq!(last_item(&client, &session, "gemini").await, message);
        }
        // The responses are in another order than the calls.
        let both = json!({"role": "user", "parts": [response(json!("x2"), "listen"), response(Value::Null, "look")]});
        assert_eq!(client.store_message(&session, "gemini", both.clone()).await.status, StatusCode::CREATED);
        let returned = last_item(&client, &session, "gemini").await;
        assert_eq!(returned["parts"][1]["functionResponse"]["id"], id);
        client.store_message(&session, "gemini", both).await.data();
        assert!(last_item(&client, &session, "gemini").await["parts"][1]["functionResponse"].get("id").is_none());
        assert!(
            client.messages(&session, "format=acontext").await["items"][0]["meta"]["__gemini_call_info__"].is_null()
        );
        // Two concurrent responses to one call.
        client.store_message(&session, "gemini", json!({"role": "model", "parts": [call(json!("y"), "taste")]})).await;
        let result = json!({"role": "user", "parts": [response(Value::Null, "taste")]});
        let (first, second) = tokio::join!(
            client.store_message(&session, "gemini", result.clone()),
            client.store_message(&session, "gemini", result.clone())
        );
        let ids = [first, second].map(|stored| stored.data()["parts"][0]["meta"]["tool_call_id"].clone());
        assert!(ids.contains(&json!("y")) && ids.contains(&Value::Null), "{ids:?}");
        let elsewhere = client.new_session().await;
        client.store_message(&elsewhere, "gemini", result.clone()).await.data();
        assert_eq!(last_item(&client, &elsewhere, "gemini").await, result);
    })
    .await;
}

#[tokio::test]
async fn user_metadata_of_a_message_is_merged_by_key() {
    run(async |app| {
        let (client, stranger) = (app.project().await, app.project().await);
        let session = client.new_session().await;
        let path = format!("/api/v1/session/{session}/messages");
        let stored = client
            .post(
                &path,
                json!({"blob": {"role": "user", "content": "p"}, "meta": {"keep": 1, "drop": 2, "deep": {"a": 1}}}),
            )
            .await
            .data();
        let meta_path = format!("{path}/{}/meta", stored["id"].as_str().unwrap());
        let change =
            async |meta: Value| client.json(Method::PATCH, &meta_path, &json!({"meta": meta}).to_string()).await;
        let merged = change(json!({"drop": null, "deep": {"b": null}, "new": [1]})).await;
        assert_eq!(merged.data(), json!({"meta": {"keep": 1, "deep": {"b": null}, "new": [1]}}));
        // Concurrent changes are all stored.
        let many = (0..16).map(|n| change(json!({format!("k{n}"): n})));
        for response in futures_util::future::join_all(many).await {
            assert_eq!(response.status, StatusCode::OK);
        }
        let metas = client.messages(&session, "").await["metas"].clone();
        assert_eq!(metas[0].as_object().unwrap().len(), 19, "{metas}");
        for (body, text) in [
            (json!({}), "meta"),
            (json!({"meta": null}), "meta"),
            (json!({"meta": []}), "meta"),
            (json!({"meta": {"a": "\u{0}"}}), "meta"),
            (json!({"meta": {"a": "x".repeat(65_536)}}), "meta size exceeds 64KB limit"),
        ] {
            client.json(Method::PATCH, &meta_path, &body.to_string()).await.assert_error(400, text);
        }
        for n in 0..16 {
            change(json!({format!("big{n}"): "x".repeat(65_000)})).await;
        }
        change(json!({"more": "x".repeat(65_000), "and": "x"})).await.assert_error(413, "meta");
        let body = json!({"meta": {"a": 1}}).to_string();
        stranger.json(Method::PATCH, &meta_path, &body).await.assert_error(404, "session not found");
        let unknown = format!("{path}/{}/meta", Uuid::new_v4());
        client.json(Method::PATCH, &unknown, &body).await.assert_error(404, "message not found");
        let elsewhere = meta_path.replace(&session, &client.new_session().await);
        client.json(Method::PATCH, &elsewhere, &body).await.assert_error(404, "message not found");
    })
    .await;
}

#[tokio::test]
async fn invalid_messages_are_rejected_and_leave_no_rows() {
    let config = TestConfig::default().with("ACONTEXTD_MESSAGE_PARTS", "3").with("ACONTEXTD_JSON_LIMIT", "100000");
    run_with(config, async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let path = format!("/api/v1/session/{session}/messages");
        let user = json!({"role": "user", "content": "x"});
        let calls = vec![json!({"type": "function", "function": {"name": "f", "arguments": ""}}); 3];
        let calls = json!({"role": "assistant", "content": [{"type": "text", "text": "t"}], "tool_calls": calls});
        let texts = json!({"role": "user", "content": vec![json!({"type": "text", "text": "t"}); 4]});
        for (body, text) in [
            (json!({}), "blob: is required"),
            (json!({"blob": null}), "blob: is required"),
            (json!({"blob": user, "format": "xml"}), "format: must be one of"),
            (json!({"blob": user, "format": 5}), "format: must be one of"),
            (json!({"blob": user, "meta": [1]}), "meta: must be"),
            (json!({"blob": user, "meta": {"a": "\u{0}"}}), "meta: "),
            (json!({"blob": user, "meta": {"a": "x".repeat(65_536)}}), "meta size exceeds 64KB limit"),
            (json!({"blob": 0}), "failed to normalize openai message: blob: "),
            (json!({"blob": {"role": "model"}}), "failed to normalize openai message: role: "),
            (json!({"blob": {"role": "tool", "content": "s"}, "format": "anthropic"}), "anthropic message: role: "),
            (json!({"blob": {"role": "user", "parts": [{"text": 5}]}, "format": "gemini"}), "gemini message: parts[0]"),
            (json!({"blob": {"role": "user", "parts": [{"type": "data"}]}, "format": "acontext"}), "parts[0].meta."),
            (
                json!({"blob": {"role": "user", "parts": [{"type": "file", "file_field": "f"}]}, "format": "acontext"}),
                "missing file f",
            ),
            (json!({"blob": {"role": "user", "parts": [], "meta": {"a": "\u{0}"}}, "format": "acontext"}), "meta"),
            (json!({"blob": calls}), "tool_calls: exceeds the maximum of 3 parts"),
            (json!({"blob": texts}), "content: exceeds the maximum of 3 parts"),
        ] {
            client.post(&path, body).await.assert_error(400, text);
        }
        for (body, text) in
            [("", "body: must not be empty"), ("[]", "body: "), ("{", "body: "), (&"[".repeat(9_999), "body: ")]
        {
            client.json(Method::POST, &path, body).await.assert_error(400, text);
        }
        let long = json!({"blob": {"role": "user", "content": "x".repeat(100_000)}}).to_string();
        client.json(Method::POST, &path, &long).await.assert_error(413, "the body exceeds");
        for (form, text) in [
            (Form::new().text("payload", "{not json"), "invalid payload json: payload: "),
            (Form::new().text("payload", "[]"), "invalid payload json: payload: "),
            (Form::new().text("payload", r#"{"blob": {}, "meta": 1}"#), "invalid payload json: payload: "),
            (Form::new().text("payload", r#"{"blob": {}, "format": "xml"}"#), "invalid format: format: "),
            (Form::new().text("payload", ""), "failed to normalize openai message"),
            (
                Form::new().text("payload", "{}").text("payload", "{}"),
                "payload: must not appear more than once in the form",
            ),
        ] {
            client.store_form_message(&session, form).await.assert_error(400, text);
        }
        let nowhere = format!("/api/v1/session/{}/messages", Uuid::new_v4());
        client.post(&nowhere, json!({"blob": user})).await.assert_error(404, "session not found");
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from messages").await, 0);
        // The command-line client sends the message without the field `blob`.
        assert_eq!(client.post(&path, user.clone()).await.status, StatusCode::CREATED);
        assert_eq!(client.messages(&session, "").await["items"], json!([user]));
    })
    .await;
}

#[tokio::test]
async fn a_small_body_cannot_become_a_large_message() {
    let config = TestConfig::default().with("ACONTEXTD_MESSAGE_PARTS", "100");
    run_with(config, async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let result = |id: &str, inner: usize| {
            let block = json!({"type": "tool_result", "tool_use_id": id, "content": vec![json!(1); inner]});
            json!({"role": "user", "content": [block]})
        };
        client
            .store_message(&session, "anthropic", result("t", 100))
            .await
            .assert_error(400, "content: exceeds the maximum of");
        client
            .store_message(&session, "anthropic", result(&"t".repeat(8193), 1))
            .await
            .assert_error(400, "tool_use_id");
        assert_eq!(client.store_message(&session, "anthropic", result("t", 99)).await.status, StatusCode::CREATED);
        let long = json!({"role": "tool", "tool_call_id": "t".repeat(8193), "content": "x"});
        client.store_message(&session, "openai", long).await.assert_error(400, "tool_call_id");
        let named = json!({"role": "function", "name": "f".repeat(8193), "content": "x"});
        client.store_message(&session, "openai", named).await.assert_error(400, "name");
        let mut no_text = result("t", 1);
        no_text["content"][0]["tool_use_id"] = json!({"a": "t".repeat(8193)});
        client.store_message(&session, "anthropic", no_text).await.assert_error(400, "tool_use_id");
    })
    .await;
}

#[tokio::test]
async fn keys_that_the_parser_reserves_are_rejected_or_stay_text() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let path = format!("/api/v1/session/{session}/messages");
        let raw = r#"{"$serde_json::private::RawValue":"[[1]]"}"#;
        for body in [
            format!(r#"{{"format":"anthropic","blob":{{"role":"user","content":[{{"type":"x","a":{raw}}}]}}}}"#),
            format!(r#"{{"blob":{{"role":"user","content":"x"}},"meta":{raw}}}"#),
        ] {
            client.json(Method::POST, &path, &body).await.assert_error(400, "private");
        }
        let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": raw}});
        let blob = json!({"role": "assistant", "content": format!("about {raw}"), "tool_calls": [call]});
        assert_eq!(client.store_message(&session, "openai", blob.clone()).await.status, StatusCode::CREATED);
        for format in ["openai", "anthropic", "gemini", "acontext"] {
            assert!(last_item(&client, &session, format).await["role"].is_string(), "{format}");
        }
        assert_eq!(last_item(&client, &session, "openai").await, blob);
        let input = last_item(&client, &session, "anthropic").await["content"][1]["input"].clone();
        assert_eq!(input, json!({"input": raw}), "arguments that cannot be converted are passed on as text");
    })
    .await;
}

#[tokio::test]
async fn acontext_messages_keep_unknown_fields() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let body = r#"{"format":"acontext","blob":{"role":"user","parts":[{"type":"text","text":"a","x":1}],
                       "meta":{"n":1E5,"z":-0.0,"__user_meta__":1},"weight":[2.50],"id":"mine"}}"#;
        let path = format!("/api/v1/session/{session}/messages");
        assert_eq!(client.json(Method::POST, &path, body).await.status, StatusCode::CREATED);
        let text = client.get(&format!("{path}?format=acontext")).await.text();
        for fragment in [r#""weight":[2.50]"#, r#""n":1E+5"#, r#""z":-0.0"#, r#""x":1"#] {
            assert!(text.contains(fragment) || text.contains(&fragment.replace("E+5", "e+5")), "{fragment} in {text}");
        }
        assert!(!text.contains("mine") && !text.contains("__user_meta__"), "{text}");
    })
    .await;
}

#[tokio::test]
async fn a_long_message_is_stored_like_a_short_one() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        client.store_text(&session, "short").await;
        let text = "A line with \"quotes\", an ü and a 寿司.\n".repeat(60_000);
        let stored = client.store_message(&session, "openai", json!({"role": "user", "content": text})).await;
        assert_eq!(stored.status, StatusCode::CREATED);
        assert!(stored.data()["parts"][0]["text"] == text, "the response contains the whole text");
        client.store_text(&session, "short again").await;
        let page = client.messages(&session, "format=anthropic").await;
        assert!(page["items"][1]["content"][0]["text"] == text);
        let page = client.messages(&session, "format=acontext").await;
        assert!(page["items"][1]["parts"][0]["text"] == text);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from message_slices").await, 0);
        let response = client.get(&format!("/api/v1/session/{session}/messages")).await;
        assert_eq!(response.header("content-length"), response.bytes.len().to_string());
        assert!(response.data()["items"][1]["content"] == text);
        assert_eq!(response.data()["items"][2]["content"], "short again");
        let tokens =
            client.get(&format!("/api/v1/session/{session}/token_counts")).await.data()["total_tokens"].clone();
        assert_eq!(tokens, page["this_time_tokens"]);
        assert!(tokens.as_u64().unwrap() > 500_000, "{tokens}");
    })
    .await;
}

#[tokio::test]
async fn a_long_message_is_stored_whole_or_not_at_all() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let message = json!({"role": "user", "content": "x".repeat(3 << 20)});
        app.execute("alter table message_slices add constraint no_third check (seq < 2)").await;
        let failed = client.store_message(&session, "openai", message.clone()).await;
        assert_eq!(failed.status, StatusCode::INTERNAL_SERVER_ERROR);
        let count_rows = "select (select count(*) from messages) + (select count(*) from message_slices)";
        assert_eq!(app.fetch_scalar::<i64>(count_rows).await, 0);
        app.execute("alter table message_slices drop constraint no_third").await;
        assert_eq!(client.store_message(&session, "openai", message).await.status, StatusCode::CREATED);
        assert_eq!(app.fetch_scalar::<i64>(count_rows).await, 1);
    })
    .await;
}

#[tokio::test]
async fn only_tracked_sessions_get_an_observe_job() {
    run(async |app| {
        let client = app.project().await;
        let tracked = client.new_session().await;
        let untracked = client.post("/api/v1/session", json!({"disable_task_tracking": true})).await.data();
        let untracked = untracked["id"].as_str().unwrap();
        for _ in 0..3 {
            client.store_text(&tracked, "watched").await;
            client.store_text(untracked, "not watched").await;
        }
        let status =
            async |session: &str| last_item(&client, session, "acontext").await["session_task_process_status"].clone();
        assert_eq!(status(&tracked).await, "pending");
        assert_eq!(status(untracked).await, "disable_tracking");
        let jobs: Vec<(String, Option<String>)> =
            sqlx::query_as("select payload ->> 'session', lane from jobs where kind = 'observe'")
                .fetch_all(&*app.app.db)
                .await
                .unwrap();
        assert_eq!(jobs, [(tracked.clone(), Some(format!("session:{tracked}")))]);
    })
    .await;
}

#[tokio::test]
async fn token_counts_are_for_one_session() {
    run(async |app| {
        let (client, stranger) = (app.project().await, app.project().await);
        let (session, other) = (client.new_session().await, client.new_session().await);
        client.store_text(&session, "The quick brown fox jumps over the lazy dog.").await;
        client.store_text(&session, "t1").await;
        client.store_text(&other, "something else").await;
        let path = format!("/api/v1/session/{session}/token_counts");
        assert_eq!(client.get(&path).await.data(), json!({"total_tokens": 13}));
        assert_eq!(client.messages(&session, "").await["this_time_tokens"], 13);
        assert_eq!(client.messages(&session, "limit=1").await["this_time_tokens"], 10);
        stranger.get(&path).await.assert_error(403, "does not belong");
        let nowhere = format!("/api/v1/session/{}/token_counts", Uuid::new_v4());
        client.get(&nowhere).await.assert_error(404, "session not found");
    })
    .await;
}
