//! A server rejects a pepper other than the one that the database was set up with, before it writes anything.

use std::fs;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};

use crate::support::postgres;
use crate::support::server_process::{ServerProcess, data_dir};

const KEY: &str = "sk-ac-your-root-api-bearer-token";
const RIGHT: (&str, &str) = ("ROOT_SECRET_PEPPER", "the right pepper");
const WRONG: (&str, &str) = ("ROOT_SECRET_PEPPER", "another pepper");

async fn ping(server: &ServerProcess, key: &str) -> u16 {
    let client = reqwest::Client::new();
    client.get(format!("{}/api/v1/ping", server.url)).bearer_auth(key).send().await.unwrap().status().as_u16()
}

/// Returns all rows of the tables that startup may write.
async fn read_rows(database: &PgConnectOptions) -> String {
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

const DELETE_DIGEST: &str = "delete from server_state where name = 'pepper_digest'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_pepper_is_rejected_and_the_first_server_continues() {
    let database = postgres::new_database().await;
    let url = postgres::database_url(&database);
    let (first, second) = (data_dir(), data_dir());
    let server = ServerProcess::start(first.path(), &[("DATABASE_URL", &url), RIGHT]);
    assert_eq!(ping(&server, KEY).await, 200);
    let before = read_rows(&database).await;
    let error = ServerProcess::startup_error(second.path(), &[("DATABASE_URL", &url), WRONG]);
    assert!(error.contains("ROOT_SECRET_PEPPER") && error.contains("previous value"), "{error}");
    assert_eq!(read_rows(&database).await, before, "the rejected process has written something");
    assert_eq!(ping(&server, KEY).await, 200);
    assert!(server.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_startups_with_different_peppers_do_not_both_succeed() {
    let database = postgres::new_database().await;
    let url = postgres::database_url(&database);
    let start = |pepper| {
        let url = url.clone();
        tokio::task::spawn_blocking(move || {
            let dir = data_dir();
            ServerProcess::try_start(dir.path(), &[("DATABASE_URL", &url), pepper]).map(|server| (server, dir))
        })
    };
    let (one, other) = tokio::join!(start(RIGHT), start(WRONG));
    let started: Vec<_> = [one.unwrap(), other.unwrap()].into_iter().flatten().collect();
    assert_eq!(started.len(), 1);
    assert_eq!(ping(&started[0].0, KEY).await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_pepper_file_is_not_replaced() {
    let dir = data_dir();
    let file = dir.path().join("pepper");
    assert!(ServerProcess::start(dir.path(), &[]).stop().success());
    let pepper = fs::read_to_string(&file).unwrap();

    fs::remove_file(&file).unwrap();
    let error = ServerProcess::startup_error(dir.path(), &[]);
    assert!(error.contains("pepper") && error.contains("missing") && error.contains("backup"), "{error}");
    assert!(!file.exists(), "a new pepper was created");

    fs::write(&file, "another pepper\n").unwrap();
    let error = ServerProcess::startup_error(dir.path(), &[]);
    assert!(error.contains(file.to_str().unwrap()) && error.contains("restore"), "{error}");

    // The content of the file works as a setting too.
    let server = ServerProcess::start(dir.path(), &[("ROOT_SECRET_PEPPER", &pepper)]);
    assert_eq!(ping(&server, KEY).await, 200);
    assert!(server.stop().success());

    fs::write(&file, &pepper).unwrap();
    let error = ServerProcess::startup_error(dir.path(), &[WRONG]);
    assert!(error.contains("unset") && error.contains(file.to_str().unwrap()), "{error}");
    let server = ServerProcess::start(dir.path(), &[]);
    assert_eq!(ping(&server, KEY).await, 200);
    assert!(server.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_without_a_digest_is_verified_by_the_root_token() {
    let database = postgres::new_database().await;
    let url = postgres::database_url(&database);
    let url = ("DATABASE_URL", url.as_str());
    let dir = data_dir();
    assert!(ServerProcess::start(dir.path(), &[url, RIGHT]).stop().success());
    let digest = read_rows(&database).await;

    execute(&database, DELETE_DIGEST).await;
    let before = read_rows(&database).await;
    for settings in [&[url, WRONG][..], &[url, RIGHT, ("ROOT_API_BEARER_TOKEN", "a-new-token")]] {
        let error = ServerProcess::startup_error(dir.path(), settings);
        assert!(error.contains("ROOT_API_BEARER_TOKEN") && error.contains("previous"), "{error}");
        assert_eq!(read_rows(&database).await, before, "the rejected process has written something");
    }
    // After a key rotation, the lookup hash of the last applied root token still verifies the pepper.
    execute(&database, "update projects set secret_key_hmac = 'rotated'").await;
    assert!(ServerProcess::start(dir.path(), &[url, RIGHT]).stop().success());
    assert_eq!(read_rows(&database).await.matches("pepper_digest").count(), 1);
    let is_recorded = |contents: &str| contents.contains("pepper_digest");
    assert!(is_recorded(&digest) && !is_recorded(&before));
    // With the recorded digest, the root token may change.
    let server = ServerProcess::start(dir.path(), &[url, RIGHT, ("ROOT_API_BEARER_TOKEN", "a-new-token")]);
    assert_eq!(ping(&server, "sk-ac-a-new-token").await, 200);
    assert!(server.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_without_projects_accepts_any_pepper() {
    let database = postgres::new_database().await;
    let url = postgres::database_url(&database);
    let url = ("DATABASE_URL", url.as_str());
    // The database has no tables.
    execute(&database, "drop schema public cascade").await;
    execute(&database, "create schema public").await;
    let dir = data_dir();
    assert!(ServerProcess::start(dir.path(), &[url, RIGHT]).stop().success());
    execute(&database, "delete from projects").await;
    let error = ServerProcess::startup_error(dir.path(), &[url, WRONG]);
    assert!(error.contains("ROOT_SECRET_PEPPER"), "{error}");
    execute(&database, DELETE_DIGEST).await;
    assert!(ServerProcess::start(dir.path(), &[url, WRONG]).stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_pepper_is_rejected_only_for_a_new_database() {
    let database = postgres::new_database().await;
    let url = postgres::database_url(&database);
    let url = ("DATABASE_URL", url.as_str());
    let exposed = [("ACONTEXTD_HOST", "0.0.0.0"), ("ROOT_API_BEARER_TOKEN", "a-token-for-these-tests")];
    let short_pepper = ("ROOT_SECRET_PEPPER", "sk-ac-fifteen-letters");
    let long_pepper = ("ROOT_SECRET_PEPPER", "sk-ac-sixteen--letters");
    let dir = data_dir();
    let start = |settings: &[(&str, &str)]| ServerProcess::start(dir.path(), &[&[url], settings].concat());
    // The database has tables, but no projects.
    let error = ServerProcess::startup_error(dir.path(), &[&[url, short_pepper], &exposed[..]].concat());
    assert!(error.contains("ROOT_SECRET_PEPPER") && error.contains("openssl rand"), "{error}");
    assert!(read_rows(&database).await.is_empty(), "the rejected process has written something");

    // A database that was set up with the short pepper on a loopback address can be used with a warning at each startup.
    for (settings, warnings) in
        [(&[short_pepper][..], 0), (&[&[short_pepper], &exposed[..]].concat(), 1), (&[short_pepper], 0)]
    {
        let server = start(settings);
        let log = server.log();
        assert_eq!(log.matches("cannot be changed").count(), warnings, "{log}");
        assert!(!log.contains("letters"), "the log contains the pepper");
        assert!(server.stop().success());
    }

    execute(&database, "delete from projects").await;
    execute(&database, "delete from server_state").await;
    let server = start(&[&[long_pepper], &exposed[..]].concat());
    assert!(!server.log().contains("cannot be changed"), "{}", server.log());
    assert!(server.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_pepper_file_is_rejected_for_a_new_database() {
    let database = postgres::new_database().await;
    let url = postgres::database_url(&database);
    let dir = data_dir();
    let file = dir.path().join("pepper");
    fs::write(&file, "short").unwrap();
    // With an embedded database, no pepper has to be configured.
    let settings = [("ACONTEXTD_HOST", "0.0.0.0"), ("ROOT_API_BEARER_TOKEN", "a-token-for-these-tests")];
    let error = ServerProcess::startup_error(dir.path(), &settings);
    assert!(error.contains(file.to_str().unwrap()) && error.contains("delete that file"), "{error}");
    // The configured pepper takes precedence over the file.
    let long = [("DATABASE_URL", url.as_str()), ("ROOT_SECRET_PEPPER", "sixteen--letters")];
    assert!(ServerProcess::start(dir.path(), &[&settings[..], &long].concat()).stop().success());
}
