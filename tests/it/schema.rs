//! Properties of the database schema and of dependencies on which the code relies.

use std::collections::{BTreeMap, BTreeSet};

use acontextd::blob::rows::EncryptionFormat;
use acontextd::conversation::format::Format;
use acontextd::conversation::parts::Role;
use acontextd::disks::FileMode;
use acontextd::disks::changes::{Actor, FileOperation};
use acontextd::jobs::{ErrorClass, JobState, WaitReason};
use acontextd::learning_spaces::LearningStatus;
use acontextd::lessons::{LessonKind, LessonState};
use acontextd::llm::Purpose;
use acontextd::llm::usage::CallOutcome;
use acontextd::messages::ProcessStatus;
use acontextd::sandboxes::provider::{CommandEnd, ProviderName};
use acontextd::sandboxes::store::SandboxState;
use acontextd::tasks::TaskStatus;
use serde_json::json;

use sqlx::{ConnectOptions, Connection};

use crate::support::server_process::{ServerProcess, data_dir};
use crate::support::{postgres, run};

#[tokio::test]
async fn every_table_that_refers_to_blobs_is_known_to_the_sweep() {
    run(async |app| {
        let referring: Vec<(String, String)> = sqlx::query_as(
            "select k.conrelid::regclass::text, a.attname::text from pg_constraint k
             join pg_attribute a on a.attrelid = k.conrelid and a.attnum = k.conkey[1]
             where k.contype = 'f' and k.confrelid = 'blobs'::regclass and k.conrelid <> 'blob_releases'::regclass",
        )
        .fetch_all(&*app.app.db)
        .await
        .unwrap();
        assert!(!referring.is_empty());
        let view: String = app.fetch_scalar("select pg_get_viewdef('blob_references')").await;
        for (table, column) in referring {
            assert!(view.contains(&format!("{table}.{column}")), "{table}.{column} is not in blob_references:\n{view}");
            let triggers: i64 = sqlx::query_scalar(
                "select count(*) from pg_trigger t join pg_proc p on p.oid = t.tgfoid
                 where t.tgrelid = $1::regclass and p.proname = 'release_blobs' and t.tgtype & 8 = 8",
            )
            .bind(&table)
            .fetch_one(&*app.app.db)
            .await
            .unwrap();
            assert_eq!(triggers, 1, "{table} has no trigger that releases blobs");
        }
    })
    .await;
}

/// The columns with a fixed set of texts, and the values of the enum of each.
const TEXT_ENUMS: &[(&str, &[&str])] = &[
    ("artifact_versions.mode", FileMode::VALUES),
    ("blobs.encryption_format", EncryptionFormat::VALUES),
    // Blob states are used only in SQL.
    ("blobs.state", &["pending", "live", "dead"]),
    ("change_files.op", FileOperation::VALUES),
    ("changes.actor", Actor::VALUES),
    ("jobs.state", JobState::VALUES),
    ("jobs.wait_reason", WaitReason::VALUES),
    ("learning_space_sessions.status", LearningStatus::VALUES),
    ("messages.format", Format::VALUES),
    ("messages.role", Role::VALUES),
    ("lessons.kind", LessonKind::VALUES),
    ("lessons.state", LessonState::VALUES),
    ("lessons.task_status", TaskStatus::VALUES),
    ("sandbox_commands.end_reason", CommandEnd::VALUES),
    ("sandboxes.provider", ProviderName::VALUES),
    ("sandboxes.state", SandboxState::VALUES),
    ("messages.session_task_process_status", ProcessStatus::VALUES),
    ("model_calls.outcome", CallOutcome::VALUES),
    ("model_calls.purpose", Purpose::VALUES),
    ("jobs.error_class", ErrorClass::VALUES),
    ("tasks.status", TaskStatus::VALUES),
];

#[tokio::test]
async fn checks_of_columns_list_the_values_of_their_enums() {
    run(async |app| {
        let checks: Vec<(String, String)> = sqlx::query_as(
            "select k.conrelid::regclass || '.' || a.attname, pg_get_constraintdef(k.oid) from pg_constraint k
             join pg_attribute a on a.attrelid = k.conrelid and a.attnum = k.conkey[1]
             where k.contype = 'c' and pg_get_constraintdef(k.oid) like '%ANY (ARRAY[%' order by 1",
        )
        .fetch_all(&*app.app.db)
        .await
        .unwrap();
        // CHECK ((state = ANY (ARRAY['ready'::text, 'running'::text])))
        let quoted_values = |check: &str| {
            let quoted: Vec<_> = check.split('\'').skip(1).step_by(2).map(ToOwned::to_owned).collect();
            BTreeSet::from_iter(quoted)
        };
        let actual: BTreeMap<_, _> =
            checks.into_iter().map(|(column, check)| (column, quoted_values(&check))).collect();
        let set = |values: &[&str]| values.iter().map(ToString::to_string).collect();
        let expected = TEXT_ENUMS.iter().map(|(column, values)| ((*column).to_owned(), set(values))).collect();
        assert_eq!(actual, expected);
    })
    .await;
}

#[tokio::test]
async fn columns_of_other_programs_keep_their_names_and_defaults() {
    run(async |app| {
        app.execute(
            "insert into projects (id, secret_key_hmac, secret_key_hash_phc, encryption_enabled, configs)
                     values (gen_random_uuid(), 'hmac', 'phc', false, '{}')",
        )
        .await;
        for query in [
            "select id, created_at from disks",
            "select project_id, asset_meta -> 'size_b', created_at from asset_references",
            "select id, secret_key_hmac, secret_key_hash_phc, encryption_enabled, configs, created_at, updated_at
             from projects",
        ] {
            app.execute(query).await;
        }
    })
    .await;
}

#[tokio::test]
async fn two_processes_can_migrate_a_database_concurrently() {
    run(async |app| {
        let (one, other) = tokio::join!(
            acontextd::db::migrations::migrate(&app.app.db),
            acontextd::db::migrations::migrate(&app.app.db)
        );
        one.and(other).unwrap();
        app.execute("drop schema public cascade; ").await;
        app.execute("create schema public").await;
        let (one, other) = tokio::join!(
            acontextd::db::migrations::migrate(&app.app.db),
            acontextd::db::migrations::migrate(&app.app.db)
        );
        one.and(other).unwrap();
        assert_eq!(app.fetch_scalar::<i64>("select count(*) from projects").await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_another_version_is_rejected_unchanged() {
    for (change, expected) in [
        ("update _sqlx_migrations set checksum = '\\x00' where version = 1", "from before its first release"),
        (
            "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
             values (9999, 'later', true, '\\x00', 0)",
            "migration 9999, which this version of acontextd does not know",
        ),
        (
            "update _sqlx_migrations set success = false where version = 2",
            "migration 2 of the database was interrupted",
        ),
        ("delete from _sqlx_migrations where version = 2", "migration 2 is missing"),
    ] {
        let database = postgres::new_database().await;
        let mut conn = database.connect().await.unwrap();
        sqlx::query(change).execute(&mut conn).await.unwrap();
        let dir = data_dir();
        let settings = [("DATABASE_URL", postgres::database_url(&database)), ("ROOT_SECRET_PEPPER", "a pepper".into())];
        let error =
            ServerProcess::startup_error(dir.path(), &settings.each_ref().map(|(name, value)| (*name, value.as_str())));
        assert!(error.contains(expected), "{error}");
        let rows: i64 = sqlx::query_scalar("select count(*) from server_state").fetch_one(&mut conn).await.unwrap();
        assert_eq!(rows, 0, "the rejected process has written something");
        conn.close().await.unwrap();
    }
}

#[tokio::test]
async fn the_id_of_the_encryption_lock_is_stable_and_inlined() {
    run(async |app| {
        // Processes of different versions must take the same lock.
        let id: i64 = app.fetch_scalar("select encryption_lock_id('00000000-0000-0000-0000-000000000001')").await;
        assert_eq!(id, 6_702_837_531_892_833_746);
        // A function that cannot be inlined is parsed and planned in each statement that stores messages.
        let plan: Vec<String> = sqlx::query_scalar("explain (verbose) select encryption_lock_id(id) from projects")
            .fetch_all(&*app.app.db)
            .await
            .unwrap();
        assert!(!plan.concat().contains("encryption_lock_id"), "{plan:?}");
    })
    .await;
}

#[test]
fn json_keeps_digits_and_sorts_keys() {
    // A feature of any dependency can change either for the whole program.
    let text = r#"{"b": 12345678901234567890.10, "a": 1}"#;
    let value: serde_json::Value = serde_json::from_str(text).unwrap();
    assert_eq!(value.to_string(), r#"{"a":1,"b":12345678901234567890.10}"#);
    assert_eq!(json!({"z": 1, "y": 2}).to_string(), r#"{"y":2,"z":1}"#);
}
