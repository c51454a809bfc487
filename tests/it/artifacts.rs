//! Artifacts: storing, reading, listing, replacing and deleting them, their versions, and downloads.

use acontextd::disks::apply::{self, Change, FileChange};
use acontextd::disks::changes::Cause;
use acontextd::disks::path::FilePath;
use acontextd::ids::{DiskId, ProjectId};
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::client::{Client, Form};
use crate::support::memory::MemoryObjectStore;
use crate::support::{TestConfig, run, run_with, wait_until};

fn artifact_url(disk: &str) -> String {
    format!("/api/v1/disk/{disk}/artifact")
}

async fn get_artifact(client: &Client, disk: &str, path: &str) -> Value {
    client.get(&format!("{}?file_path={path}", artifact_url(disk))).await.data()
}

#[tokio::test]
async fn an_artifact_is_returned_as_it_was_stored() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        let meta = r#"{"author": "alice", "big": 12345678901234567890, "ratio": 2.50}"#;
        let form = Form::new().text("file_path", "/docs/").text("meta", meta).file("file", "notes.md", "# Notes\n");
        let stored = client.upload_form(&disk, form).await;
        assert_eq!(stored.status, StatusCode::CREATED, "{}", stored.text());
        assert!(stored.text().contains("12345678901234567890") && stored.text().contains("2.50"), "{}", stored.text());
        let artifact = stored.data();
        assert_eq!(
            artifact["meta"]["__artifact_info__"],
            json!({"path": "/docs/", "filename": "notes.md", "mime": "text/markdown; charset=utf-8", "size": 8})
        );
        assert_eq!(artifact["created_at"], artifact["updated_at"]);
        let response = get_artifact(&client, &disk, "/docs/notes.md").await;
        assert_eq!(response["artifact"], artifact);
        assert_eq!(response["content"], json!({"type": "text", "raw": "# Notes\n"}));
        let without_content = client
            .get(&format!("{}?file_path=/docs/notes.md&with_content=0&with_public_url=f", artifact_url(&disk)))
            .await;
        assert_eq!(without_content.data(), json!({"artifact": artifact}));
    })
    .await;
}

#[tokio::test]
async fn ls_returns_the_files_and_subdirectories_of_a_directory() {
    run(async |app| {
        let client = app.project().await;
        let (disk, other) = (client.new_disk().await, client.new_disk().await);
        for (directory, name) in [
            ("/", "root.txt"),
            ("/b/", "2.txt"),
            ("/b/", "10.txt"),
            ("/b-x/", "x.txt"),
            ("/b/deep/er/", "y.txt"),
            ("/B/", "z.txt"),
            ("/b0/", "z.txt"),
            ("/b//c/", "hidden.txt"),
            ("/ü/", "u.txt"),
            ("/a/", "a.txt"),
            ("/b/deep0/", "z.txt"),
        ] {
            client.upload(&disk, directory, name, name).await;
        }
        client.upload(&other, "/elsewhere/", "o.txt", "o").await;
        let ls = async |path: &str| {
            let listed = client.get(&format!("{}/ls?path={path}", artifact_url(&disk))).await.data();
            let names =
                listed["artifacts"].as_array().unwrap().iter().map(|a| a["filename"].clone()).collect::<Vec<_>>();
            json!([names, listed["directories"]])
        };
        assert_eq!(ls("").await, json!([["root.txt"], ["B", "a", "b", "b-x", "b0", "ü"]]));
        assert_eq!(ls("/b/").await, json!([["10.txt", "2.txt"], ["deep", "deep0"]]));
        assert_eq!(ls("/b/deep/").await, json!([[], ["er"]]));
        assert_eq!(ls("/b//").await, json!([[], ["c"]]));
        assert_eq!(ls("/none/").await, json!([[], []]));
        client
            .get(&format!("{}/ls?path=b", artifact_url(&disk)))
            .await
            .assert_error(400, "both ends of the path must be '/'");
        client.get(&format!("{}/ls?path=/../", artifact_url(&disk))).await.assert_error(400, "invalid path");
    })
    .await;
}

#[tokio::test]
async fn ls_of_a_directory_with_too_many_files_suggests_glob() {
    run_with(TestConfig::default().with("ACONTEXTD_LIST_LIMIT", "3"), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        for name in ["a", "b", "c"] {
            client.upload(&disk, "/", name, name).await;
        }
        assert_eq!(client.get(&format!("{}/ls", artifact_url(&disk))).await.status, StatusCode::OK);
        client.upload(&disk, "/", "d", "d").await;
        client.get(&format!("{}/ls", artifact_url(&disk))).await.assert_error(413, "glob");
    })
    .await;
}

#[tokio::test]
async fn a_replaced_file_keeps_its_row_and_the_latest_versions() {
    run_with(TestConfig::default().with("ACONTEXTD_FILE_VERSIONS", "3"), async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        let first = client.upload(&disk, "/", "a.txt", "content 1").await;
        for n in 2..=5 {
            client.upload(&disk, "/", "a.txt", format!("content {n}")).await;
        }
        let last = get_artifact(&client, &disk, "/a.txt").await;
        assert_eq!(last["artifact"]["created_at"], first["created_at"]);
        assert_ne!(last["artifact"]["updated_at"], first["updated_at"]);
        assert_eq!(last["content"]["raw"], "content 5");
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from artifacts").await, 1);
        let versions = "select count(*) from artifact_versions v join blobs b on b.id = v.blob_id";
        assert_eq!(app.fetch_scalar::<i64>(versions).await, 3);
        // Each version ends where the next one begins, only the last one is current, and all of them name their change.
        let chain = "select bool_and(to_revision is not distinct from next) and bool_and(actor = 'key') from (
                         select to_revision, actor, lead(from_revision) over (order by from_revision) as next
                         from artifact_versions v left join changes c on c.id = v.change_id) v";
        assert!(app.fetch_scalar::<bool>(chain).await);
    })
    .await;
}

#[tokio::test]
async fn one_condition_selects_the_state_of_a_disk_at_a_revision() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "a1").await;
        client.upload(&disk, "/", "b.txt", "b1").await;
        let revision = app.fetch_scalar::<i64>("select last_value from artifact_revision").await;
        client.upload(&disk, "/", "a.txt", "a2").await;
        client.put(&artifact_url(&disk), json!({"file_path": "/b.txt", "meta": "{\"v\": 2}"})).await;
        client.upload(&disk, "/", "c.txt", "c1").await;
        let state: Vec<(String, i64)> = sqlx::query_as(
            "select filename, size from artifact_versions
             where from_revision <= $1 and (to_revision is null or to_revision > $1) order by 1",
        )
        .bind(revision)
        .fetch_all(&*app.app.db)
        .await
        .unwrap();
        assert_eq!(state, [("a.txt".to_owned(), 2), ("b.txt".to_owned(), 2)]);
        assert_eq!(
            app.fetch_scalar::<i64>("select count(*) from artifact_versions where to_revision is null").await,
            3
        );
    })
    .await;
}

#[tokio::test]
async fn concurrent_uploads_of_one_file_form_one_version_chain() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        let writers = (0..16).map(|n| client.upload(&disk, "/", "a.txt", format!("content {n}")));
        futures_util::future::join_all(writers).await;
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from artifacts").await, 1);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from artifact_versions").await, 16);
        assert_eq!(
            app.fetch_scalar::<i64>("select count(*) from artifact_versions where to_revision is null").await,
            1
        );
        let chain = "select bool_and(to_revision is not distinct from next) from (
                         select to_revision, lead(from_revision) over (order by from_revision) as next
                         from artifact_versions) v";
        assert!(app.fetch_scalar::<bool>(chain).await);
        let newest = client.download(&disk, "/a.txt").await.unwrap();
        let stored: String =
            app.fetch_scalar("select sha256 from artifact_versions order by from_revision desc limit 1").await;
        assert_eq!(hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &newest)), stored);
    })
    .await;
}

#[tokio::test]
async fn the_old_content_is_read_until_the_new_one_is_stored() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "old").await;
        let permits = app.blobs.puts.acquire_many(MemoryObjectStore::PUTS).await.unwrap();
        let replacing = client.upload(&disk, "/", "a.txt", "new");
        let reading = async {
            wait_until("the upload has begun", async || {
                app.fetch_scalar::<i64>("select count(*) from blobs where state = 'pending'").await == 1
            })
            .await;
            assert_eq!(client.download(&disk, "/a.txt").await.unwrap(), b"old");
            drop(permits);
        };
        tokio::join!(replacing, reading);
        assert_eq!(client.download(&disk, "/a.txt").await.unwrap(), b"new");
    })
    .await;
}

#[tokio::test]
async fn user_metadata_of_a_file_is_replaced_as_a_whole() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload_form(&disk, Form::new().text("meta", r#"{"a": 1, "b": 2}"#).file("file", "a.txt", "x")).await;
        let put = async |body: Value| client.put(&artifact_url(&disk), body).await;
        let changed = put(json!({"file_path": "a.txt", "meta": "{\"b\": 3}"})).await.data();
        let mut meta = changed["artifact"]["meta"].clone();
        meta.as_object_mut().unwrap().remove("__artifact_info__");
        assert_eq!(meta, json!({"b": 3}));
        assert_eq!(get_artifact(&client, &disk, "/a.txt").await["artifact"], changed["artifact"]);
        for (body, status, text) in [
            (json!({"file_path": "/a.txt", "meta": "{broken"}), 400, "invalid meta JSON format"),
            (json!({"file_path": "/a.txt", "meta": "[1]"}), 400, "invalid meta JSON format"),
            (json!({"file_path": "/a.txt", "meta": {"v": 2}}), 400, "meta"),
            (json!({"file_path": "/a.txt", "meta": ""}), 400, "meta"),
            (json!({"file_path": "/a.txt"}), 400, "meta"),
            (json!({"meta": "{}"}), 400, "file_path"),
            (json!({"file_path": "/a.txt", "meta": "{\"__artifact_info__\": 1}"}), 400, "reserved key"),
            (json!({"file_path": "/a.txt", "meta": "{\"a\": \"\\u0000\"}"}), 400, "NUL"),
            (json!({"file_path": "/a.txt", "meta": "{\"a\": 1e200000}"}), 400, "meta"),
            (json!({"file_path": "/../a.txt", "meta": "{}"}), 400, "invalid path"),
            (json!({"file_path": "/a\u{0}.txt", "meta": "{}"}), 400, "NUL"),
            (json!({"file_path": "/none.txt", "meta": "{}"}), 404, "artifact not found"),
            (json!({"file_path": "/", "meta": "{}"}), 404, "artifact not found"),
        ] {
            put(body).await.assert_error(status, text);
        }
        assert_eq!(get_artifact(&client, &disk, "/a.txt").await["artifact"], changed["artifact"]);
    })
    .await;
}

#[tokio::test]
async fn a_file_can_be_deleted_by_query_parameter_or_body() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        for name in ["a.txt", "b.txt", "c.txt", "d.txt"] {
            client.upload(&disk, "/", name, name).await;
        }
        client.upload(&disk, "/", "a.txt", "a second content").await;
        let delete = async |query: &str, body: &str| {
            client.json(Method::DELETE, &format!("{}{query}", artifact_url(&disk)), body).await
        };
        assert_eq!(delete("?file_path=/a.txt", "").await.json(), json!({"code": 0, "msg": ""}));
        assert_eq!(delete("?path=/b.txt", "").await.status, StatusCode::OK);
        assert_eq!(delete("", r#"{"file_path": "c.txt"}"#).await.status, StatusCode::OK);
        delete("?file_path=/a.txt", "").await.assert_error(404, "artifact not found");
        delete("?file_path=/", "").await.assert_error(404, "artifact not found");
        delete("", "").await.assert_error(400, "file_path");
        delete("?file_path=/d/../d.txt", "").await.assert_error(400, "invalid path");
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from artifacts").await, 1);
        assert_eq!(
            app.fetch_scalar::<i64>("select count(*) from artifact_versions").await,
            1,
            "its versions are deleted too"
        );
    })
    .await;
}

#[tokio::test]
async fn content_that_does_not_parse_is_omitted_but_can_be_downloaded() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        for (name, bytes, content) in [
            ("a.json", &b"{\"k\": 1}"[..], json!({"type": "json", "raw": "{\"k\": 1}"})),
            ("b.json", b"{\"k\": ", Value::Null),
            ("c.csv", b"a,b\n1,2\n", json!({"type": "csv", "raw": "a,b\n1,2\n"})),
            ("d.csv", b"a,b\n1\n", Value::Null),
            ("e.py", b"print(1)\n", json!({"type": "code", "raw": "print(1)\n"})),
            ("f.bin", b"\x00\x01\x02", Value::Null),
            ("g.txt", b"\xe9 text", json!({"type": "text", "raw": "\u{fffd} text"})),
            ("h.txt", b"", json!({"type": "text", "raw": ""})),
        ] {
            client.upload(&disk, "/", name, bytes).await;
            assert_eq!(get_artifact(&client, &disk, name).await["content"], content, "{name}");
            assert_eq!(client.download(&disk, name).await.unwrap(), bytes, "{name}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_download_supports_ranges_conditions_filenames_and_head() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "größe 1.txt", "0123456789").await;
        client.upload(&disk, "/", "page.html", "<html><script>alert(1)</script></html>").await;
        let path = format!("{}/download?file_path=/gr%C3%B6%C3%9Fe%201.txt", artifact_url(&disk));
        let whole = client.get(&path).await;
        assert_eq!((whole.status, whole.text()), (StatusCode::OK, "0123456789".into()), "{path}");
        assert_eq!(whole.header("content-length"), "10");
        assert_eq!(whole.header("content-type"), "text/plain; charset=utf-8");
        assert_eq!(whole.header("x-content-type-options"), "nosniff");
        assert_eq!(whole.header("content-security-policy"), "sandbox");
        assert!(whole.header("content-disposition").starts_with("inline; "), "{}", whole.header("content-disposition"));
        assert!(whole.header("content-disposition").contains("filename*=UTF-8''gr%C3%B6%C3%9Fe%20"));
        let etag = whole.header("etag").to_owned();
        assert_eq!(etag.len(), 66);

        let part = client.get_with(&path, "range", "bytes=2-5").await;
        assert_eq!(
            (part.status.as_u16(), part.text().as_str(), part.header("content-range")),
            (206, "2345", "bytes 2-5/10")
        );
        let outside = client.get_with(&path, "range", "bytes=10-").await;
        outside.assert_error(416, "Range: contains no byte of the file");
        assert_eq!(outside.header("content-range"), "bytes */10");
        let same = client.get_with(&path, "if-none-match", &etag).await;
        assert_eq!((same.status.as_u16(), same.bytes.len(), same.header("etag")), (304, 0, etag.as_str()));
        let head = client.send(client.request(Method::HEAD, &path).body(axum::body::Body::empty()).unwrap()).await;
        assert_eq!((head.status, head.bytes.len(), head.header("content-length")), (StatusCode::OK, 0, "10"));

        let page = client.get(&format!("{}/download?file_path=page.html", artifact_url(&disk))).await;
        assert!(page.header("content-disposition").starts_with("attachment; "));
        for (query, status, text) in [
            ("", 400, "file_path"),
            ("?file_path=/none", 404, "artifact not found"),
            ("?file_path=/../a", 400, "invalid path"),
        ] {
            client.get(&format!("{}/download{query}", artifact_url(&disk))).await.assert_error(status, text);
        }
    })
    .await;
}

#[tokio::test]
async fn a_delete_that_finds_no_row_leaves_a_recreated_file_alone() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        client.upload(&disk, "/", "a.txt", "content").await;
        let (project, disk_id) = (ProjectId(client.project()), DiskId(disk.parse().unwrap()));
        let delete = [FileChange { path: FilePath::parse("/a.txt").unwrap(), change: Change::Delete }];
        // The delete finds no row in its first step, because the upload that recreates the file is committed later.
        app.execute("delete from artifacts").await;
        let mut tx = app.app.db.begin().await.unwrap();
        apply::apply(&mut tx, project, disk_id, &delete, Cause::REQUEST, 50).await.unwrap().unwrap();
        tx.commit().await.unwrap();
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from artifact_versions").await, 1);
    })
    .await;
}

#[tokio::test]
async fn concurrent_uploads_and_deletes_leave_a_complete_file_or_none() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        let run_client = async |n: usize| {
            for round in 0..12 {
                if (n + round).is_multiple_of(3) {
                    client.upload(&disk, "/", "a.txt", format!("content {n} {round}")).await;
                } else {
                    let deleted = client.delete(&format!("{}?file_path=a.txt", artifact_url(&disk))).await;
                    assert!([200, 404].contains(&deleted.status.as_u16()), "{}", deleted.text());
                }
            }
        };
        futures_util::future::join_all((0..8).map(run_client)).await;
        client.upload(&disk, "/", "a.txt", "the last one").await;
        assert_eq!(client.download(&disk, "a.txt").await.unwrap(), b"the last one");
        let incomplete =
            "select count(*) from artifacts a full join artifact_versions v using (disk_id, path, filename)
                    where a.id is null or v.blob_id is null";
        assert_eq!(app.fetch_scalar::<i64>(incomplete).await, 0);
    })
    .await;
}

#[tokio::test]
async fn the_meta_limit_applies_to_the_stored_size() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        let meta = format!("{{\"a\": [{}]}}", vec!["1e1000"; 5_000].join(","));
        client
            .upload_form(&disk, Form::new().text("meta", &meta).file("file", "a", "x"))
            .await
            .assert_error(413, "meta");
        let response = client.put(&artifact_url(&disk), json!({"file_path": "a", "meta": meta})).await;
        response.assert_error(413, "meta");
    })
    .await;
}
