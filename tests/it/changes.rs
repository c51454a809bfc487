//! The changes of files: their rows, and the versions that they create and keep.

use std::collections::{BTreeMap, BTreeSet};

use acontextd::blob::spool::Spool;
use acontextd::db::migrations::MIGRATOR;
use acontextd::disks::FileMode;
use acontextd::disks::apply::{self, ApplyError, Change, FileChange, NewContent};
use acontextd::disks::changes::{Actor, Cause, MAX_MESSAGES, MAX_NOTE_CHARS};
use acontextd::disks::path::FilePath;
use acontextd::encryption::ProjectEncryption;
use acontextd::ids::{ChangeId, DiskId, MessageId, ProjectId};
use axum::body::Body;
use axum::http::Method;
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Map, json};
use sqlx::{ConnectOptions, Connection};
use uuid::Uuid;

use crate::support::client::Client;
use crate::support::samples::skill_md;
use crate::support::statements::count_statements;
use crate::support::{TestApp, TestConfig, postgres, run, run_with};

/// The cause of a change of the learner.
pub const LEARNER: Cause<'static> = Cause { actor: Actor::Learner, ..Cause::REQUEST };
/// The setting of the number of versions that a file keeps.
const FILE_VERSIONS: &str = "ACONTEXTD_FILE_VERSIONS";

/// A skill of a client.
pub struct Skill<'a> {
    pub app: &'a TestApp,
    project: ProjectId,
    pub id: String,
    pub disk: DiskId,
}

impl<'a> Skill<'a> {
    /// Uploads a skill that has only a SKILL.md.
    pub async fn create(app: &'a TestApp, client: &Client, name: &str) -> Self {
        let skill = client.upload_skill(&[("SKILL.md", &skill_md(name))]).await.data();
        let text = |key: &str| skill[key].as_str().unwrap().to_owned();
        let disk = DiskId(text("disk_id").parse().unwrap());
        Self { app, project: ProjectId(client.project()), id: text("id"), disk }
    }

    /// Applies changes in a transaction, as the learner does. Rolls back if they cannot be applied.
    async fn try_apply(&self, cause: Cause<'_>, changes: &[FileChange]) -> Result<Option<ChangeId>, ApplyError> {
        let mut tx = self.app.app.db.begin().await.unwrap();
        let max_versions = self.app.app.config.limits.max_file_versions;
        let applied = apply::apply(&mut tx, self.project, self.disk, changes, cause, max_versions).await.unwrap();
        if applied.is_ok() {
            tx.commit().await.unwrap();
        }
        applied
    }

    pub async fn apply(&self, cause: Cause<'_>, changes: &[FileChange]) -> Option<ChangeId> {
        self.try_apply(cause, changes).await.unwrap()
    }

    /// Returns a change that stores a text.
    pub async fn put(&self, path: &str, text: &str, mode: Option<FileMode>) -> FileChange {
        let content = Spool::from_bytes(Bytes::from(text.to_owned()));
        let encryption = ProjectEncryption::unencrypted(self.project);
        let ingest = self.app.app.blobs.ingest(&encryption, stream::iter([content.clone()])).await.unwrap();
        let mut tx = self.app.app.db.begin().await.unwrap();
        let blob = ingest.make_live(&mut tx).await.unwrap().unwrap().get(&content.sha256).unwrap();
        tx.commit().await.unwrap();
        let size = i64::try_from(text.len()).unwrap();
        let content = NewContent { blob, mime: "text/plain".into(), size, sha256: content.sha256 };
        change(path, Change::Put { content, meta: Map::new(), mode })
    }

    /// Returns the state of the disk at a revision: path and file name, content hash and mode.
    async fn state_at(&self, revision: i64) -> BTreeMap<String, (String, FileMode)> {
        let rows: Vec<(String, String, FileMode)> = sqlx::query_as(
            "select path || filename, sha256, mode from artifact_versions
             where disk_id = $1 and from_revision <= $2 and (to_revision is null or to_revision > $2)",
        )
        .bind(self.disk)
        .bind(revision)
        .fetch_all(&*self.app.app.db)
        .await
        .unwrap();
        rows.into_iter().map(|(path, sha256, mode)| (path, (sha256, mode))).collect()
    }

    /// Returns the present state of the disk, as readers see it.
    async fn state(&self) -> BTreeMap<String, (String, FileMode)> {
        let rows: Vec<(String, String, FileMode)> =
            sqlx::query_as("select path || filename, sha256, mode from current_artifacts where disk_id = $1")
                .bind(self.disk)
                .fetch_all(&*self.app.app.db)
                .await
                .unwrap();
        rows.into_iter().map(|(path, sha256, mode)| (path, (sha256, mode))).collect()
    }
}

pub fn path(text: &str) -> FilePath {
    FilePath::parse(text).unwrap()
}

pub fn change(from: &str, change: Change) -> FileChange {
    FileChange { path: path(from), change }
}

/// Returns the files of all changes in their order: operation, path, previous path, and whether the version still exists.
async fn recorded_files(app: &TestApp) -> Vec<(String, String, Option<String>, bool)> {
    sqlx::query_as(
        "select f.op, f.path || f.filename, f.from_path || f.from_filename, v.id is not null
         from change_files f left join artifact_versions v on v.id = f.version_id order by f.change_id, f.position",
    )
    .fetch_all(&*app.app.db)
    .await
    .unwrap()
}

fn recorded(op: &str, path: &str, from: Option<&str>, has_version: bool) -> (String, String, Option<String>, bool) {
    (op.to_owned(), path.to_owned(), from.map(ToOwned::to_owned), has_version)
}

#[tokio::test]
async fn each_request_that_changes_a_content_is_recorded() {
    run(async |app| {
        let client = app.project().await;
        let disk = client.new_disk().await;
        let artifact = format!("/api/v1/disk/{disk}/artifact");
        client.upload(&disk, "/d/", "a.txt", "first").await;
        client.upload(&disk, "/d/", "a.txt", "second").await;
        client.upload(&disk, "/", "b.txt", "b").await;
        client.put(&artifact, json!({"file_path": "/b.txt", "meta": "{\"v\": 2}"})).await.assert_status(200);
        let delete = client.request(Method::DELETE, &format!("{artifact}?file_path=/d/a.txt"));
        let delete = delete.header("x-request-id", "the-deletion").body(Body::empty()).unwrap();
        client.send(delete).await.assert_status(200);
        client.delete(&format!("{artifact}?file_path=/d/a.txt")).await.assert_status(404);
        let files = recorded_files(&app).await;
        let expected = [
            recorded("create", "/d/a.txt", None, false),
            recorded("replace", "/d/a.txt", None, false),
            recorded("create", "/b.txt", None, true),
            recorded("delete", "/d/a.txt", None, false),
        ];
        assert_eq!(files, expected, "a change of metadata alone is not recorded");
        let causes = "select count(*) from changes where actor = 'key' and at <= now() and message_ids = '{}'
                        and num_nulls(job_id, model, learning_space_id, session_id, task_id, lesson_id, note) = 7";
        assert_eq!(app.fetch_scalar::<i64>(causes).await, 4, "each change has a row");
        let requests = "select count(distinct request_id) from changes";
        assert_eq!(app.fetch_scalar::<i64>(requests).await, 4, "each change names its request");
        let deletion =
            "select op from change_files f join changes c on c.id = f.change_id where request_id = 'the-deletion'";
        assert_eq!(app.fetch_scalar::<String>(deletion).await, "delete");
        let with_version = "select count(*) from change_files f join artifact_versions v
                            on v.id = f.version_id and v.change_id = f.change_id and v.filename = f.filename";
        assert_eq!(app.fetch_scalar::<i64>(with_version).await, 1);
        let without_change = "select count(*) from artifact_versions where change_id is null and to_revision is null";
        assert_eq!(app.fetch_scalar::<i64>(without_change).await, 1, "the version with other metadata");
        client.delete(&format!("/api/v1/disk/{disk}")).await.assert_status(200);
        let left = "select (select count(*) from changes) + (select count(*) from change_files)";
        assert_eq!(app.fetch_scalar::<i64>(left).await, 0, "the changes are deleted with the disk");
    })
    .await;
}

#[tokio::test]
async fn a_change_is_recorded_without_a_statement_of_its_own() {
    run(async |app| {
        let client = app.project().await;
        let skill = Skill::create(&app, &client, "kit").await;
        let disk = DiskId(client.new_disk().await.parse().unwrap());
        let mut counts = Vec::new();
        for text in ["a new file", "its next content"] {
            let changes = [skill.put("/a.md", text, None).await];
            let mut tx = app.app.db.begin().await.unwrap();
            let project = skill.project;
            let work = async {
                apply::apply(&mut tx, project, disk, &changes, Cause::REQUEST, 50).await.unwrap().unwrap();
            };
            counts.push(count_statements(work).await.total);
            tx.commit().await.unwrap();
        }
        // The lock of the disk and the new file; for a replacement also its version, and the deletion of old versions.
        assert_eq!(counts, [2, 4]);
    })
    .await;
}

#[tokio::test]
async fn a_skill_upload_is_one_change_of_all_its_files() {
    run(async |app| {
        let client = app.project().await;
        let files = [("z.txt", "z"), ("SKILL.md", &skill_md("kit")), ("scripts/run.py", "pass")];
        client.upload_skill(&files).await.assert_status(201);
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from changes").await, 1);
        let paths = ["/SKILL.md", "/z.txt", "/scripts/run.py"];
        assert_eq!(recorded_files(&app).await, paths.map(|path| recorded("create", path, None, true)));
        let disk = "select count(*) from changes c join agent_skills s using (disk_id, project_id)";
        assert_eq!(app.fetch_scalar::<i64>(disk).await, 1);
    })
    .await;
}

#[tokio::test]
async fn files_that_the_learner_moves_or_deletes_can_be_restored() {
    run_with(TestConfig::default().with("ACONTEXTD_BLOB_GRACE", "0s"), async |app| {
        let client = app.project().await;
        let skill = Skill::create(&app, &client, "kit").await;
        let script = "echo 1";
        skill.apply(LEARNER, &[skill.put("/run.sh", script, Some(FileMode::Executable)).await]).await;
        let artifact = format!("/api/v1/disk/{}/artifact", skill.disk);
        client.put(&artifact, json!({"file_path": "/run.sh", "meta": "{\"v\": 2}"})).await.assert_status(200);
        let get = async |path: &str| client.get(&format!("{artifact}?file_path={path}")).await;
        let before = get("/run.sh").await.data();

        let moved = [change("/run.sh", Change::Move { to: path("/bin/start.sh") })];
        skill.apply(LEARNER, &moved).await.unwrap();
        get("/run.sh").await.assert_status(404);
        let after = get("/bin/start.sh").await.data();
        assert_eq!(after["content"]["raw"], script);
        assert_eq!(after["artifact"]["meta"]["v"], 2);
        assert_eq!(after["artifact"]["created_at"], before["artifact"]["created_at"], "it is the same file");
        assert_ne!(after["artifact"]["updated_at"], before["artifact"]["updated_at"]);
        let mode = "select mode from current_artifacts where filename = 'start.sh'";
        assert_eq!(app.fetch_scalar::<FileMode>(mode).await, FileMode::Executable);

        skill.apply(LEARNER, &[change("/bin/start.sh", Change::Remove)]).await.unwrap();
        get("/bin/start.sh").await.assert_status(404);
        let files = recorded_files(&app).await;
        let expected = [
            recorded("create", "/SKILL.md", None, true),
            recorded("create", "/run.sh", None, true),
            recorded("move", "/bin/start.sh", Some("/run.sh"), true),
            recorded("delete", "/bin/start.sh", None, true),
        ];
        assert_eq!(files, expected);
        app.app.blobs.sweep().await.unwrap();
        let kept = "select count(*) from artifact_versions v join blobs b on b.id = v.blob_id and b.state = 'live'
                    where v.filename in ('run.sh', 'start.sh') and v.to_revision is not null";
        assert_eq!(app.fetch_scalar::<i64>(kept).await, 3, "two versions of the old path, and one of the new path");
        assert_eq!(app.blobs.keys().len(), 2, "the objects of SKILL.md and of the script");
    })
    .await;
}

#[tokio::test]
async fn a_move_must_have_a_source_and_a_free_destination() {
    run(async |app| {
        let client = app.project().await;
        let skill = Skill::create(&app, &client, "kit").await;
        skill.apply(LEARNER, &[skill.put("/a.md", "a", None).await]).await;
        let before = skill.state().await;
        for (from, to) in [("/a.md", "/SKILL.md"), ("/none.md", "/b.md"), ("/a.md", "/a.md")] {
            let changes = [skill.put("/c.md", "c", None).await, change(from, Change::Move { to: path(to) })];
            let error = skill.try_apply(LEARNER, &changes).await.unwrap_err();
            assert_eq!(error, ApplyError::CannotMove { from: path(from), to: path(to) });
        }
        assert_eq!(skill.state().await, before);
        // Changes of a skill are applied in their order, so a path can become free first.
        let swap = [
            change("/a.md", Change::Move { to: path("/b.md") }),
            skill.put("/a.md", "new", None).await,
            change("/b.md", Change::Remove),
            change("/a.md", Change::Move { to: path("/b.md") }),
        ];
        skill.apply(LEARNER, &swap).await.unwrap();
        assert_eq!(skill.state().await.into_keys().collect::<Vec<_>>(), ["/SKILL.md", "/b.md"]);
        let id = skill.disk.to_string();
        assert_eq!(client.download(&id, "b.md").await.unwrap(), b"new");
    })
    .await;
}

#[tokio::test]
async fn a_change_without_an_effect_is_not_recorded() {
    run(async |app| {
        let client = app.project().await;
        let skill = Skill::create(&app, &client, "kit").await;
        for nothing in [Change::Delete, Change::Remove, Change::SetMeta(Map::new())] {
            assert_eq!(skill.apply(LEARNER, &[change("/none.md", nothing)]).await, None);
        }
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from changes").await, 1, "the upload of the skill");
        let other = Skill { project: ProjectId::new(), ..Skill::create(&app, &client, "other").await };
        let removal = [change("/SKILL.md", Change::Remove)];
        assert_eq!(other.try_apply(LEARNER, &removal).await, Err(ApplyError::DiskNotFound));
    })
    .await;
}

#[tokio::test]
async fn a_path_keeps_its_latest_versions_whatever_happens_to_its_files() {
    run_with(TestConfig::default().with(FILE_VERSIONS, "3"), async |app| {
        let client = app.project().await;
        let skill = Skill::create(&app, &client, "kit").await;
        let max_versions = "select coalesce(max(n), 0) from (select count(*) as n from artifact_versions
                            group by path, filename) v";
        for round in 0..4 {
            for step in 0..3 {
                let text = format!("{round} {step}");
                skill.apply(LEARNER, &[skill.put("/a.md", &text, None).await]).await;
                assert!(app.fetch_scalar::<i64>(max_versions).await <= 3, "put {text}");
            }
            let end = if round % 2 == 0 { Change::Remove } else { Change::Move { to: path("/b.md") } };
            skill.apply(LEARNER, &[change("/b.md", Change::Remove), change("/a.md", end)]).await;
            assert!(app.fetch_scalar::<i64>(max_versions).await <= 3, "end {round}");
        }
        let kept = "select count(*) from artifact_versions where filename = 'a.md' and to_revision is not null";
        assert_eq!(app.fetch_scalar::<i64>(kept).await, 3);
        let latest: Vec<String> =
            sqlx::query_scalar("select sha256 from artifact_versions where filename = 'a.md' order by from_revision")
                .fetch_all(&*app.app.db)
                .await
                .unwrap();
        let expected = ["3 0", "3 1", "3 2"].map(|text| Spool::from_bytes(Bytes::from(text)).sha256.clone());
        assert_eq!(latest, expected);
    })
    .await;
}

#[tokio::test]
async fn the_state_at_each_revision_is_the_state_that_readers_saw() {
    run_with(TestConfig::default().with(FILE_VERSIONS, "1000"), async |app| {
        let client = app.project().await;
        let skill = Skill::create(&app, &client, "kit").await;
        let paths = ["/a.md", "/b.md", "/d/a.md", "/d/e/c.md"];
        let mut random = 7_u64;
        let mut choose = |n: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from((random >> 33) % n).unwrap()
        };
        let mut seen = Vec::new();
        for step in 0..80 {
            let mut changes = Vec::new();
            for _ in 0..=choose(2) {
                let (from, to) = (paths[choose(4)], paths[choose(4)]);
                let mode = [None, Some(FileMode::Regular), Some(FileMode::Executable)][choose(3)];
                changes.push(match choose(5) {
                    0 | 1 => skill.put(from, &step.to_string(), mode).await,
                    2 => change(from, Change::SetMeta(Map::from_iter([("step".to_owned(), json!(step))]))),
                    3 => change(from, Change::Remove),
                    _ => change(from, Change::Move { to: path(to) }),
                });
            }
            // A move that is not possible rolls everything back.
            let _ = skill.try_apply(LEARNER, &changes).await;
            let revision = app.fetch_scalar::<i64>("select last_value from artifact_revision").await;
            seen.push((revision, skill.state().await));
        }
        let states: BTreeSet<_> = seen.iter().map(|(_, state)| format!("{state:?}")).collect();
        assert!(states.len() > 40, "only {} states", states.len());
        for (revision, state) in seen {
            assert_eq!(skill.state_at(revision).await, state, "at revision {revision}");
        }
    })
    .await;
}

#[tokio::test]
async fn modes_are_kept_by_replacements_of_the_learner_and_reset_by_uploads() {
    run(async |app| {
        let client = app.project().await;
        let skill = Skill::create(&app, &client, "kit").await;
        let mode = async || skill.state().await["/run.sh"].1;
        skill.apply(LEARNER, &[skill.put("/run.sh", "1", None).await]).await;
        assert_eq!(mode().await, FileMode::Regular);
        skill.apply(LEARNER, &[skill.put("/run.sh", "2", Some(FileMode::Executable)).await]).await;
        skill.apply(LEARNER, &[skill.put("/run.sh", "3", None).await]).await;
        skill.apply(LEARNER, &[change("/run.sh", Change::SetMeta(Map::new()))]).await;
        assert_eq!(mode().await, FileMode::Executable);
        client.upload(&skill.disk.to_string(), "/", "run.sh", "4").await;
        assert_eq!(mode().await, FileMode::Regular);
    })
    .await;
}

#[tokio::test]
async fn a_cause_is_stored_with_at_most_200_messages_and_500_characters() {
    run(async |app| {
        let client = app.project().await;
        let skill = Skill::create(&app, &client, "kit").await;
        let messages: Vec<_> = (0..MAX_MESSAGES + 50).map(|_| MessageId::new()).collect();
        let note = "ü".repeat(MAX_NOTE_CHARS + 50);
        let cause = Cause {
            request_id: Some("request"),
            model: Some("a-model"),
            messages: &messages,
            note: Some(&note),
            ..LEARNER
        };
        let id = skill.apply(cause, &[skill.put("/a.md", "a", None).await]).await.unwrap();
        let row: (String, String, String, Vec<MessageId>, String) =
            sqlx::query_as("select actor, request_id, model, message_ids, note from changes where id = $1")
                .bind(id)
                .fetch_one(&*app.app.db)
                .await
                .unwrap();
        let text = |text: &str| text.to_owned();
        let stored = (messages[..MAX_MESSAGES].to_vec(), "ü".repeat(MAX_NOTE_CHARS));
        assert_eq!(row, (text("learner"), text("request"), text("a-model"), stored.0, stored.1));
    })
    .await;
}

#[tokio::test]
async fn versions_from_before_the_changes_survive_the_migration() {
    let database = postgres::new_database().await;
    let mut conn = database.connect().await.unwrap();
    let run_sql = async |conn: &mut sqlx::PgConnection, sql: &str| {
        sqlx::raw_sql(sql).execute(conn).await.unwrap();
    };
    run_sql(&mut conn, "drop schema public cascade; create schema public").await;
    for migration in MIGRATOR.iter().filter(|migration| migration.version < 17) {
        run_sql(&mut conn, &migration.sql).await;
    }
    run_sql(
        &mut conn,
        "insert into projects (id, secret_key_hmac, secret_key_hash_phc) values (gen_random_uuid(), 'hmac', 'phc');
         insert into disks (project_id) select id from projects;
         insert into blobs (id, project_id, object_key, sha256, size, state)
         select gen_random_uuid(), id, 'key', 'hash', 1, 'live' from projects;
         insert into artifacts (disk_id, path, filename) select id, '/', 'a.txt' from disks;
         insert into artifact_versions
             (disk_id, path, filename, from_revision, to_revision, blob_id, meta, mime, size, sha256, author)
         select d.id, '/', 'a.txt', n, case n when 1 then 2 end, b.id, '{}', 'text/plain', n, 'hash', 'key'
         from disks d, blobs b, generate_series(1, 2) n",
    )
    .await;
    let migration = MIGRATOR.iter().find(|migration| migration.version == 17).unwrap();
    run_sql(&mut conn, &migration.sql).await;
    let rows: Vec<(i64, Option<Uuid>, String, Uuid)> =
        sqlx::query_as("select size, change_id, mode, id from artifact_versions order by size")
            .fetch_all(&mut conn)
            .await
            .unwrap();
    assert_eq!(
        rows.iter().map(|row| (row.0, row.1, row.2.as_str())).collect::<Vec<_>>(),
        [(1, None, "0644"), (2, None, "0644")]
    );
    assert_ne!(rows[0].3, rows[1].3);
    let current: (i64, Uuid) =
        sqlx::query_as("select size, version_id from current_artifacts").fetch_one(&mut conn).await.unwrap();
    assert_eq!(current, (2, rows[1].3));
    conn.close().await.unwrap();
}
