//! Archives of skills that are broken, hostile or too large, and failures while an archive is extracted.

use axum::body::Body;
use axum::http::{Method, StatusCode, header};
use serde_json::Value;

use crate::support::client::{Client, Form, TestResponse};
use crate::support::memory::MemoryObjectStore;
use crate::support::zip::{self, Entry, RawArchive, archive, deflated, stored, zip_archive};
use crate::support::{TestApp, TestConfig, run, run_with, wait_until};

const FRONT_MATTER: &str = "---\nname: a\ndescription: b\n---\n";
const SKILLS: &str = "/api/v1/agent_skills";

async fn send(client: &Client, bytes: impl AsRef<[u8]>) -> TestResponse {
    let (kind, body) = Form::new().text("user", "alice").file("file", "skill.zip", bytes).finish();
    let request = client.request(Method::POST, SKILLS).header(header::CONTENT_TYPE, kind);
    client.send(request.body(Body::from(body)).unwrap()).await
}

/// Returns the skill that was created.
#[track_caller]
fn created_skill(response: &TestResponse) -> Value {
    assert_eq!(response.status, StatusCode::CREATED, "{}", response.text());
    response.data()
}

fn skill_md() -> Entry {
    stored("SKILL.md", FRONT_MATTER)
}

/// Returns an archive of a skill with one more file.
fn archive_with(entry: Entry) -> Vec<u8> {
    archive(&[skill_md(), entry])
}

/// Asserts that nothing is stored that a client or another program could find.
async fn assert_nothing_stored(app: &TestApp) {
    let rows =
        "select (select count(*) from agent_skills) + (select count(*) from disks) + (select count(*) from artifacts)
        + (select count(*) from artifact_versions) + (select count(*) from users)
        + (select count(*) from blobs where state <> 'pending')";
    assert_eq!(app.fetch_scalar::<i64>(rows).await, 0);
    // The thread that extracts the archive may end after the response is sent.
    wait_until("no upload is spooled to a file", async || app.spooled_files() == 0).await;
}

/// Returns invalid archives, and a part of the error message for each.
fn invalid_archives() -> Vec<(Vec<u8>, &'static str)> {
    let a = |content: &str| deflated("a.txt", content);
    let valid = archive_with(a("some words"));
    vec![
        (b"no archive".to_vec(), "not a readable zip archive"),
        (Vec::new(), "not a readable zip archive"),
        (valid[..valid.len() - 1].to_vec(), "not a readable zip archive"),
        (valid[10..].to_vec(), "not a readable zip archive"),
        (RawArchive::new(&[skill_md()]).finish_zip64(1 << 32), "not a readable zip archive"),
        (archive(&[]), "SKILL.md file is required"),
        (archive_with(stored("../../etc/passwd", "x")), "'../../etc/passwd' must not contain `..`"),
        (archive_with(stored("/etc/passwd", "x")), "'/etc/passwd' is an absolute path"),
        (archive_with(stored("C:/a", "x")), "'C:/a' is an absolute path"),
        (archive_with(stored("a\\b", "x")), "has a backslash"),
        (archive_with(stored("a\0b", "x")), "'a\\0b' has control characters"),
        (archive_with(stored("a\x1b[2Jb", "x")), "has control characters"),
        (archive_with(stored("n".repeat(2000), "x")), "1024"),
        (archive_with(stored("skill.MD", "x")), "'skill.MD' duplicates another entry"),
        (archive(&[skill_md(), stored("a", ""), stored("a/b", "")]), "'a' is both a file and a directory"),
        (
            archive_with(Entry { version_made_by: zip::UNIX, mode: 0o120_777, ..stored("a", "/etc") }),
            "'a' is not a regular file",
        ),
        (archive_with(Entry { flags: zip::ENCRYPTED, ..a("x") }), "'a.txt' is encrypted"),
        (archive_with(Entry { method: 93, ..a("x") }), "'a.txt' uses an unsupported compression method"),
        (
            archive_with(Entry { flags: zip::DATA_DESCRIPTOR | zip::UTF8, crc: 1, ..a("some words") }),
            "'a.txt' is corrupt",
        ),
        (archive_with(Entry { size: 3, ..a("some words") }), "'a.txt' is corrupt"),
        (archive_with(Entry { local_name: Some(b"b.txt".to_vec()), ..a("x") }), "not a readable zip archive"),
        (archive_with(Entry { offset: Some(7), ..a("x") }), "not a readable zip archive"),
    ]
}

#[tokio::test]
async fn invalid_archives_are_rejected_and_leave_nothing() {
    run(async |app| {
        let client = app.project().await;
        for (bytes, text) in invalid_archives() {
            let response = send(&client, bytes).await;
            response.assert_error(400, text);
            assert!(response.json()["msg"].as_str().unwrap().starts_with("parameter error: "), "{}", response.text());
        }
        assert_nothing_stored(&app).await;
        assert!(created_skill(&send(&client, archive_with(stored("a.txt", "x"))).await)["user_id"].is_string());
    })
    .await;
}

#[tokio::test]
async fn invalid_front_matter_is_rejected_and_leaves_nothing() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..12 {
        let aliases = vec![format!("*a{}", n - 1); 10].join(", ");
        bomb = format!("{bomb}a{n}: &a{n} [{aliases}]\n");
    }
    let nested = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    run(async |app| {
        let client = app.project().await;
        for (front_matter, text) in [
            (format!("{bomb}name: a\ndescription: b"), "parse SKILL.md YAML"),
            (format!("name: a\ndescription: b\nc: {nested}"), "parse SKILL.md YAML"),
            (format!("name: a\ndescription: b\nc: {}", "{a: ".repeat(100_000)), "parse SKILL.md YAML"),
            ("name: !!binary [a]\ndescription: b".into(), "parse SKILL.md YAML"),
            ("name: &a [*a]\ndescription: b".into(), "parse SKILL.md YAML"),
            ("<<: *nowhere\nname: a\ndescription: b".into(), "parse SKILL.md YAML"),
            ("name: \"a\\0b\"\ndescription: b".into(), "name in SKILL.md must not contain control characters"),
            ("name: \"a\\nb\"\ndescription: b".into(), "name in SKILL.md must not contain control characters"),
            ("name: ..\ndescription: b".into(), "name in SKILL.md must not be"),
            ("name: a\ndescription: \"\\0\"".into(), "description in SKILL.md"),
            (format!("name: {}\ndescription: b", "n".repeat(300)), "name in SKILL.md must not be longer"),
            (format!("name: a\ndescription: {}", "d".repeat(20_000)), "description in SKILL.md must not be longer"),
            ("description: b".into(), "name is required in SKILL.md"),
            (String::new(), "must contain YAML front matter"),
        ] {
            send(&client, archive(&[stored("a.txt", "x"), deflated("SKILL.md", front_matter)]))
                .await
                .assert_error(400, text);
        }
        assert_nothing_stored(&app).await;
    })
    .await;
}

#[tokio::test]
async fn archives_that_are_too_large_return_413() {
    run(async |app| {
        let client = app.project().await;
        let huge = format!("{FRONT_MATTER}{}", "x".repeat(10 << 20));
        send(&client, archive(&[deflated("SKILL.md", huge)])).await.assert_error(413, "'SKILL.md' exceeds the maximum");
        // An archive of 60 kB whose content is a thousand times as large.
        let zeros = deflated("", vec![0; 10 << 20]);
        let bomb: Vec<_> = (0..6).map(|n| Entry { name: format!("{n}").into_bytes(), ..zeros.clone() }).collect();
        let bomb = archive(&[vec![skill_md()], bomb].concat());
        assert!(bomb.len() < 64_000, "{}", bomb.len());
        send(&client, bomb).await.assert_error(413, "maximum of 52428800 bytes in total");
        for size in [u32::MAX - 1, 51 << 20] {
            let entry = Entry { name: b"a".to_vec(), size, ..zeros.clone() };
            send(&client, archive_with(entry)).await.assert_error(413, "'a' exceeds the maximum");
        }
        // The archive declares a size that is too small.
        let false_size = Entry { name: b"a".to_vec(), size: 10, ..zeros.clone() };
        send(&client, archive_with(false_size)).await.assert_error(400, "'a' is corrupt");
        let false_size = Entry { name: b"SKILL.md".to_vec(), size: 10, ..zeros };
        send(&client, archive(&[false_size])).await.assert_error(400, "'SKILL.md' is corrupt");
        let many: Vec<_> = (0..70_000).map(|n| stored(format!("{n}"), "")).collect();
        send(&client, RawArchive::new(&many).finish_zip64(70_000)).await.assert_error(400, "file: ");
        assert_nothing_stored(&app).await;
    })
    .await;
}

#[tokio::test]
async fn the_limits_are_configurable() {
    let config = TestConfig::default()
        .with("ACONTEXTD_SKILL_FILES", "3")
        .with("ACONTEXTD_SKILL_UNPACKED", "4KiB")
        .with("ACONTEXTD_SKILL_LIMIT", "8KiB")
        .with("ACONTEXTD_SKILL_MD_LIMIT", "1KiB")
        .with("ARTIFACT_MAX_UPLOAD_SIZE_BYTES", "2KiB");
    run_with(config, async |app| {
        let client = app.project().await;
        let files = |count: usize| {
            let more = (1..count).map(|n| stored(format!("{n}"), "x"));
            archive(&std::iter::once(skill_md()).chain(more).collect::<Vec<_>>())
        };
        let sized = |sizes: &[usize]| {
            let more = sizes.iter().zip(0..).map(|(size, n)| deflated(format!("{n}"), vec![0; *size]));
            archive(&std::iter::once(skill_md()).chain(more).collect::<Vec<_>>())
        };
        let front_matter = |size: usize| archive(&[stored("SKILL.md", format!("{FRONT_MATTER:<size$}"))]);
        send(&client, files(4)).await.assert_error(400, "exceeds the maximum of 3 files");
        send(&client, sized(&[2049])).await.assert_error(413, "'0' exceeds the maximum of 2048 bytes");
        send(&client, sized(&[2048, 2048])).await.assert_error(413, "the maximum of 4096 bytes in total");
        send(&client, front_matter(1025)).await.assert_error(413, "'SKILL.md' exceeds the maximum of 1024 bytes");
        let long =
            RawArchive { comment: vec![b'c'; 8000], ..RawArchive::new(&[skill_md(), stored("a", "x".repeat(200))]) };
        send(&client, long.finish()).await.assert_error(413, "file size exceeds maximum allowed size of 0.01MB");
        assert_nothing_stored(&app).await;
        for bytes in [files(3), sized(&[2048]), sized(&[2000, 2000]), front_matter(1024)] {
            created_skill(&send(&client, bytes).await);
        }
    })
    .await;
}

#[tokio::test]
async fn an_archive_with_a_corrupt_last_file_leaves_pending_blobs() {
    run(async |app| {
        let client = app.project().await;
        let mut files: Vec<_> = (0..30).map(|n| deflated(format!("{n}.txt"), format!("{n}").repeat(70_000))).collect();
        files.insert(0, skill_md());
        files.push(Entry { crc: 1, ..stored("last.txt", "x") });
        send(&client, archive(&files)).await.assert_error(400, "'last.txt' is corrupt");
        assert_nothing_stored(&app).await;
        let pending = app.fetch_scalar::<i64>("select count(*) from blobs where state = 'pending'").await;
        assert_eq!(pending, i64::try_from(app.blobs.keys().len()).unwrap());
        files.pop();
        let skill = created_skill(&send(&client, archive(&files)).await);
        assert_eq!(skill["file_index"].as_array().unwrap().len(), 31);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from blobs where state = 'live'").await, 31);
    })
    .await;
}

#[tokio::test]
async fn a_failure_of_the_object_store_is_a_503_and_can_be_retried() {
    run(async |app| {
        let client = app.project().await;
        let files: Vec<_> = (0..60).map(|n| (format!("{n}.txt"), format!("{n}").repeat(200_000))).collect();
        let bytes = zip_archive(&[vec![("SKILL.md".to_owned(), FRONT_MATTER.to_owned())], files.clone()].concat());
        app.blobs.set_down(true);
        let response = send(&client, &bytes).await;
        response.assert_error(503, "object store");
        assert_eq!(response.header("retry-after"), "2");
        assert_nothing_stored(&app).await;
        app.blobs.set_down(false);
        // Some files are being stored when the store fails for the files after them.
        let permits = app.blobs.puts.acquire_many(MemoryObjectStore::PUTS).await.unwrap();
        let fail = async {
            wait_until("files wait for the store", async || app.spooled_files() >= 11).await;
            app.blobs.set_down(true);
            drop(permits);
        };
        let (response, ()) = tokio::join!(send(&client, &bytes), fail);
        response.assert_error(503, "object store");
        assert_nothing_stored(&app).await;
        app.blobs.set_down(false);
        let skill = created_skill(&send(&client, &bytes).await);
        let index = skill["file_index"].as_array().unwrap();
        let names: Vec<_> = index.iter().skip(1).map(|file| file["path"].as_str().unwrap()).collect();
        assert_eq!(names, files.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>());
        let disk = skill["disk_id"].as_str().unwrap();
        assert_eq!(client.download(disk, "59.txt").await.unwrap(), files[59].1.as_bytes());
        wait_until("no upload is spooled to a file", async || app.spooled_files() == 0).await;
    })
    .await;
}

#[tokio::test]
async fn a_skill_is_completed_after_its_client_disconnects() {
    run(async |app| {
        let client = app.project().await;
        let files: Vec<_> = (0..40).map(|n| (format!("{n}.txt"), format!("{n}").repeat(200_000))).collect();
        let bytes = zip_archive(&[vec![("SKILL.md".to_owned(), FRONT_MATTER.to_owned())], files].concat());
        let permits = app.blobs.puts.acquire_many(MemoryObjectStore::PUTS).await.unwrap();
        let wait = wait_until("files wait for the store", async || app.spooled_files() > 4);
        tokio::select! {
            response = send(&client, &bytes) => panic!("{}", response.text()),
            () = wait => {}
        }
        // Only a few files wait, however many the archive has.
        assert!(app.spooled_files() < 20, "{}", app.spooled_files());
        drop(permits);
        let skills = "select count(*) from agent_skills";
        wait_until("the skill exists", async || app.fetch_scalar::<i64>(skills).await == 1).await;
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from artifacts").await, 41);
        wait_until("no upload is spooled to a file", async || app.spooled_files() == 0).await;
    })
    .await;
}

#[tokio::test]
async fn equal_files_of_one_archive_are_stored_once() {
    run(async |app| {
        let client = app.project().await;
        let files = ["a.txt", "b/a.txt", "c.md"].map(|name| deflated(name, "the same"));
        let empty = ["x", "y"].map(|name| stored(name, ""));
        let skill = created_skill(&send(&client, archive(&[&files[..], &empty, &[skill_md()]].concat())).await);
        let index = skill["file_index"].as_array().unwrap();
        let names: Vec<_> = index.iter().map(|file| file["path"].as_str().unwrap()).collect();
        assert_eq!(names, ["a.txt", "b/a.txt", "c.md", "x", "y", "SKILL.md"]);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from blobs").await, 3);
        assert_eq!(app.blobs.keys().len(), 3);
        let disk = skill["disk_id"].as_str().unwrap();
        for (path, content) in [("b/a.txt", "the same"), ("y", ""), ("SKILL.md", FRONT_MATTER)] {
            assert_eq!(client.download(disk, path).await.unwrap(), content.as_bytes(), "{path}");
        }
    })
    .await;
}

#[tokio::test]
async fn concurrent_uploads_of_equal_files_store_them_once() {
    run(async |app| {
        let client = app.project().await;
        let files: Vec<_> = (0..20).map(|n| (format!("{n}.txt"), format!("{n}").repeat(1 + n * 10_000))).collect();
        let one = zip_archive(&[vec![("SKILL.md".to_owned(), FRONT_MATTER.to_owned())], files.clone()].concat());
        // The same files in reverse, so that two uploads process them in different orders.
        let mut reversed: Vec<_> = files.into_iter().rev().collect();
        reversed.push(("SKILL.md".to_owned(), FRONT_MATTER.to_owned()));
        let other = zip_archive(&reversed);
        let (clients, archives) = ([client.clone(), client.clone()], [one, other]);
        let sent = (0..16).map(|n| send(&clients[n % 2], &archives[n / 2 % 2]));
        for response in futures_util::future::join_all(sent).await {
            assert_eq!(created_skill(&response)["file_index"].as_array().unwrap().len(), 21);
        }
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from agent_skills").await, 16);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from artifacts").await, 16 * 21);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from blobs where state = 'live'").await, 21);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from users").await, 1);
        wait_until("no upload is spooled to a file", async || app.spooled_files() == 0).await;
    })
    .await;
}

#[tokio::test]
async fn large_archives_are_spooled_to_files_that_are_removed() {
    run(async |app| {
        let client = app.project().await;
        // The content cannot be compressed, so the archive itself is large.
        let mut state = 1_u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        };
        let content: Vec<u8> = (0..1 << 20).map(|_| noise()).collect();
        let bytes = archive_with(stored("large.bin", &content));
        assert!(bytes.len() > 1 << 20);
        let skill = created_skill(&send(&client, &bytes).await);
        let disk = skill["disk_id"].as_str().unwrap();
        assert_eq!(client.download(disk, "large.bin").await.unwrap(), content);
        // A small archive of a large file.
        let zeros = vec![0; 1 << 20];
        let skill = created_skill(&send(&client, archive_with(deflated("zeros.bin", &zeros))).await);
        assert_eq!(client.download(skill["disk_id"].as_str().unwrap(), "zeros.bin").await.unwrap(), zeros);
        wait_until("no upload is spooled to a file", async || app.spooled_files() == 0).await;
        // A large archive that is truncated, and one whose content is corrupt.
        send(&client, &bytes[..bytes.len() - 1]).await.assert_error(400, "not a readable zip archive");
        let mut corrupt = bytes;
        corrupt[1 << 19] ^= 1;
        send(&client, &corrupt).await.assert_error(400, "'large.bin' is corrupt");
        wait_until("no upload is spooled to a file", async || app.spooled_files() == 0).await;
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from agent_skills").await, 2);
    })
    .await;
}

#[tokio::test]
async fn invalid_forms_are_rejected_before_the_archive_is_opened() {
    run(async |app| {
        let client = app.project().await;
        let bytes = archive_with(stored("a", ""));
        let post = async |form: Form| {
            let (kind, body) = form.finish();
            let request = client.request(Method::POST, SKILLS).header(header::CONTENT_TYPE, kind);
            client.send(request.body(Body::from(body)).unwrap()).await
        };
        let file = || Form::new().file("file", "a.ZIP", &bytes);
        for (form, text) in [
            (Form::new().text("user", "alice"), "file is required"),
            (Form::new().file("file", "a.tar", &bytes), "file must be a zip archive"),
            (Form::new().file("file", "zip", &bytes), "file must be a zip archive"),
            (Form::new().file("file", "ü.zi", &bytes), "file must be a zip archive"),
            (file().text("meta", "[1]"), "invalid meta JSON format"),
            (file().text("meta", "{"), "invalid meta JSON format"),
            (file().text("meta", r#"{"a": "\u0000"}"#), "meta"),
            (file().text("user", "a\0b"), "user"),
            (file().file("file", "b.zip", &bytes), "file: must not appear more than once in the form"),
        ] {
            post(form).await.assert_error(400, text);
        }
        assert_nothing_stored(&app).await;
        assert_eq!(app.blobs.keys().len(), 0);
        assert!(created_skill(&post(file().text("meta", "null")).await)["meta"].is_null());
    })
    .await;
}
