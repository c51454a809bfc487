//! Each content of a project is stored once, regardless of how many files have it, in which order and on which route.

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::digest;
use axum::http::StatusCode;
use futures_util::future::join_all;
use proptest::prelude::{Strategy, any};
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use crate::encryption::encrypt;
use crate::support::client::{Client, Form, TestResponse};
use crate::support::zip::zip_archive;
use crate::support::{TestApp, run};

/// The number of cases for each property.
const CASES: usize = 24;
const SKILL_MD: &str = "---\nname: a-skill\ndescription: An example\n---\n";

/// The files of two concurrent requests, each as the number of its content.
type Requests = [Vec<usize>; 2];

/// Returns the content with a number: empty, short, or long enough to be spooled to a file.
fn content(number: usize) -> Vec<u8> {
    match number {
        0 => Vec::new(),
        1 => b"short".to_vec(),
        number => vec![u8::try_from(number).unwrap(); 200_000 * (number - 1)],
    }
}

fn sha256(number: usize) -> String {
    hex::encode(digest::digest(&digest::SHA256, &content(number)))
}

/// Generates cases: whether the project is encrypted, and two requests with many equal files.
fn cases(files: std::ops::RangeInclusive<usize>) -> Vec<(bool, Requests)> {
    let contents = || proptest::collection::vec(0_usize..4, files.clone());
    let case = (any::<bool>(), [contents(), contents()]);
    let mut runner = TestRunner::deterministic();
    (0..CASES).map(|_| case.new_tree(&mut runner).unwrap().current()).collect()
}

async fn project(app: &TestApp, is_encrypted: bool) -> Client {
    let client = app.project().await;
    if is_encrypted {
        encrypt(app, &client).await;
    }
    client
}

/// Asserts that the project's live blobs with references are the contents of the requests, each once, and that their
/// objects exist.
async fn assert_stored_once(app: &TestApp, client: &Client, requests: &Requests, extra: &[String]) {
    let live: Vec<(String, String)> = sqlx::query_as(
        "select b.sha256, b.object_key from blobs b join blob_references r on r.blob_id = b.id
         where b.project_id = $1 and b.state = 'live' group by 1, 2 order by 1",
    )
    .bind(client.project())
    .fetch_all(&*app.app.db)
    .await
    .unwrap();
    let expected: BTreeSet<_> = requests.iter().flatten().map(|number| sha256(*number)).collect();
    let expected: Vec<_> =
        expected.into_iter().chain(extra.iter().cloned()).collect::<BTreeSet<_>>().into_iter().collect();
    assert_eq!(live.iter().map(|(sha256, _)| sha256.clone()).collect::<Vec<_>>(), expected, "{requests:?}");
    let keys = app.blobs.keys();
    assert!(live.iter().all(|(_, key)| keys.contains(key)), "{requests:?}: an object is missing");
}

#[track_caller]
fn assert_created(response: &TestResponse, requests: &Requests) -> Value {
    assert_eq!(response.status, StatusCode::CREATED, "{requests:?}: {}", response.text());
    response.data()
}

#[tokio::test]
async fn two_equal_files_of_one_message_are_stored() {
    run(async |app| {
        let client = app.project().await;
        let session = client.new_session().await;
        let parts = json!([{"type": "file", "file_field": "a"}, {"type": "file", "file_field": "b"}]);
        let payload = json!({"format": "acontext", "blob": {"role": "user", "parts": parts}});
        let form =
            Form::new().text("payload", &payload.to_string()).file("a", "a.txt", "equal").file("b", "b.txt", "equal");
        let message = client.store_form_message(&session, form).await;
        assert_eq!(message.status, StatusCode::CREATED, "{}", message.text());
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from blobs").await, 1);
    })
    .await;
}

#[tokio::test]
async fn messages_with_equal_files_store_each_content_once() {
    run(async |app| {
        for (is_encrypted, requests) in cases(1..=6) {
            let client = project(&app, is_encrypted).await;
            let session = client.new_session().await;
            let sent = requests.iter().map(|files| {
                let field = |index: usize| format!("f{index}");
                let parts = (0..files.len()).map(|index| json!({"type": "file", "file_field": field(index)}));
                let blob = json!({"role": "user", "parts": parts.collect::<Vec<_>>()});
                let form = Form::new().text("payload", &json!({"format": "acontext", "blob": blob}).to_string());
                let form = files.iter().enumerate().fold(form, |form, (index, number)| {
                    form.file(&field(index), &format!("{index}.t{}", index % 2), content(*number))
                });
                client.store_form_message(&session, form)
            });
            for (response, files) in join_all(sent).await.iter().zip(&requests) {
                let message = assert_created(response, &requests);
                for (part, number) in message["parts"].as_array().unwrap().iter().zip(files) {
                    let key = part["asset"]["s3_key"].as_str().unwrap();
                    let path = format!("/api/v1/session/{session}/asset/download?s3_key={key}");
                    assert!(client.get(&path).await.bytes == content(*number), "{requests:?}: {key}");
                }
            }
            assert_stored_once(&app, &client, &requests, &[]).await;
        }
    })
    .await;
}

#[tokio::test]
async fn archives_with_equal_files_store_each_content_once() {
    run(async |app| {
        let skill_md = hex::encode(digest::digest(&digest::SHA256, SKILL_MD.as_bytes()));
        for (is_encrypted, requests) in cases(0..=8) {
            let client = project(&app, is_encrypted).await;
            let sent = requests.iter().map(|files| {
                let files = files.iter().enumerate().map(|(index, number)| (format!("{index}.bin"), content(*number)));
                let files = files.chain([("SKILL.md".to_owned(), SKILL_MD.into())]).collect::<Vec<_>>();
                client.upload_skill_form(Form::new().file("file", "skill.zip", zip_archive(&files)))
            });
            for (response, files) in join_all(sent).await.iter().zip(&requests) {
                let skill = assert_created(response, &requests);
                let disk = skill["disk_id"].as_str().unwrap();
                for (index, number) in files.iter().enumerate() {
                    let downloaded = client.download(disk, &format!("{index}.bin")).await.unwrap();
                    assert!(downloaded == content(*number), "{requests:?}: {index}.bin");
                }
            }
            assert_stored_once(&app, &client, &requests, std::slice::from_ref(&skill_md)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn concurrent_uploads_of_equal_files_store_each_content_once() {
    run(async |app| {
        for (is_encrypted, requests) in cases(1..=3) {
            let client = project(&app, is_encrypted).await;
            let disk = client.new_disk().await;
            let files: BTreeMap<String, usize> = requests
                .iter()
                .flatten()
                .enumerate()
                .map(|(index, number)| (format!("{index}.bin"), *number))
                .collect();
            let sent = files.iter().map(|(name, number)| client.upload(&disk, "/", name, content(*number)));
            join_all(sent).await;
            for (name, number) in &files {
                assert!(client.download(&disk, name).await.unwrap() == content(*number), "{requests:?}: {name}");
            }
            assert_stored_once(&app, &client, &requests, &[]).await;
        }
    })
    .await;
}

#[tokio::test]
async fn concurrently_created_spaces_store_the_default_skills_once() {
    run(async |app| {
        for is_encrypted in [false, true] {
            let client = project(&app, is_encrypted).await;
            for response in join_all((0..8).map(|_| client.post("/api/v1/learning_spaces", json!({})))).await {
                assert_eq!(response.status, StatusCode::CREATED, "{}", response.text());
            }
            let count = "select count(*) from blobs where project_id = $1 and state = 'live'";
            let count: i64 = sqlx::query_scalar(count).bind(client.project()).fetch_one(&*app.app.db).await.unwrap();
            assert_eq!(count, 2);
        }
    })
    .await;
}
