//! Skills: their archives, their files, and their disks.

use std::io::Cursor;

use axum::http::StatusCode;
use serde_json::{Value, json};
use zip::ZipArchive;

use crate::support::client::{Client, Form};
use crate::support::samples::skill_md;
use crate::support::zip::{self as raw_zip, Entry, zip_archive};
use crate::support::{TestApp, TestConfig, run, run_with, statements};

/// The paths in a skill's `file_index`.
fn paths(skill: &Value) -> Vec<String> {
    let files = skill["file_index"].as_array().unwrap().iter();
    files.map(|file| file["path"].as_str().unwrap().to_owned()).collect()
}

async fn get_skill(client: &Client, skill: &Value) -> Value {
    client.get(&format!("/api/v1/agent_skills/{}", skill["id"].as_str().unwrap())).await.data()
}

#[tokio::test]
async fn a_skill_is_created_from_an_archive() {
    run(async |app| {
        let client = app.project().await;
        let md = skill_md("pdf tools");
        let archive =
            zip_archive(&[("kit/SKILL.md", md.as_str()), ("kit/z/run.py", "print(1)\n"), ("kit/a.json", "{\"a\": 1}")]);
        let form = Form::new().file("file", "Kit.ZIP", archive).text("user", "ann").text("meta", "{\"n\": 1.50}");
        let created = client.upload_skill_form(form).await;
        created.assert_status(201);
        let skill = created.data();
        assert_eq!((&skill["name"], &skill["description"]), (&json!("pdf-tools"), &json!("What pdf tools is for")));
        assert_eq!(paths(&skill), ["SKILL.md", "z/run.py", "a.json"], "in the order of the archive");
        assert!(created.text().contains("\"meta\":{\"n\":1.50}"), "{}", created.text());
        assert_eq!(skill["created_at"], skill["updated_at"]);
        let fetched = get_skill(&client, &skill).await;
        assert_eq!(paths(&fetched), ["SKILL.md", "a.json", "z/run.py"], "by path");
        assert_eq!(fetched["file_index"][1], json!({"path": "a.json", "mime": "application/json"}));
        let listed = client.get("/api/v1/agent_skills?user=ann").await.data();
        assert_eq!(listed["items"][0]["file_index"], fetched["file_index"]);
        assert!(listed["items"][0].get("disk_id").is_none() && fetched["disk_id"].is_string());
        let disk = skill["disk_id"].as_str().unwrap();
        assert_eq!(client.download(disk, "/z/run.py").await.unwrap(), b"print(1)\n");
    })
    .await;
}

#[tokio::test]
async fn executable_files_of_an_archive_stay_executable() {
    run(async |app| {
        let client = app.project().await;
        let unix = |name: &str, mode: u32| Entry {
            version_made_by: raw_zip::UNIX,
            mode: 0o100_000 | mode,
            ..raw_zip::deflated(name, name)
        };
        let modes = [("all.sh", 0o755, 0o755), ("owner.sh", 0o744, 0o755), ("group.sh", 0o610, 0o755)];
        let modes = modes.into_iter().chain([("plain.md", 0o644, 0o644), ("secret.md", 0o600, 0o644)]);
        let modes: Vec<_> = modes.collect();
        let mut entries = vec![raw_zip::stored("SKILL.md", skill_md("kit")), raw_zip::stored("dos.md", "no Unix mode")];
        entries.extend(modes.iter().map(|(name, mode, _)| unix(name, *mode)));
        let form = Form::new().file("file", "skill.zip", raw_zip::archive(&entries));
        let skill = client.upload_skill_form(form).await.data();
        let url = format!("/api/v1/agent_skills/{}/download_zip", skill["id"].as_str().unwrap());
        let mut downloaded = ZipArchive::new(Cursor::new(client.get(&url).await.bytes)).unwrap();
        let mut mode_of = |name: &str| downloaded.by_name(name).unwrap().unix_mode().unwrap();
        for (name, _, expected) in modes.into_iter().chain([("SKILL.md", 0, 0o644), ("dos.md", 0, 0o644)]) {
            assert_eq!(mode_of(name), 0o100_000 | expected, "{name}");
        }
    })
    .await;
}

#[tokio::test]
async fn only_a_change_of_a_file_changes_the_time_of_a_skill() {
    run(async |app| {
        let client = app.project().await;
        let (skill, other) = (client.new_skill("changed").await, client.new_skill("unchanged").await);
        let skill = client.get(&format!("/api/v1/agent_skills/{skill}")).await.data();
        let disk = skill["disk_id"].as_str().unwrap();
        let artifact = format!("/api/v1/disk/{disk}/artifact");
        let mut last = skill["updated_at"].as_str().unwrap().to_owned();
        assert_eq!(get_skill(&client, &skill).await["updated_at"], last);
        for step in ["put", "replace", "meta", "delete"] {
            match step {
                "put" | "replace" => drop(client.upload(disk, "/notes/", "a.md", step).await),
                "meta" => {
                    let meta = json!({"file_path": "/notes/a.md", "meta": "{\"a\": 1}"});
                    client.put(&artifact, meta).await.assert_status(200);
                }
                _ => client.delete(&format!("{artifact}?file_path=/notes/a.md")).await.assert_status(200),
            }
            let now = get_skill(&client, &skill).await;
            let updated = now["updated_at"].as_str().unwrap();
            assert!(updated > last.as_str(), "{step}: {updated} is not after {last}");
            assert_eq!(paths(&now).len(), if step == "delete" { 1 } else { 2 }, "{step}");
            last = updated.to_owned();
        }
        let other = client.get(&format!("/api/v1/agent_skills/{other}")).await.data();
        assert_eq!(other["updated_at"], other["created_at"]);
    })
    .await;
}

#[tokio::test]
async fn concurrent_changes_each_change_the_time_of_a_skill() {
    run(async |app| {
        let client = app.project().await;
        let skill = client.new_skill("concurrent").await;
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
        assert_eq!(paths(&get_skill(&client, &skill).await).len(), 33);
        let times: (i64, i64) =
            sqlx::query_as("select count(*), count(distinct at) from seen").fetch_one(&*app.app.db).await.unwrap();
        assert_eq!(times, (32, 32), "two changes have the same time");
        // The changes of a disk without a skill are not tracked, so that its uploads lock no common row.
        let plain = client.new_disk().await;
        client.upload(&plain, "/", "a.txt", "x").await;
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from disks where changed_at is null").await, 1);
    })
    .await;
}

#[tokio::test]
async fn a_skill_and_its_disk_are_deleted_together() {
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
        again.assert_error(404, "agent skill not found or access denied");
        let disk = client.get(&format!("/api/v1/agent_skills/{two}")).await.data()["disk_id"].clone();
        client.delete(&format!("/api/v1/disk/{}", disk.as_str().unwrap())).await.assert_status(200);
        for skill in [one, two] {
            client.get(&format!("/api/v1/agent_skills/{skill}")).await.assert_error(404, "skill not found");
        }
        let remaining = client.get(&path).await.data();
        assert_eq!(remaining.as_array().unwrap().len(), 2, "the space keeps its default skills");
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from disks").await, 2);
    })
    .await;
}

#[tokio::test]
async fn equal_files_of_skills_are_stored_once() {
    run(async |app| {
        let client = app.project().await;
        let md = skill_md("equal");
        let files = [("SKILL.md", md.as_str()), ("a.txt", "same"), ("b.txt", "same"), ("empty", "")];
        let uploads = (0..8).map(|_| client.upload_skill(&files));
        for response in futures_util::future::join_all(uploads).await {
            response.assert_status(201);
        }
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from agent_skills").await, 8);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from blobs where state = 'live'").await, 3);
        assert_eq!(app.spooled_files(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_file_is_returned_as_text_or_as_a_link() {
    run(async |app| {
        let client = app.project().await;
        let archive = [
            ("SKILL.md".to_owned(), skill_md("files").into_bytes()),
            ("run.py".to_owned(), b"print(1)".to_vec()),
            ("broken.json".to_owned(), b"{no json".to_vec()),
            ("wide.txt".to_owned(), "\u{feff}wide".encode_utf16().flat_map(u16::to_le_bytes).collect()),
            ("logo.png".to_owned(), b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec()),
        ];
        let created = client.upload_skill_form(Form::new().file("file", "s.zip", zip_archive(&archive))).await.data();
        let path = format!("/api/v1/agent_skills/{}/file", created["id"].as_str().unwrap());
        let get_file = async |file: &str| client.get(&format!("{path}?file_path={file}")).await.data();
        let code = get_file("./x/../run.py").await;
        assert_eq!(code["content"], json!({"type": "code", "raw": "print(1)"}));
        assert_eq!((&code["path"], code.get("url")), (&json!("./x/../run.py"), None));
        for name in ["broken.json", "wide.txt", "logo.png"] {
            let file = get_file(name).await;
            assert_eq!(file.get("content"), None, "{file}");
            let link = file["url"].as_str().unwrap().split_once("/api/").unwrap().1;
            let linked = app.client().get(&format!("/api/{link}")).await;
            let (_, content) = archive.iter().find(|(stored, _)| stored == name).unwrap();
            assert_eq!((linked.status, &linked.bytes), (StatusCode::OK, content), "{name}");
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
            client.get(&format!("{path}{query}")).await.assert_error(status, msg);
        }
    })
    .await;
}

/// Returns the names and contents of the files of an archive.
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
async fn a_skill_is_downloaded_as_an_archive() {
    run(async |app| {
        let client = app.project().await;
        let noise: Vec<u8> = (0..300_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[1]).collect();
        let files = [
            ("SKILL.md".to_owned(), skill_md("größe").into_bytes()),
            ("empty".to_owned(), Vec::new()),
            ("x/noise.bin".to_owned(), noise),
        ];
        let created = client.upload_skill_form(Form::new().file("file", "s.zip", zip_archive(&files))).await.data();
        let download = format!("/api/v1/agent_skills/{}/download_zip", created["id"].as_str().unwrap());
        let response = client.get(&download).await;
        assert_eq!(response.header("content-type"), "application/zip");
        let name = "attachment; filename=\"gr__e.zip\"; filename*=UTF-8''gr%C3%B6%C3%9Fe.zip";
        assert_eq!(response.header("content-disposition"), name);
        assert_eq!(unzip(&response.bytes), files);
        let artifact = format!("/api/v1/disk/{}/artifact", created["disk_id"].as_str().unwrap());
        for path in ["/SKILL.md", "/empty", "/x/noise.bin"] {
            client.delete(&format!("{artifact}?file_path={path}")).await.assert_status(200);
        }
        assert_eq!(unzip(&client.get(&download).await.bytes), []);
        client.get("/api/v1/agent_skills/none/download_zip").await.assert_error(400, "invalid skill id");
    })
    .await;
}

#[tokio::test]
async fn a_download_over_the_limits_is_rejected() {
    let config =
        TestConfig::default().with("ACONTEXTD_SKILL_DOWNLOAD_FILES", "2").with("ACONTEXTD_SKILL_DOWNLOAD", "100");
    run_with(config, async |app| {
        let client = app.project().await;
        let created = client.upload_skill(&[("SKILL.md", &skill_md("s")), ("a", "a")]).await.data();
        let (skill, disk) = (created["id"].as_str().unwrap(), created["disk_id"].as_str().unwrap());
        let download = format!("/api/v1/agent_skills/{skill}/download_zip");
        client.get(&download).await.assert_status(200);
        client.upload(disk, "/", "a", "a".repeat(101)).await;
        client.get(&download).await.assert_error(413, "exceeds maximum (100 bytes)");
        client.upload(disk, "/", "b", "b").await;
        client.get(&download).await.assert_error(413, "skill has too many files (3), maximum is 2");
    })
    .await;
}

#[tokio::test]
async fn a_download_with_an_unreadable_object_is_an_error() {
    run(async |app| {
        let client = app.project().await;
        let skill = client.new_skill("lost").await;
        app.blobs.set_down(true);
        let response = client.get(&format!("/api/v1/agent_skills/{skill}/download_zip")).await;
        response.assert_error(503, "object store");
        app.blobs.set_down(false);
    })
    .await;
}

/// Returns the number of statements that a request sends to the database.
async fn count_statements(client: &Client, path: &str) -> usize {
    statements::count_statements(async { client.get(path).await.assert_status(200) }).await.total
}

/// Inserts skills with three files each.
async fn insert_skills(app: &TestApp, client: &Client, skills: i32) {
    sqlx::query(
        "with disk as (insert into disks (project_id, changed_at)
                       select $1, now() from generate_series(1, $2) returning id),
              file as (insert into artifact_versions
                           (disk_id, path, filename, from_revision, blob_id, meta, mime, size, sha256)
                       select d.id, '/', f || '.md', f, b.id, '{}', 'text/markdown', 1, ''
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
async fn a_list_of_skills_sends_no_statement_per_skill() {
    run(async |app| {
        let client = app.project().await;
        client.new_skill("first").await;
        // From here on, the key is cached and the connection is open.
        let few = count_statements(&client, "/api/v1/agent_skills?limit=1").await;
        assert!(few > 0, "nothing was counted");
        insert_skills(&app, &client, 300).await;
        assert_eq!(count_statements(&client, "/api/v1/agent_skills?limit=200").await, few);
        let page = client.get("/api/v1/agent_skills?limit=200").await.data();
        assert_eq!(page["items"].as_array().unwrap().len(), 200);
        assert_eq!(paths(&page["items"][199]), ["1.md", "2.md", "3.md"]);
        let space = client.new_space().await;
        let path = format!("/api/v1/learning_spaces/{space}/skills");
        let two = count_statements(&client, &path).await;
        sqlx::query(
            "insert into learning_space_skills (id, learning_space_id, skill_id, skill_name)
             select gen_random_uuid(), $1::uuid, id, name from agent_skills where name in ('first', 'filled')
             order by created_at limit 2",
        )
        .bind(&space)
        .execute(&*app.app.db)
        .await
        .unwrap();
        assert_eq!(count_statements(&client, &path).await, two);
    })
    .await;
}

#[tokio::test]
async fn a_page_with_very_many_files_has_fewer_skills() {
    run(async |app| {
        let client = app.project().await;
        client.new_skill("first").await;
        sqlx::query(
            "with disk as (insert into disks (project_id, changed_at)
                           select $1, now() from generate_series(1, 12) returning id),
                  file as (insert into artifact_versions
                               (disk_id, path, filename, from_revision, blob_id, meta, mime, size, sha256)
                           select d.id, '/', f::text, f, b.id, '{}', 'text/plain', 1, ''
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
