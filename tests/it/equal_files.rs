//! Messages with two files of equal content, in each format.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::acceptors;
use crate::support::client::{Client, Form};
use crate::support::run;

const PIXEL: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mP4z8AAAAMBAQD3A0FDAAAAAElFTkSuQmCC";

/// A kind of files, and how the blocks for them begin in each format.
struct Sample {
    part_type: &'static str,
    content: Vec<u8>,
    names: [&'static str; 2],
    blocks: [(&'static str, &'static str); 3],
}

fn samples() -> Vec<Sample> {
    let pixel = STANDARD.decode(PIXEL).unwrap();
    let pdf = b"%PDF-1.4\n%%EOF\n".to_vec();
    let media = [("openai", "image_url"), ("anthropic", "image"), ("gemini", "inlineData")];
    let documents = [("openai", "file"), ("anthropic", "document"), ("gemini", "inlineData")];
    vec![
        Sample { part_type: "image", content: pixel.clone(), names: ["a.png", "b.png"], blocks: media },
        Sample { part_type: "image", content: pixel, names: ["a.png", "a.png"], blocks: media },
        Sample { part_type: "file", content: pdf.clone(), names: ["a.pdf", "b.pdf"], blocks: documents },
        Sample { part_type: "file", content: pdf, names: ["a.pdf", "a.pdf"], blocks: documents },
        Sample { part_type: "file", content: b"notes".to_vec(), names: ["a.txt", "b.txt"], blocks: documents },
        Sample { part_type: "file", content: b"notes".to_vec(), names: ["a.txt", "a.txt"], blocks: documents },
    ]
}

/// Returns the parts of a message with both files.
fn parts(sample: &Sample) -> Vec<Value> {
    ["first", "second"].map(|field| json!({"type": sample.part_type, "file_field": field})).to_vec()
}

/// Stores an `acontext` message of a user with both files.
async fn store_files(client: &Client, session: &str, sample: &Sample, parts: &[Value]) {
    let payload = json!({"format": "acontext", "blob": {"role": "user", "parts": parts}});
    let form = Form::new().text("payload", &payload.to_string()).file("first", sample.names[0], &sample.content).file(
        "second",
        sample.names[1],
        &sample.content,
    );
    client.store_form_message(session, form).await.assert_status(201);
}

async fn read(client: &Client, session: &str, format: &str, with_urls: bool) -> Vec<Value> {
    let query = format!("format={format}&with_asset_public_url={with_urls}");
    client.messages(session, &query).await["items"].as_array().unwrap().clone()
}

/// Returns the blocks of a type that are anywhere in a value.
fn blocks<'a>(value: &'a Value, kind: &str) -> Vec<&'a Value> {
    let is_block =
        value.get("type").is_some_and(|name| name == kind) || (kind == "inlineData" && value.get(kind).is_some());
    if is_block {
        return vec![value];
    }
    match value {
        Value::Array(list) => list.iter().flat_map(|entry| blocks(entry, kind)).collect(),
        Value::Object(object) => object.values().flat_map(|entry| blocks(entry, kind)).collect(),
        _ => Vec::new(),
    }
}

/// Returns the names of the files in blocks. Images have none.
fn names(blocks: &[&Value]) -> Vec<String> {
    let name =
        |block: &&Value| block["file"]["filename"].as_str().or_else(|| block["title"].as_str()).map(str::to_owned);
    blocks.iter().filter_map(name).collect()
}

/// Checks that each provider accepts the session in its format, and that both files are there.
async fn check_in_each_format(client: &Client, session: &str, sample: &Sample) {
    for ((format, kind), with_urls) in sample.blocks.into_iter().flat_map(|block| [(block, true), (block, false)]) {
        let items = read(client, session, format, with_urls).await;
        let context = format!("{:?} in {format}, with URLs {with_urls}: {items:?}", sample.names);
        assert_eq!(acceptors::check(format, &items), Ok(()), "{context}");
        let items = Value::Array(items);
        let blocks = blocks(&items, kind);
        assert_eq!(blocks.len(), 2, "{context}");
        if sample.part_type == "file" && format != "gemini" {
            assert_eq!(names(&blocks), sample.names, "{context}");
        }
    }
}

#[tokio::test]
async fn files_of_equal_content_are_all_read_in_every_format() {
    run(async |app| {
        let client = app.project().await;
        for sample in samples() {
            let session = client.new_session().await;
            store_files(&client, &session, &sample, &parts(&sample)).await;
            check_in_each_format(&client, &session, &sample).await;
        }
    })
    .await;
}

#[tokio::test]
async fn files_of_equal_content_in_a_tool_result_are_all_read_in_every_format() {
    run(async |app| {
        let client = app.project().await;
        for sample in samples() {
            let session = client.new_session().await;
            let call = json!({"type": "tool-call", "meta": {"id": "call_1", "name": "look", "arguments": "{}"}});
            let text = json!({"type": "text", "text": "look"});
            for blob in [json!({"role": "user", "parts": [text]}), json!({"role": "assistant", "parts": [call]})] {
                client.store_message(&session, "acontext", blob).await.assert_status(201);
            }
            let mut parts = parts(&sample);
            for part in &mut parts {
                part["meta"] = json!({"tool_call_id": "call_1"});
            }
            parts.insert(0, json!({"type": "tool-result", "text": "done", "meta": {"tool_call_id": "call_1"}}));
            store_files(&client, &session, &sample, &parts).await;
            check_in_each_format(&client, &session, &sample).await;
        }
    })
    .await;
}
