//! What the database and the crates must be like for the rest to hold.

use serde_json::json;

use crate::support::run;

#[tokio::test]
async fn every_table_that_refers_to_blobs_is_known_to_the_sweep() {
    run(async |app| {
        let referring: Vec<(String, String)> = sqlx::query_as(
            "select k.conrelid::regclass::text, a.attname::text from pg_constraint k
             join pg_attribute a on a.attrelid = k.conrelid and a.attnum = k.conkey[1]
             where k.contype = 'f' and k.confrelid = 'blobs'::regclass and k.conrelid <> 'released_blobs'::regclass",
        )
        .fetch_all(&*app.app.db)
        .await
        .unwrap();
        assert!(!referring.is_empty());
        let view: String = app.value("select pg_get_viewdef('blob_references')").await;
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

#[tokio::test]
async fn what_others_read_and_write_has_its_names_and_defaults() {
    run(async |app| {
        app.execute("insert into projects (id, secret_key_hmac, secret_key_hash_phc, encryption_enabled, configs)
                     values (gen_random_uuid(), 'hmac', 'phc', false, '{}')")
        .await;
        for query in [
            "select id, created_at from disks",
            "select project_id, asset_meta -> 'size_b', created_at from asset_references",
            "select id, secret_key_hmac, secret_key_hash_phc, encryption_enabled, configs, created_at, updated_at from projects",
        ] {
            app.execute(query).await;
        }
    })
    .await;
}

#[tokio::test]
async fn two_processes_may_bring_a_database_up_to_date_at_once() {
    run(async |app| {
        let (one, other) = tokio::join!(acontextd::db::migrate(&app.app.db), acontextd::db::migrate(&app.app.db));
        one.and(other).unwrap();
        app.execute("drop schema public cascade; ").await;
        app.execute("create schema public").await;
        let (one, other) = tokio::join!(acontextd::db::migrate(&app.app.db), acontextd::db::migrate(&app.app.db));
        one.and(other).unwrap();
        assert_eq!(app.value::<i64>("select count(*) from projects").await, 0);
    })
    .await;
}

#[test]
fn json_keeps_digits_and_sorts_keys() {
    // A dependency can switch either off for the whole program.
    let text = r#"{"b": 12345678901234567890.10, "a": 1}"#;
    let value: serde_json::Value = serde_json::from_str(text).unwrap();
    assert_eq!(value.to_string(), r#"{"a":1,"b":12345678901234567890.10}"#);
    assert_eq!(json!({"z": 1, "y": 2}).to_string(), r#"{"y":2,"z":1}"#);
}
