//! Connections over TCP and through a pooler. A pooler in session mode works; a pooler that shares sessions is
//! rejected.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use acontextd::db::pooler::PoolerCheck;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};

use crate::support::pgbouncer::PgBouncer;
use crate::support::server_process::{ServerProcess, data_dir};
use crate::support::{TestConfig, postgres, run_with, wait_until};

const KEY: &str = "sk-ac-your-root-api-bearer-token";
const PEPPER: (&str, &str) = ("ROOT_SECRET_PEPPER", "a pepper for tests");

/// Without `TCP_NODELAY` a statement can wait 40 ms for a delayed acknowledgement.
#[tokio::test]
async fn database_connections_disable_nagle() {
    let database = postgres::new_database().await;
    let bouncer = PgBouncer::start(&database, "session", "").await;
    let config = TestConfig { database: Some(bouncer.options()), ..TestConfig::default() };
    run_with(config, async |app| {
        let _connection = app.app.db.acquire().await.unwrap();
        let _page_connection = app.app.messages.page_pool.acquire().await.unwrap();
        let port = bouncer.options().get_port();
        let options = nodelay_options(port);
        assert!(options.len() >= 2, "both pools have a connection");
        assert!(options.iter().all(|nodelay| *nodelay), "{options:?}");
        // The helper recognizes a socket without the option.
        let _plain = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert_eq!(nodelay_options(port).iter().filter(|nodelay| !**nodelay).count(), 1);
    })
    .await;
}

/// Returns `TCP_NODELAY` of each socket of this process that is connected to a local port.
fn nodelay_options(port: u16) -> Vec<bool> {
    let this = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    let mut options = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let number: i32 = entry.file_name().to_str().unwrap().parse().unwrap();
        // The socket may have been closed in the meantime.
        let Ok(socket) = pidfd_getfd(this.as_fd(), number, PidfdGetfdFlags::empty()) else { continue };
        let Ok(Some(peer)) = rustix::net::getpeername(&socket) else { continue };
        if SocketAddr::try_from(peer).is_ok_and(|peer| peer.port() == port) {
            options.push(rustix::net::sockopt::tcp_nodelay(&socket).unwrap());
        }
    }
    options
}

#[tokio::test]
async fn connections_through_a_pooler_in_session_mode_have_their_settings() {
    let database = postgres::new_database().await;
    let bouncer = PgBouncer::start(&database, "session", "").await;
    let config = TestConfig { database: Some(bouncer.options()), ..TestConfig::default() };
    run_with(config, async |app| {
        for (setting, expected) in
            [("plan_cache_mode", "force_generic_plan"), ("enable_sort", "off"), ("TimeZone", "UTC")]
        {
            let value: String =
                sqlx::query_scalar(&format!("show {setting}")).fetch_one(&app.app.messages.page_pool).await.unwrap();
            assert_eq!(value, expected, "{setting}");
        }
        let client = app.project().await;
        let session = client.new_session().await;
        for number in 0..20 {
            client.store_text(&session, &format!("message {number}")).await;
        }
        let page = client.get(&format!("/api/v1/session/{session}/messages?limit=20")).await;
        assert_eq!(page.data()["items"].as_array().unwrap().len(), 20);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_runs_behind_a_pooler_in_session_mode() {
    let database = postgres::new_database().await;
    let bouncer = PgBouncer::start(&database, "session", "").await;
    let url = bouncer.url();
    let dir = data_dir();
    let server = ServerProcess::start(dir.path(), &[("DATABASE_URL", &url), PEPPER]);
    let client = reqwest::Client::new();
    for _ in 0..3 {
        let created = client.post(format!("{}/api/v1/session", server.url)).bearer_auth(KEY).send().await.unwrap();
        assert_eq!(created.status().as_u16(), 201);
        // Long enough for idle connections to be verified.
        tokio::time::sleep(Duration::from_millis(1_100)).await;
    }
    let ready = client.get(format!("{}/ready", server.url)).send().await.unwrap();
    assert_eq!(ready.status().as_u16(), 200, "{}", ready.text().await.unwrap());
    assert!(server.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn startup_rejects_a_pooler_that_shares_sessions() {
    for (mode, settings) in [
        ("transaction", ""),
        ("transaction", "server_round_robin = 1\nmin_pool_size = 4"),
        ("transaction", "default_pool_size = 1"),
        ("statement", ""),
    ] {
        let database = postgres::new_database().await;
        let bouncer = PgBouncer::start(&database, mode, settings).await;
        let url = bouncer.url();
        let dir = data_dir();
        let error = ServerProcess::startup_error(dir.path(), &[("DATABASE_URL", &url), PEPPER]);
        assert!(error.contains("session mode"), "{mode} {settings}: {error}");
        let mut conn = database.connect().await.unwrap();
        let projects: i64 = sqlx::query_scalar("select count(*) from projects").fetch_one(&mut conn).await.unwrap();
        assert_eq!(projects, 0, "something was executed in {mode} mode");
        conn.close().await.unwrap();
    }
}

/// Many requests read sessions and disks. With shared sessions, their statements could be mixed up with statements that
/// delete.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_a_pooler_starts_to_share_sessions() {
    let database = postgres::new_database().await;
    let bouncer = PgBouncer::start(&database, "session", "").await;
    let url = bouncer.url();
    let dir = data_dir();
    let server = ServerProcess::start(dir.path(), &[("DATABASE_URL", &url), PEPPER]);
    let client = reqwest::Client::new();
    let api = format!("{}/api/v1", server.url);
    let mut ids = Vec::new();
    for number in 0..40 {
        let kind = if number % 2 == 0 { "session" } else { "disk" };
        let response = client.post(format!("{api}/{kind}")).bearer_auth(KEY).send().await.unwrap();
        let created: serde_json::Value = response.json().await.unwrap();
        ids.push((kind, created["data"]["id"].as_str().unwrap().to_owned()));
    }
    // Several connections have a prepared statement that deletes.
    let deletions =
        ids.drain(..10).map(|(kind, id)| client.delete(format!("{api}/{kind}/{id}")).bearer_auth(KEY).send());
    for deleted in futures_util::future::join_all(deletions).await {
        assert_eq!(deleted.unwrap().status().as_u16(), 200);
    }
    bouncer.set_mode("transaction", "");
    wait_until("the server reports the pooler", async || {
        let requests = (0..16).map(|_| client.get(format!("{api}/session?limit=200")).bearer_auth(KEY).send());
        futures_util::future::join_all(requests).await;
        let ready = client.get(format!("{}/ready", server.url)).send().await.unwrap();
        ready.status().as_u16() == 503 && ready.text().await.unwrap().contains("session mode")
    })
    .await;
    let response = client.get(format!("{api}/session")).bearer_auth(KEY).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 503);
    assert!(response.text().await.unwrap().contains("/ready"));
    assert!(server.log().contains("session mode"));
    let mut conn = database.connect().await.unwrap();
    let count_rows = "select (select count(*) from sessions) + (select count(*) from disks)";
    let remaining: i64 = sqlx::query_scalar(count_rows).fetch_one(&mut conn).await.unwrap();
    assert_eq!(remaining, 30, "sessions or disks were deleted");
    conn.close().await.unwrap();
    assert!(tokio::task::spawn_blocking(move || server.stop()).await.unwrap().success());
}

/// The statements have the effect of a pooler that swaps the sessions of two connections while both are in use.
#[tokio::test]
async fn a_session_with_the_mark_of_another_connection_is_rejected() {
    let database: PgConnectOptions = postgres::new_database().await;
    for sql in [
        // Another session, which has no mark.
        "select set_config('acontextd.session', '', false)",
        // The session of another connection: its mark, and the name of this one.
        "select set_config('acontextd.session', 'acontextd-0123456789abcdef ' || pg_backend_pid(), false)",
        // The same mark, in a session with another process.
        "select set_config('acontextd.session', current_setting('application_name') || ' 1', false)",
    ] {
        let check = PoolerCheck::default();
        let mut conn = check.connect(&database, &[]).await.unwrap();
        check.verify(&mut conn).await.unwrap();
        sqlx::query(sql).execute(&mut conn).await.unwrap();
        assert!(matches!(check.verify(&mut conn).await, Err(sqlx::Error::PoolClosed)), "{sql}");
        assert!(check.found_shared_session());
        assert!(check.connect(&database, &[]).await.is_err(), "a new connection was opened");
    }
}
