//! The startup banner, the warnings at startup, and the errors that prevent it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use rustix::process::geteuid;
use serde_json::Value;

use crate::support::postgres;
use crate::support::server_process::{ProgramCopy, ServerProcess, data_dir};

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
    assert!(banner.contains("rotated") && banner.contains("change ROOT_API_BEARER_TOKEN"), "{banner}");
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
