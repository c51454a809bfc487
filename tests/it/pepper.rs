//! A pepper other than the one that the database was set up with is refused before anything is written.

use std::fs;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};

use crate::support::postgres;
use crate::support::program::{Program, data_folder};

const KEY: &str = "sk-ac-your-root-api-bearer-token";
const RIGHT: (&str, &str) = ("ROOT_SECRET_PEPPER", "the right pepper");
const WRONG: (&str, &str) = ("ROOT_SECRET_PEPPER", "another pepper");

async fn ping(program: &Program, key: &str) -> u16 {
    let client = reqwest::Client::new();
    client.get(format!("{}/api/v1/ping", program.url)).bearer_auth(key).send().await.unwrap().status().as_u16()
}

/// Everything in the tables that a start may write.
async fn contents(database: &PgConnectOptions) -> String {
    let mut conn = database.connect().await.unwrap();
    let rows = "select concat((select string_agg(p::text, ',' order by id) from projects p),
                              (select string_agg(s::text, ',' order by name) from server_state s))";
    let rows = sqlx::query_scalar(rows).fetch_one(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    rows
}

async fn execute(database: &PgConnectOptions, sql: &str) {
    let mut conn: PgConnection = database.connect().await.unwrap();
    sqlx::query(sql).execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
}

const FORGET_DIGEST: &str = "delete from server_state where name = 'pepper_digest'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_pepper_is_refused_and_the_first_process_keeps_working() {
    let database = postgres::new_database().await;
    let url = postgres::url_of(&database);
    let (first, second) = (data_folder(), data_folder());
    let program = Program::start(first.path(), &[("DATABASE_URL", &url), RIGHT]);
    assert_eq!(ping(&program, KEY).await, 200);
    let before = contents(&database).await;
    let refusal = Program::refusal(second.path(), &[("DATABASE_URL", &url), WRONG]);
    assert!(refusal.contains("ROOT_SECRET_PEPPER") && refusal.contains("former value"), "{refusal}");
    assert_eq!(contents(&database).await, before, "the refused process has written something");
    assert_eq!(ping(&program, KEY).await, 200);
    assert!(program.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_first_starts_with_different_peppers_do_not_both_succeed() {
    let database = postgres::new_database().await;
    let url = postgres::url_of(&database);
    let start = |pepper| {
        let url = url.clone();
        tokio::task::spawn_blocking(move || {
            let folder = data_folder();
            Program::try_start(folder.path(), &[("DATABASE_URL", &url), pepper]).map(|program| (program, folder))
        })
    };
    let (one, other) = tokio::join!(start(RIGHT), start(WRONG));
    let started: Vec<_> = [one.unwrap(), other.unwrap()].into_iter().flatten().collect();
    assert_eq!(started.len(), 1);
    assert_eq!(ping(&started[0].0, KEY).await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_pepper_file_is_not_replaced() {
    let folder = data_folder();
    let file = folder.path().join("pepper");
    assert!(Program::start(folder.path(), &[]).stop().success());
    let pepper = fs::read_to_string(&file).unwrap();

    fs::remove_file(&file).unwrap();
    let refusal = Program::refusal(folder.path(), &[]);
    assert!(refusal.contains("pepper") && refusal.contains("missing") && refusal.contains("backup"), "{refusal}");
    assert!(!file.exists(), "a new pepper was made");

    fs::write(&file, "another pepper\n").unwrap();
    let refusal = Program::refusal(folder.path(), &[]);
    assert!(refusal.contains(file.to_str().unwrap()) && refusal.contains("restore"), "{refusal}");

    // The content of the file, set as a setting instead.
    let program = Program::start(folder.path(), &[("ROOT_SECRET_PEPPER", &pepper)]);
    assert_eq!(ping(&program, KEY).await, 200);
    assert!(program.stop().success());

    fs::write(&file, &pepper).unwrap();
    let refusal = Program::refusal(folder.path(), &[WRONG]);
    assert!(refusal.contains("unset") && refusal.contains(file.to_str().unwrap()), "{refusal}");
    let program = Program::start(folder.path(), &[]);
    assert_eq!(ping(&program, KEY).await, 200);
    assert!(program.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_without_a_digest_is_verified_by_the_root_token() {
    let database = postgres::new_database().await;
    let url = postgres::url_of(&database);
    let url = ("DATABASE_URL", url.as_str());
    let folder = data_folder();
    assert!(Program::start(folder.path(), &[url, RIGHT]).stop().success());
    let digest = contents(&database).await;

    execute(&database, FORGET_DIGEST).await;
    let before = contents(&database).await;
    for settings in [&[url, WRONG][..], &[url, RIGHT, ("ROOT_API_BEARER_TOKEN", "a-new-token")]] {
        let refusal = Program::refusal(folder.path(), settings);
        assert!(refusal.contains("ROOT_API_BEARER_TOKEN") && refusal.contains("former"), "{refusal}");
        assert_eq!(contents(&database).await, before, "the refused process has written something");
    }
    // A key that was rotated since leaves the token that was applied.
    execute(&database, "update projects set secret_key_hmac = 'rotated'").await;
    assert!(Program::start(folder.path(), &[url, RIGHT]).stop().success());
    assert_eq!(contents(&database).await.matches("pepper_digest").count(), 1);
    let is_recorded = |contents: &str| contents.contains("pepper_digest");
    assert!(is_recorded(&digest) && !is_recorded(&before));
    // From now on the token may change.
    let program = Program::start(folder.path(), &[url, RIGHT, ("ROOT_API_BEARER_TOKEN", "a-new-token")]);
    assert_eq!(ping(&program, "sk-ac-a-new-token").await, 200);
    assert!(program.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_without_projects_takes_any_pepper() {
    let database = postgres::new_database().await;
    let url = postgres::url_of(&database);
    let url = ("DATABASE_URL", url.as_str());
    // Without tables either.
    execute(&database, "drop schema public cascade").await;
    execute(&database, "create schema public").await;
    let folder = data_folder();
    assert!(Program::start(folder.path(), &[url, RIGHT]).stop().success());
    execute(&database, "delete from projects").await;
    let refusal = Program::refusal(folder.path(), &[url, WRONG]);
    assert!(refusal.contains("ROOT_SECRET_PEPPER"), "{refusal}");
    execute(&database, FORGET_DIGEST).await;
    assert!(Program::start(folder.path(), &[url, WRONG]).stop().success());
}
