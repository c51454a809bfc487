//! Skills: what they come as, what is in them, and that each is a disk.

use std::cell::Cell;
use std::sync::Once;

use axum::http::StatusCode;
use serde_json::{Value, json};
use tracing::Subscriber;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::support::client::{Client, Form};
use crate::support::samples::skill_md;
use crate::support::zip::written;
use crate::support::{Setup, TestApp, run, run_with};

/// The paths in a skill's `file_index`.
fn paths(skill: &Value) -> Vec<String> {
    let files = skill["file_index"].as_array().unwrap().iter();
    files.map(|file| file["path"].as_str().unwrap().to_owned()).collect()
}

async fn get(client: &Client, skill: &Value) -> Value {
    client.get(&format!("/api/v1/agent_skills/{}", skill["id"].as_str().unwrap())).await.data()
}

#[tokio::test]
async fn a_skill_is_made_of_an_archive() {
    run(async |app| {
        let client = app.project().await;
        let md = skill_md("pdf tools");
        let archive =
            written(&[("kit/SKILL.md", md.as_str()), ("kit/z/run.py", "print(1)\n"), ("kit/a.json", "{\"a\": 1}")]);
        let form = Form::new().file("file", "Kit.ZIP", archive).text("user", "ann").text("meta", "{\"n\": 1.50}");
        let made = client.skill_form(form).await;
        made.assert_status(201);
        let skill = made.data();
        assert_eq!((&skill["name"], &skill["description"]), (&json!("pdf-tools"), &json!("What pdf tools is for")));
        assert_eq!(paths(&skill), ["SKILL.md", "z/run.py", "a.json"], "in the order of the archive");
        assert!(made.text().contains("\"meta\":{\"n\":1.50}"), "{}", made.text());
        assert_eq!(skill["created_at"], skill["updated_at"]);
        let got = get(&client, &skill).await;
        assert_eq!(paths(&got), ["SKILL.md", "a.json", "z/run.py"], "by path");
        assert_eq!(got["file_index"][1], json!({"path": "a.json", "mime": "application/json"}));
        let listed = client.get("/api/v1/agent_skills?user=ann").await.data();
        assert_eq!(listed["items"][0]["file_index"], got["file_index"]);
        assert!(listed["items"][0].get("disk_id").is_none() && got["disk_id"].is_string());
        let disk = skill["disk_id"].as_str().unwrap();
        assert_eq!(client.download(disk, "/z/run.py").await.unwrap(), b"print(1)\n");
    })
    .await;
}

#[tokio::test]
async fn a_change_of_a_file_moves_the_skill_and_nothing_else_does() {
    run(async |app| {
        let client = app.project().await;
        let (skill, other) = (client.new_skill("moved").await, client.new_skill("still").await);
        let skill = client.get(&format!("/api/v1/agent_skills/{skill}")).await.data();
        let disk = skill["disk_id"].as_str().unwrap();
        let artifact = format!("/api/v1/disk/{disk}/artifact");
        let mut last = skill["updated_at"].as_str().unwrap().to_owned();
        assert_eq!(get(&client, &skill).await["updated_at"], last);
        for step in ["put", "replace", "meta", "delete"] {
            match step {
                "put" | "replace" => drop(client.upload(disk, "/notes/", "a.md", step).await),
                "meta" => {
                    let meta = json!({"file_path": "/notes/a.md", "meta": "{\"a\": 1}"});
                    client.put(&artifact, meta).await.assert_status(200);
                }
                _ => client.delete(&format!("{artifact}?file_path=/notes/a.md")).await.assert_status(200),
            }
            let now = get(&client, &skill).await;
            let moved = now["updated_at"].as_str().unwrap();
            assert!(moved > last.as_str(), "{step}: {moved} is not after {last}");
            assert_eq!(paths(&now).len(), if step == "delete" { 1 } else { 2 }, "{step}");
            last = moved.to_owned();
        }
        let other = client.get(&format!("/api/v1/agent_skills/{other}")).await.data();
        assert_eq!(other["updated_at"], other["created_at"]);
    })
    .await;
}

#[tokio::test]
async fn changes_by_many_at_once_each_move_the_skill() {
    run(async |app| {
        let client = app.project().await;
        let skill = client.new_skill("crowded").await;
        let skill = client.get(&format!("/api/v1/agent_skills/{skill}")).await.data();
        let disk = skill["disk_id"].as_str().unwrap();
        app.execute("create table seen (at timestamptz)").await;
        app.execute(
            "create function note() returns trigger language plpgsql as $$
             begin insert into seen values (new.changed_at); return null; end $$",
        )
        .await;
        app.execute("create trigger note after update of changed_at on disks for each row execute function note()")
            .await;
        let names: Vec<_> = (0..32).map(|n| format!("{n}.md")).collect();
        let uploads = names.iter().map(|name| client.upload(disk, "/", name, "x"));
        futures_util::future::join_all(uploads).await;
        assert_eq!(paths(&get(&client, &skill).await).len(), 33);
        let moves: (i64, i64) =
            sqlx::query_as("select count(*), count(distinct at) from seen").fetch_one(&*app.app.db).await.unwrap();
        assert_eq!(moves, (32, 32), "two changes had one time");
        // The changes of a disk without a skill are not tracked, so that its uploads lock no common row.
        let plain = client.new_disk().await;
        client.upload(&plain, "/", "a.txt", "x").await;
        assert_eq!(app.value::<i64>("select count(*) from disks where changed_at is null").await, 1);
    })
    .await;
}

#[tokio::test]
async fn a_skill_and_its_disk_go_together() {
    run(async |app| {
        let client = app.project().await;
        let space = client.new_space().await;
        let (one, two) = (client.new_skill("one").await, client.new_skill("two").await);
        let path = format!("/api/v1/learning_spaces/{space}/skills");
        for skill in [&one, &two] {
            client.post(&path, json!({"skill_id": skill})).await.assert_status(201);
        }
        client.delete(&format!("/api/v1/agent_skills/{one}")).await.assert_status(200);
        let again = client.delete(&format!("/api/v1/agent_skills/{one}")).await;
        again.assert_refused(404, "agent skill not found or access denied");
        let disk = client.get(&format!("/api/v1/agent_skills/{two}")).await.data()["disk_id"].clone();
        client.delete(&format!("/api/v1/disk/{}", disk.as_str().unwrap())).await.assert_status(200);
        for skill in [one, two] {
            client.get(&format!("/api/v1/agent_skills/{skill}")).await.assert_refused(404, "skill not found");
        }
        let left = client.get(&path).await.data();
        assert_eq!(left.as_array().unwrap().len(), 2, "the space keeps those it began with");
        assert_eq!(app.value::<i64>("select count(*) from disks").await, 2);
    })
    .await;
}

#[tokio::test]
async fn equal_skills_are_stored_once() {
    run(async |app| {
        let client = app.project().await;
        let md = skill_md("twin");
        let files = [("SKILL.md", md.as_str()), ("a.txt", "same"), ("b.txt", "same"), ("empty", "")];
        let uploads = (0..8).map(|_| client.upload_skill(&files));
        for answer in futures_util::future::join_all(uploads).await {
            answer.assert_status(201);
        }
        assert_eq!(app.value::<i64>("select count(*) from agent_skills").await, 8);
        assert_eq!(app.value::<i64>("select count(*) from blobs where state = 'live'").await, 3);
        assert_eq!(app.spooled(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_file_is_shown_as_text_or_as_a_link() {
    run(async |app| {
        let client = app.project().await;
        let archive = [
            ("SKILL.md".to_owned(), skill_md("files").into_bytes()),
            ("run.py".to_owned(), b"print(1)".to_vec()),
            ("broken.json".to_owned(), b"{no json".to_vec()),
            ("wide.txt".to_owned(), "\u{feff}wide".encode_utf16().flat_map(u16::to_le_bytes).collect()),
            ("logo.png".to_owned(), b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec()),
        ];
        let made = client.skill_form(Form::new().file("file", "s.zip", written(&archive))).await.data();
        let at = format!("/api/v1/agent_skills/{}/file", made["id"].as_str().unwrap());
        let file = async |path: &str| client.get(&format!("{at}?file_path={path}")).await.data();
        let code = file("./x/../run.py").await;
        assert_eq!(code["content"], json!({"type": "code", "raw": "print(1)"}));
        assert_eq!((&code["path"], code.get("url")), (&json!("./x/../run.py"), None));
        for name in ["broken.json", "wide.txt", "logo.png"] {
            let shown = file(name).await;
            assert_eq!(shown.get("content"), None, "{shown}");
            let link = shown["url"].as_str().unwrap().split_once("/api/").unwrap().1;
            let bytes = app.client().get(&format!("/api/{link}")).await;
            let (_, content) = archive.iter().find(|(stored, _)| stored == name).unwrap();
            assert_eq!((bytes.status, &bytes.bytes), (StatusCode::OK, content), "{name}");
        }
        for (query, status, msg) in [
            ("", 400, "file_path is required"),
            ("?file_path=", 400, "file_path is required"),
            ("?file_path=none", 404, "file not found"),
            ("?file_path=/run.py", 404, "file not found"),
            ("?file_path=../run.py", 404, "file not found"),
            ("?file_path=skill.md", 404, "file not found"),
            ("?file_path=logo.png&expire=0", 400, "expire"),
            ("?file_path=logo.png&expire=604801", 400, "expire"),
            ("?file_path=logo.png&expire=1m", 400, "expire"),
        ] {
            client.get(&format!("{at}{query}")).await.assert_refused(status, msg);
        }
    })
    .await;
}

/// The files of an archive by name.
fn unzip(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    use std::io::Read;
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(bytes)).unwrap();
    let files = (0..archive.len()).map(|n| {
        let mut file = archive.by_index(n).unwrap();
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        (file.name().unwrap().into_owned(), content)
    });
    files.collect()
}

#[tokio::test]
async fn a_skill_comes_back_as_an_archive() {
    run(async |app| {
        let client = app.project().await;
        let noise: Vec<u8> = (0..300_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[1]).collect();
        let files = [
            ("SKILL.md".to_owned(), skill_md("größe").into_bytes()),
            ("empty".to_owned(), Vec::new()),
            ("x/noise.bin".to_owned(), noise),
        ];
        let made = client.skill_form(Form::new().file("file", "s.zip", written(&files))).await.data();
        let download = format!("/api/v1/agent_skills/{}/download_zip", made["id"].as_str().unwrap());
        let answer = client.get(&download).await;
        assert_eq!(answer.header("content-type"), "application/zip");
        let name = "attachment; filename=\"gr__e.zip\"; filename*=UTF-8''gr%C3%B6%C3%9Fe.zip";
        assert_eq!(answer.header("content-disposition"), name);
        assert_eq!(unzip(&answer.bytes), files);
        let artifact = format!("/api/v1/disk/{}/artifact", made["disk_id"].as_str().unwrap());
        for path in ["/SKILL.md", "/empty", "/x/noise.bin"] {
            client.delete(&format!("{artifact}?file_path={path}")).await.assert_status(200);
        }
        assert_eq!(unzip(&client.get(&download).await.bytes), []);
        client.get("/api/v1/agent_skills/none/download_zip").await.assert_refused(400, "invalid skill id");
    })
    .await;
}

#[tokio::test]
async fn what_is_too_much_for_an_archive_is_refused() {
    let setup = Setup::default().with("ACONTEXTD_SKILL_DOWNLOAD_FILES", "2").with("ACONTEXTD_SKILL_DOWNLOAD", "100");
    run_with(setup, async |app| {
        let client = app.project().await;
        let made = client.upload_skill(&[("SKILL.md", &skill_md("s")), ("a", "a")]).await.data();
        let (skill, disk) = (made["id"].as_str().unwrap(), made["disk_id"].as_str().unwrap());
        let download = format!("/api/v1/agent_skills/{skill}/download_zip");
        client.get(&download).await.assert_status(200);
        client.upload(disk, "/", "a", "a".repeat(101)).await;
        client.get(&download).await.assert_refused(413, "exceeds maximum (100 bytes)");
        client.upload(disk, "/", "b", "b").await;
        client.get(&download).await.assert_refused(413, "skill has too many files (3), maximum is 2");
    })
    .await;
}

#[tokio::test]
async fn a_skill_whose_object_cannot_be_read_is_no_half_archive() {
    run(async |app| {
        let client = app.project().await;
        let skill = client.new_skill("lost").await;
        app.blobs.set_down(true);
        let answer = client.get(&format!("/api/v1/agent_skills/{skill}/download_zip")).await;
        answer.assert_refused(503, "object store");
        app.blobs.set_down(false);
    })
    .await;
}

thread_local! {
    /// The statements that were sent to the database by this thread, which is that of one test.
    static SENT: Cell<usize> = const { Cell::new(0) };
}

/// Counts statements, for all threads: what is set for one thread alone is not always asked.
struct Statements;

impl<S: Subscriber> Layer<S> for Statements {
    fn on_event(&self, _: &tracing::Event<'_>, _: Context<'_, S>) {
        SENT.set(SENT.get() + 1);
    }
}

static COUNTING: Once = Once::new();

/// How many statements a request takes.
async fn statements(client: &Client, path: &str) -> usize {
    COUNTING.call_once(|| {
        let only = Targets::new().with_target("sqlx::query", tracing::Level::DEBUG);
        let counting = tracing_subscriber::registry().with(Statements.with_filter(only));
        tracing::subscriber::set_global_default(counting).unwrap();
    });
    SENT.set(0);
    client.get(path).await.assert_status(200);
    SENT.get()
}

async fn fill(app: &TestApp, client: &Client, skills: i32) {
    sqlx::query(
        "with disk as (insert into disks (project_id, changed_at) select $1, now() from generate_series(1, $2) returning id),
              file as (insert into artifact_versions (disk_id, path, filename, from_revision, blob_id, meta, mime, size, sha256, author)
                       select d.id, '/', f || '.md', f, b.id, '{}', 'text/markdown', 1, '', 'key'
                       from disk d, generate_series(1, 3) f, (select id from blobs limit 1) b)
         insert into agent_skills (id, project_id, disk_id, name, description)
         select gen_random_uuid(), $1, id, 'filled', 'd' from disk",
    )
    .bind(client.project())
    .bind(skills)
    .execute(&*app.app.db)
    .await
    .unwrap();
}

#[tokio::test]
async fn a_list_of_skills_takes_no_statement_for_each() {
    run(async |app| {
        let client = app.project().await;
        client.new_skill("first").await;
        // Its key and its connection are known from here on.
        let few = statements(&client, "/api/v1/agent_skills?limit=1").await;
        assert!(few > 0, "nothing was counted");
        fill(&app, &client, 300).await;
        assert_eq!(statements(&client, "/api/v1/agent_skills?limit=200").await, few);
        let page = client.get("/api/v1/agent_skills?limit=200").await.data();
        assert_eq!(page["items"].as_array().unwrap().len(), 200);
        assert_eq!(paths(&page["items"][199]), ["1.md", "2.md", "3.md"]);
        let space = client.new_space().await;
        let path = format!("/api/v1/learning_spaces/{space}/skills");
        let two = statements(&client, &path).await;
        sqlx::query(
            "insert into learning_space_skills (id, learning_space_id, skill_id, skill_name)
             select gen_random_uuid(), $1::uuid, id, name from agent_skills where name in ('first', 'filled')
             order by created_at limit 2",
        )
        .bind(&space)
        .execute(&*app.app.db)
        .await
        .unwrap();
        assert_eq!(statements(&client, &path).await, two);
    })
    .await;
}

#[tokio::test]
async fn a_page_of_very_many_files_ends_early_and_goes_on() {
    run(async |app| {
        let client = app.project().await;
        client.new_skill("first").await;
        sqlx::query(
            "with disk as (insert into disks (project_id, changed_at) select $1, now() from generate_series(1, 12) returning id),
                  file as (insert into artifact_versions (disk_id, path, filename, from_revision, blob_id, meta, mime, size, sha256, author)
                           select d.id, '/', f::text, f, b.id, '{}', 'text/plain', 1, '', 'key'
                           from disk d, generate_series(1, 9000) f, (select id from blobs limit 1) b)
             insert into agent_skills (id, project_id, disk_id, name, description)
             select gen_random_uuid(), $1, id, 'vast', 'd' from disk",
        )
        .bind(client.project())
        .execute(&*app.app.db)
        .await
        .unwrap();
        let (mut sizes, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = client.get(&format!("/api/v1/agent_skills?limit=200&cursor={cursor}")).await.data();
            sizes.extend(page["items"].as_array().unwrap().iter().map(|skill| paths(skill).len()));
            match page["next_cursor"].as_str() {
                Some(next) => next.clone_into(&mut cursor),
                None => break,
            }
        }
        assert_eq!(sizes, [vec![1], vec![9000; 12]].concat());
        let first = client.get("/api/v1/agent_skills?limit=200").await.data();
        assert!(first["items"].as_array().unwrap().len() < 13 && first["has_more"] == true);
    })
    .await;
}
