//! Archives of skills that are broken, hostile or too large, and a world that fails while one is unpacked.

use axum::body::Body;
use axum::http::{Method, StatusCode, header};
use serde_json::Value;

use crate::support::client::{Answer, Client, Form};
use crate::support::memory::MemoryBlobs;
use crate::support::zip::{self, Entry, Raw, archive, deflated, stored, written};
use crate::support::{Setup, TestApp, eventually, run, run_with};

const HEAD: &str = "---\nname: a\ndescription: b\n---\n";
const SKILLS: &str = "/api/v1/agent_skills";

async fn send(client: &Client, bytes: impl AsRef<[u8]>) -> Answer {
    let (kind, body) = Form::new().text("user", "alice").file("file", "skill.zip", bytes).end();
    let request = client.request(Method::POST, SKILLS).header(header::CONTENT_TYPE, kind);
    client.send(request.body(Body::from(body)).unwrap()).await
}

/// The skill that was made.
#[track_caller]
fn made(answer: &Answer) -> Value {
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
    answer.data()
}

fn skill_md() -> Entry {
    stored("SKILL.md", HEAD)
}

/// An archive of a skill with one more file.
fn with(entry: Entry) -> Vec<u8> {
    archive(&[skill_md(), entry])
}

/// Nothing is there that a client or another program could find.
async fn assert_nothing_stored(app: &TestApp) {
    let rows =
        "select (select count(*) from agent_skills) + (select count(*) from disks) + (select count(*) from artifacts)
        + (select count(*) from artifact_versions) + (select count(*) from users)
        + (select count(*) from blobs where state <> 'pending')";
    assert_eq!(app.value::<i64>(rows).await, 0);
    // The thread that unpacks may be a moment behind the answer.
    eventually("no upload lies in a file", async || app.spooled() == 0).await;
}

/// Archives with something wrong, and what is said of it.
fn wrong() -> Vec<(Vec<u8>, &'static str)> {
    let a = |content: &str| deflated("a.txt", content);
    let sound = with(a("some words"));
    vec![
        (b"no archive".to_vec(), "is no zip archive"),
        (Vec::new(), "is no zip archive"),
        (sound[..sound.len() - 1].to_vec(), "is no zip archive"),
        (sound[10..].to_vec(), "is no zip archive"),
        (Raw::new(&[skill_md()]).end_64(1 << 32), "is no zip archive"),
        (archive(&[]), "SKILL.md file is required"),
        (with(stored("../../etc/passwd", "x")), "'../../etc/passwd' leads out"),
        (with(stored("/etc/passwd", "x")), "'/etc/passwd' is an absolute path"),
        (with(stored("C:/a", "x")), "'C:/a' is an absolute path"),
        (with(stored("a\\b", "x")), "has a backslash"),
        (with(stored("a\0b", "x")), "'a\\0b' has control characters"),
        (with(stored("a\x1b[2Jb", "x")), "has control characters"),
        (with(stored("n".repeat(2000), "x")), "1024"),
        (with(stored("skill.MD", "x")), "'skill.MD' stands in it twice"),
        (archive(&[skill_md(), stored("a", ""), stored("a/b", "")]), "'a' is a file and a folder"),
        (with(Entry { made_by: zip::UNIX, mode: 0o120_777, ..stored("a", "/etc") }), "'a' is a link"),
        (with(Entry { flags: zip::ENCRYPTED, ..a("x") }), "'a.txt' is encrypted"),
        (with(Entry { method: 93, ..a("x") }), "'a.txt' is packed in a way"),
        (with(Entry { flags: zip::DESCRIPTOR | zip::UTF8, crc: 1, ..a("some words") }), "'a.txt' is broken"),
        (with(Entry { size: 3, ..a("some words") }), "'a.txt' is broken"),
        (with(Entry { local_name: Some(b"b.txt".to_vec()), ..a("x") }), "is no zip archive"),
        (with(Entry { offset: Some(7), ..a("x") }), "is no zip archive"),
    ]
}

#[tokio::test]
async fn an_archive_with_something_wrong_is_refused_and_leaves_nothing() {
    run(async |app| {
        let client = app.project().await;
        for (bytes, why) in wrong() {
            let answer = send(&client, bytes).await;
            answer.assert_refused(400, why);
            assert!(answer.json()["msg"].as_str().unwrap().starts_with("parameter error: "), "{}", answer.text());
        }
        assert_nothing_stored(&app).await;
        assert!(made(&send(&client, with(stored("a.txt", "x"))).await)["user_id"].is_string());
    })
    .await;
}

#[tokio::test]
async fn a_head_with_something_wrong_is_refused_and_leaves_nothing() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..12 {
        let aliases = vec![format!("*a{}", n - 1); 10].join(", ");
        bomb = format!("{bomb}a{n}: &a{n} [{aliases}]\n");
    }
    let nested = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    run(async |app| {
        let client = app.project().await;
        for (head, why) in [
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
            send(&client, archive(&[stored("a.txt", "x"), deflated("SKILL.md", head)])).await.assert_refused(400, why);
        }
        assert_nothing_stored(&app).await;
    })
    .await;
}

#[tokio::test]
async fn what_is_too_large_is_a_413_that_says_so() {
    run(async |app| {
        let client = app.project().await;
        let huge = format!("{HEAD}{}", "x".repeat(10 << 20));
        send(&client, archive(&[deflated("SKILL.md", huge)])).await.assert_refused(413, "'SKILL.md' is larger");
        // 60 kB that would be a thousand times as much.
        let zeros = deflated("", vec![0; 10 << 20]);
        let bomb: Vec<_> = (0..6).map(|n| Entry { name: format!("{n}").into_bytes(), ..zeros.clone() }).collect();
        let bomb = archive(&[vec![skill_md()], bomb].concat());
        assert!(bomb.len() < 64_000, "{}", bomb.len());
        send(&client, bomb).await.assert_refused(413, "maximum of 52428800 bytes together");
        for size in [u32::MAX - 1, 51 << 20] {
            let entry = Entry { name: b"a".to_vec(), size, ..zeros.clone() };
            send(&client, with(entry)).await.assert_refused(413, "'a' is larger than the maximum");
        }
        // It says that there is little in it.
        let lie = Entry { name: b"a".to_vec(), size: 10, ..zeros.clone() };
        send(&client, with(lie)).await.assert_refused(400, "'a' is broken");
        let lie = Entry { name: b"SKILL.md".to_vec(), size: 10, ..zeros };
        send(&client, archive(&[lie])).await.assert_refused(400, "'SKILL.md' is broken");
        let many: Vec<_> = (0..70_000).map(|n| stored(format!("{n}"), "")).collect();
        send(&client, Raw::new(&many).end_64(70_000)).await.assert_refused(400, "file: ");
        assert_nothing_stored(&app).await;
    })
    .await;
}

#[tokio::test]
async fn the_limits_are_settings() {
    let setup = Setup::default()
        .with("ACONTEXTD_SKILL_FILES", "3")
        .with("ACONTEXTD_SKILL_UNPACKED", "4KiB")
        .with("ACONTEXTD_SKILL_LIMIT", "8KiB")
        .with("ACONTEXTD_SKILL_MD_LIMIT", "1KiB")
        .with("ARTIFACT_MAX_UPLOAD_SIZE_BYTES", "2KiB");
    run_with(setup, async |app| {
        let client = app.project().await;
        let files = |count: usize| {
            let more = (1..count).map(|n| stored(format!("{n}"), "x"));
            archive(&std::iter::once(skill_md()).chain(more).collect::<Vec<_>>())
        };
        let sized = |sizes: &[usize]| {
            let more = sizes.iter().zip(0..).map(|(size, n)| deflated(format!("{n}"), vec![0; *size]));
            archive(&std::iter::once(skill_md()).chain(more).collect::<Vec<_>>())
        };
        let head = |size: usize| archive(&[stored("SKILL.md", format!("{HEAD:<size$}"))]);
        send(&client, files(4)).await.assert_refused(400, "more than the 3 files");
        send(&client, sized(&[2049])).await.assert_refused(413, "'0' is larger than the maximum of 2048 bytes");
        send(&client, sized(&[2048, 2048])).await.assert_refused(413, "the maximum of 4096 bytes together");
        send(&client, head(1025)).await.assert_refused(413, "'SKILL.md' is larger than the maximum of 1024 bytes");
        let long = Raw { comment: vec![b'c'; 8000], ..Raw::new(&[skill_md(), stored("a", "x".repeat(200))]) };
        send(&client, long.end()).await.assert_refused(413, "file size exceeds maximum allowed size of 0.01MB");
        assert_nothing_stored(&app).await;
        for bytes in [files(3), sized(&[2048]), sized(&[2000, 2000]), head(1024)] {
            made(&send(&client, bytes).await);
        }
    })
    .await;
}

#[tokio::test]
async fn an_archive_that_breaks_at_its_last_file_leaves_contents_that_nothing_refers_to() {
    run(async |app| {
        let client = app.project().await;
        let mut files: Vec<_> = (0..30).map(|n| deflated(format!("{n}.txt"), format!("{n}").repeat(70_000))).collect();
        files.insert(0, skill_md());
        files.push(Entry { crc: 1, ..stored("last.txt", "x") });
        send(&client, archive(&files)).await.assert_refused(400, "'last.txt' is broken");
        assert_nothing_stored(&app).await;
        let pending = app.value::<i64>("select count(*) from blobs where state = 'pending'").await;
        assert_eq!(pending, i64::try_from(app.blobs.keys().len()).unwrap());
        files.pop();
        let skill = made(&send(&client, archive(&files)).await);
        assert_eq!(skill["file_index"].as_array().unwrap().len(), 31);
        assert_eq!(app.value::<i64>("select count(*) from blobs where state = 'live'").await, 31);
    })
    .await;
}

#[tokio::test]
async fn an_object_store_that_fails_in_the_middle_is_a_503_and_a_repeat_works() {
    run(async |app| {
        let client = app.project().await;
        let files: Vec<_> = (0..60).map(|n| (format!("{n}.txt"), format!("{n}").repeat(200_000))).collect();
        let bytes = written(&[vec![("SKILL.md".to_owned(), HEAD.to_owned())], files.clone()].concat());
        app.blobs.set_down(true);
        let refused = send(&client, &bytes).await;
        refused.assert_refused(503, "object store");
        assert_eq!(refused.header("retry-after"), "2");
        assert_nothing_stored(&app).await;
        app.blobs.set_down(false);
        // Some files are on their way into the store when it fails for those behind them.
        let held = app.blobs.puts.acquire_many(MemoryBlobs::PUTS).await.unwrap();
        let fail = async {
            eventually("files wait for the store", async || app.spooled() >= 11).await;
            app.blobs.set_down(true);
            drop(held);
        };
        let (refused, ()) = tokio::join!(send(&client, &bytes), fail);
        refused.assert_refused(503, "object store");
        assert_nothing_stored(&app).await;
        app.blobs.set_down(false);
        let skill = made(&send(&client, &bytes).await);
        let index = skill["file_index"].as_array().unwrap();
        let names: Vec<_> = index.iter().skip(1).map(|file| file["path"].as_str().unwrap()).collect();
        assert_eq!(names, files.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>());
        let disk = skill["disk_id"].as_str().unwrap();
        assert_eq!(client.download(disk, "59.txt").await.unwrap(), files[59].1.as_bytes());
        eventually("no upload lies in a file", async || app.spooled() == 0).await;
    })
    .await;
}

#[tokio::test]
async fn a_client_that_hangs_up_gets_its_skill_whole() {
    run(async |app| {
        let client = app.project().await;
        let files: Vec<_> = (0..40).map(|n| (format!("{n}.txt"), format!("{n}").repeat(200_000))).collect();
        let bytes = written(&[vec![("SKILL.md".to_owned(), HEAD.to_owned())], files].concat());
        let held = app.blobs.puts.acquire_many(MemoryBlobs::PUTS).await.unwrap();
        let wait = eventually("files wait for the store", async || app.spooled() > 4);
        tokio::select! {
            answer = send(&client, &bytes) => panic!("{}", answer.text()),
            () = wait => {}
        }
        // Only a few files wait, however many there are.
        assert!(app.spooled() < 20, "{}", app.spooled());
        drop(held);
        let skills = "select count(*) from agent_skills";
        eventually("the skill is there", async || app.value::<i64>(skills).await == 1).await;
        assert_eq!(app.value::<i64>("select count(*) from artifacts").await, 41);
        eventually("no upload lies in a file", async || app.spooled() == 0).await;
    })
    .await;
}

#[tokio::test]
async fn equal_files_of_one_archive_are_one_content() {
    run(async |app| {
        let client = app.project().await;
        let files = ["a.txt", "b/a.txt", "c.md"].map(|name| deflated(name, "the same"));
        let empty = ["x", "y"].map(|name| stored(name, ""));
        let skill = made(&send(&client, archive(&[&files[..], &empty, &[skill_md()]].concat())).await);
        let index = skill["file_index"].as_array().unwrap();
        let names: Vec<_> = index.iter().map(|file| file["path"].as_str().unwrap()).collect();
        assert_eq!(names, ["a.txt", "b/a.txt", "c.md", "x", "y", "SKILL.md"]);
        assert_eq!(app.value::<i64>("select count(*) from blobs").await, 3);
        assert_eq!(app.blobs.keys().len(), 3);
        let disk = skill["disk_id"].as_str().unwrap();
        for (path, content) in [("b/a.txt", "the same"), ("y", ""), ("SKILL.md", HEAD)] {
            assert_eq!(client.download(disk, path).await.unwrap(), content.as_bytes(), "{path}");
        }
    })
    .await;
}

#[tokio::test]
async fn two_clients_that_send_the_same_archive_at_once_store_it_once() {
    run(async |app| {
        let client = app.project().await;
        let files: Vec<_> = (0..20).map(|n| (format!("{n}.txt"), format!("{n}").repeat(1 + n * 10_000))).collect();
        let one = written(&[vec![("SKILL.md".to_owned(), HEAD.to_owned())], files.clone()].concat());
        // The same files the other way round, so that two uploads take them in another order.
        let mut back: Vec<_> = files.into_iter().rev().collect();
        back.push(("SKILL.md".to_owned(), HEAD.to_owned()));
        let other = written(&back);
        let (clients, archives) = ([client.clone(), client.clone()], [one, other]);
        let sent = (0..16).map(|n| send(&clients[n % 2], &archives[n / 2 % 2]));
        for answer in futures_util::future::join_all(sent).await {
            assert_eq!(made(&answer)["file_index"].as_array().unwrap().len(), 21);
        }
        assert_eq!(app.value::<i64>("select count(*) from agent_skills").await, 16);
        assert_eq!(app.value::<i64>("select count(*) from artifacts").await, 16 * 21);
        assert_eq!(app.value::<i64>("select count(*) from blobs where state = 'live'").await, 21);
        assert_eq!(app.value::<i64>("select count(*) from users").await, 1);
        eventually("no upload lies in a file", async || app.spooled() == 0).await;
    })
    .await;
}

#[tokio::test]
async fn large_archives_and_large_files_go_through_files_that_are_removed() {
    run(async |app| {
        let client = app.project().await;
        // It cannot be made smaller, so the archive itself is large.
        let mut state = 1_u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        };
        let content: Vec<u8> = (0..1 << 20).map(|_| noise()).collect();
        let bytes = with(stored("large.bin", &content));
        assert!(bytes.len() > 1 << 20);
        let skill = made(&send(&client, &bytes).await);
        let disk = skill["disk_id"].as_str().unwrap();
        assert_eq!(client.download(disk, "large.bin").await.unwrap(), content);
        // A small archive of a large file.
        let zeros = vec![0; 1 << 20];
        let skill = made(&send(&client, with(deflated("zeros.bin", &zeros))).await);
        assert_eq!(client.download(skill["disk_id"].as_str().unwrap(), "zeros.bin").await.unwrap(), zeros);
        eventually("no upload lies in a file", async || app.spooled() == 0).await;
        // A large one that is cut short, or broken inside.
        send(&client, &bytes[..bytes.len() - 1]).await.assert_refused(400, "is no zip archive");
        let mut damaged = bytes;
        damaged[1 << 19] ^= 1;
        send(&client, &damaged).await.assert_refused(400, "'large.bin' is broken");
        eventually("no upload lies in a file", async || app.spooled() == 0).await;
        assert_eq!(app.value::<i64>("select count(*) from agent_skills").await, 2);
    })
    .await;
}

#[tokio::test]
async fn what_is_no_archive_of_a_skill_is_refused_before_it_is_opened() {
    run(async |app| {
        let client = app.project().await;
        let bytes = with(stored("a", ""));
        let post = async |form: Form| {
            let (kind, body) = form.end();
            let request = client.request(Method::POST, SKILLS).header(header::CONTENT_TYPE, kind);
            client.send(request.body(Body::from(body)).unwrap()).await
        };
        let file = || Form::new().file("file", "a.ZIP", &bytes);
        for (form, why) in [
            (Form::new().text("user", "alice"), "file is required"),
            (Form::new().file("file", "a.tar", &bytes), "file must be a zip archive"),
            (Form::new().file("file", "zip", &bytes), "file must be a zip archive"),
            (Form::new().file("file", "ü.zi", &bytes), "file must be a zip archive"),
            (file().text("meta", "[1]"), "invalid meta JSON format"),
            (file().text("meta", "{"), "invalid meta JSON format"),
            (file().text("meta", r#"{"a": "\u0000"}"#), "meta"),
            (file().text("user", "a\0b"), "user"),
            (file().file("file", "b.zip", &bytes), "file: stands in the form twice"),
        ] {
            post(form).await.assert_refused(400, why);
        }
        assert_nothing_stored(&app).await;
        assert_eq!(app.blobs.keys().len(), 0);
        assert!(made(&post(file().text("meta", "null")).await)["meta"].is_null());
    })
    .await;
}
