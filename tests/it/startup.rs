//! The startup banner, the warnings at startup, and the errors that prevent it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use rustix::process::geteuid;
use serde_json::Value;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};
use uuid::Uuid;

use crate::support::postgres;
use crate::support::server_process::{ProgramCopy, ServerProcess, data_dir};
use crate::support::tcp_proxy::TcpProxy;

const PEPPER: (&str, &str) = ("ROOT_SECRET_PEPPER", "a pepper for tests");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_banner_contains_no_key_that_was_rotated() {
    let database = postgres::database_url(&postgres::new_database().await);
    let dir = data_dir();
    let settings = [("DATABASE_URL", database.as_str()), PEPPER, ("ROOT_API_BEARER_TOKEN", "the-first-token")];
    let client = reqwest::Client::new();
    let ping = async |server: &ServerProcess, key: &str| {
        client.get(format!("{}/api/v1/ping", server.url)).bearer_auth(key).send().await.unwrap().status().as_u16()
    };
    let server = ServerProcess::start(dir.path(), &settings);
    assert_eq!(server.banner.matches("sk-ac-the-first-token").count(), 2, "{}", server.banner);
    let rotate = client.put(format!("{}/admin/v1/project/secret_key", server.url)).bearer_auth("sk-ac-the-first-token");
    let rotated: Value = rotate.send().await.unwrap().json().await.unwrap();
    let new_key = rotated["data"]["secret_key"].as_str().unwrap();
    assert!(server.stop().success());

    let server = ServerProcess::start(dir.path(), &settings);
    let banner = &server.banner;
    assert!(!banner.contains("the-first-token") && !banner.contains(new_key), "{banner}");
    assert!(banner.contains("rotation or reset") && banner.contains("change ROOT_API_BEARER_TOKEN"), "{banner}");
    assert_eq!((ping(&server, "sk-ac-the-first-token").await, ping(&server, new_key).await), (401, 200));
    assert!(server.stop().success());

    // A changed token is applied, so the banner contains it.
    let changed = [settings[0], PEPPER, ("ROOT_API_BEARER_TOKEN", "the-second-token")];
    let server = ServerProcess::start(dir.path(), &changed);
    assert!(server.banner.contains("sk-ac-the-second-token"), "{}", server.banner);
    assert_eq!(ping(&server, "sk-ac-the-second-token").await, 200);
    assert!(server.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn public_links_to_localhost_are_a_warning_on_an_exposed_address() {
    let database = postgres::database_url(&postgres::new_database().await);
    let dir = data_dir();
    let token = ("ROOT_API_BEARER_TOKEN", "a-token-for-these-tests");
    let base_settings = [("DATABASE_URL", database.as_str()), PEPPER, token];
    let (exposed, url) = (("ACONTEXTD_HOST", "0.0.0.0"), ("APP_EXTERNALURL", "http://localhost:8029"));
    for (further_settings, warnings) in [(&[exposed][..], 1), (&[exposed, url], 0), (&[], 0)] {
        let server = ServerProcess::start(dir.path(), &[&base_settings[..], further_settings].concat());
        let log = server.log();
        assert_eq!(log.lines().filter(|line| line.contains("set APP_EXTERNALURL")).count(), warnings, "{log}");
        assert!(warnings == 0 || log.contains("http://localhost:") && log.contains("0.0.0.0"), "{log}");
        assert!(server.stop().success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_is_logged_once() {
    let database = postgres::database_url(&postgres::new_database().await);
    let dir = data_dir();
    let (key, url) = (("LLM_API_KEY", "hunter2hunter2"), ("LLM_BASE_URL", "http://localhost:11434/v1"));
    let (model, anthropic) = (("LLM_SIMPLE_MODEL", "my-model"), ("LLM_SDK", "anthropic"));
    for (settings, line) in [
        (&[][..], "messages stay pending: no model is configured: set LLM_API_KEY"),
        (&[("LLM_SDK", "mock")], "a mock model, which extracts no tasks"),
        (&[key], "openai at api.openai.com, model gpt-4.1"),
        (&[url, model], "openai at localhost:11434, model my-model"),
        (&[anthropic, key, model], "anthropic at api.anthropic.com, model my-model"),
    ] {
        let base_settings = [("DATABASE_URL", database.as_str()), PEPPER];
        let server = ServerProcess::start(dir.path(), &[&base_settings[..], settings].concat());
        let log = server.log();
        let lines = log.lines().filter(|line| line.contains("messages stay pending") || line.contains("are observed"));
        assert_eq!(lines.count(), 1, "{log}");
        assert!(log.contains(line) && !log.contains("hunter2"), "{line}: {log}");
        assert!(server.stop().success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn model_settings_that_llm_sdk_disables_are_a_warning() {
    let database = postgres::database_url(&postgres::new_database().await);
    let dir = data_dir();
    let (key, model) = (("LLM_API_KEY", "hunter2hunter2"), ("LLM_SIMPLE_MODEL", "my-model"));
    for (settings, warnings) in
        [(&[("LLM_SDK", "none"), key, model][..], 1), (&[("LLM_SDK", "mock"), key, model], 1), (&[key, model], 0)]
    {
        let base_settings = [("DATABASE_URL", database.as_str()), PEPPER];
        let server = ServerProcess::start(dir.path(), &[&base_settings[..], settings].concat());
        let log = server.log();
        let lines = log.lines().filter(|line| line.contains("no effect: LLM_API_KEY, LLM_SIMPLE_MODEL"));
        assert_eq!(lines.count(), warnings, "{log}");
        assert!(server.stop().success());
    }
}

/// The id of the user `daemon`, which exists on every system.
const OTHER_USER: u32 = 1;

/// Asserts that startup fails as `uid`, and that the message names the path, its owner, this user, and a remedy.
fn assert_names_owner(program: &ProgramCopy, uid: u32, dir: &Path, path: &Path, owner: &str) {
    let error = ServerProcess::startup_error_as(uid, program, dir, &[]);
    let user = if uid == 0 { "root" } else { "daemon" };
    let expected = format!("{} belongs to the user {owner}", path.display());
    assert!(error.contains(&expected) && error.contains(&format!("acontextd runs as the user {user}")), "{error}");
    assert!(error.contains("ACONTEXTD_DATA_DIR to another directory"), "{error}");
    assert_eq!(error.lines().filter(|line| line.starts_with("acontextd: ")).count(), 1, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_of_another_user_is_named_with_its_owner() {
    if !geteuid().is_root() {
        // Only root can run the server as another user.
        return;
    }
    let (program, dir) = (ProgramCopy::create(), data_dir());
    let path = dir.path();
    // It does not exist, and its parent belongs to another user.
    assert_names_owner(&program, OTHER_USER, &path.join("a/b"), path, "root");
    // The parent cannot be traversed.
    fs::set_permissions(path, Permissions::from_mode(0o700)).unwrap();
    assert_names_owner(&program, OTHER_USER, &path.join("a"), path, "root");
    // The lock cannot be created.
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    assert_names_owner(&program, OTHER_USER, path, path, "root");
    // The lock exists.
    fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    let create_private = |name: &str| {
        fs::write(path.join(name), "0123456789abcdef").unwrap();
        fs::set_permissions(path.join(name), Permissions::from_mode(0o600)).unwrap();
    };
    create_private("lock");
    assert_names_owner(&program, OTHER_USER, path, &path.join("lock"), "root");
    fs::remove_file(path.join("lock")).unwrap();
    create_private("pepper");
    assert_names_owner(&program, OTHER_USER, path, &path.join("pepper"), "root");
    fs::remove_file(path.join("pepper")).unwrap();
    fs::remove_file(path.join("lock")).unwrap();
    // The directory of the embedded Postgres, with both users.
    fs::create_dir(path.join("postgres")).unwrap();
    assert_names_owner(&program, OTHER_USER, path, &path.join("postgres"), "root");
    chown(path.join("postgres"), Some(OTHER_USER), Some(OTHER_USER)).unwrap();
    assert_names_owner(&program, 0, path, &path.join("postgres"), "daemon");
    fs::create_dir(path.join("postgres/data")).unwrap();
    assert_names_owner(&program, OTHER_USER, path, &path.join("postgres/data"), "root");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directories_for_uploads_and_objects_of_another_user_are_named() {
    if !geteuid().is_root() {
        return;
    }
    // The server starts its own Postgres, because another user cannot connect to that of the tests.
    let (program, dir) = (ProgramCopy::create(), data_dir());
    let path = dir.path();
    fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    for name in ["tmp", "objects"] {
        fs::create_dir(path.join(name)).unwrap();
        assert_names_owner(&program, OTHER_USER, path, &path.join(name), "root");
        fs::remove_dir_all(path.join(name)).unwrap();
    }
}

async fn execute(database: &PgConnectOptions, sql: &str) {
    let mut conn = database.connect().await.unwrap();
    sqlx::raw_sql(sql).execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_privilege_is_named_with_the_statement_that_grants_it() {
    const GRANT_ALL: &str =
        "grant usage, create on schema public to app; grant all on all tables in schema public to app";
    for (changes, grant) in [
        ("revoke create on schema public from app", "GRANT USAGE, CREATE ON SCHEMA public TO"),
        ("revoke usage on schema public from app, public", "GRANT USAGE, CREATE ON SCHEMA public TO"),
        (
            "drop schema public cascade; create schema public; grant usage on schema public to app",
            "GRANT USAGE, CREATE",
        ),
        ("revoke select on _sqlx_migrations from app", "ON ALL TABLES IN SCHEMA public TO"),
        ("revoke select on projects from app", "ON ALL TABLES IN SCHEMA public TO"),
        ("revoke delete on messages from app", "cannot read and write messages"),
        ("revoke select on blob_references from app", "cannot read and write blob_references"),
        ("revoke connect on database db from app, public", "GRANT CONNECT ON DATABASE"),
        ("alter database db set default_transaction_read_only = on", "the database is read-only"),
    ] {
        let database = postgres::new_database().await;
        let (user, name) = (format!("app_{}", Uuid::new_v4().simple()), database.get_database().unwrap());
        let statements = format!("create role app login; {GRANT_ALL}; {changes}");
        execute(&database, &statements.replace("app", &user).replace("database db", &format!("database {name}"))).await;
        let url = postgres::database_url(&database.clone().username(&user));
        let dir = data_dir();
        let error = ServerProcess::startup_error(dir.path(), &[("DATABASE_URL", &url), PEPPER]);
        assert!(error.contains(grant), "{changes}: {error}");
        assert!(error.contains(&user) || grant.contains("read-only"), "{changes}: {error}");
        // Roles belong to all databases of this Postgres.
        let other_database = database.clone().database("postgres");
        execute(&other_database, &format!("drop database {name}")).await;
        execute(&other_database, &format!("drop role {user}")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_user_with_these_privileges_suffices() {
    let database = postgres::new_database().await;
    let user = format!("app_{}", Uuid::new_v4().simple());
    let statements = format!(
        "create role {user} login; grant usage, create on schema public to {user};
         grant select, insert, update, delete on all tables in schema public to {user}"
    );
    execute(&database, &statements).await;
    let url = postgres::database_url(&database.clone().username(&user));
    let dir = data_dir();
    assert!(ServerProcess::start(dir.path(), &[("DATABASE_URL", &url), PEPPER]).stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_older_than_15_is_rejected() {
    let proxy = TcpProxy::start_with_version(&postgres::new_database().await, Some(b"14")).await;
    let options = proxy.options();
    let url = format!("postgres://acontext@127.0.0.1:{}/{}", options.get_port(), options.get_database().unwrap());
    let error = tokio::task::spawn_blocking(move || {
        let dir = data_dir();
        ServerProcess::startup_error(dir.path(), &[("DATABASE_URL", &url), PEPPER])
    });
    let error = error.await.unwrap();
    assert!(error.contains("Postgres 14") && error.contains("15 or newer"), "{error}");
}
