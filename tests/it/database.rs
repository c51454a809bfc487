//! Cancellation of database calls, lost connections, and databases that reject connections.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use sqlx::postgres::PgConnectOptions;

use crate::support::fake_postgres::FakePostgres;
use crate::support::tcp_proxy::TcpProxy;
use crate::support::{TestConfig, run_with, wait_until};

#[tokio::test]
async fn a_cancelled_begin_leaves_no_open_transaction() {
    // The pool has one connection, so that every statement reuses it.
    run_with(TestConfig::default().with("ACONTEXTD_DATABASE_CONNECTIONS", "2"), async |app| {
        for polls in 1..40 {
            {
                let mut begin = pin!(app.app.db.begin());
                let mut remaining = polls;
                // Drop the future after this number of polls.
                poll_fn(|context| {
                    remaining -= 1;
                    if remaining < 0 || begin.as_mut().poll(context).is_ready() {
                        Poll::Ready(())
                    } else {
                        Poll::Pending
                    }
                })
                .await;
            }
            wait_until("no transaction is open", async || {
                let open_transactions = "select count(*) from pg_stat_activity
                    where datname = current_database() and state like 'idle in transaction%'";
                app.fetch_scalar::<i64>(open_transactions).await == 0
            })
            .await;
            app.execute("insert into server_state (name, value) values (gen_random_uuid()::text, '')").await;
        }
        app.app.db.close().await;
        let second_process = app.second_process(TestConfig::default()).await;
        assert_eq!(
            second_process.fetch_scalar::<i64>("select count(*) from server_state where value = ''").await,
            39,
            "some rows were lost"
        );
    })
    .await;
}

/// A firewall that drops connections sends no TCP reset, so that the process only sees silence.
#[tokio::test]
async fn idle_connections_that_were_lost_silently_are_replaced() {
    run_with(TestConfig::default(), async |app| {
        let proxy = TcpProxy::start(&app.database).await;
        let config = TestConfig { database: Some(proxy.options()), ..TestConfig::default() };
        let behind_proxy = app.second_process(config).await;
        let client = behind_proxy.client().with_key(app.project().await.key());
        let session = client.new_session().await;
        client.store_text(&session, "before the loss").await;
        assert_eq!(client.messages(&session, "").await["items"].as_array().unwrap().len(), 1);
        proxy.lose_connections();
        // Connections are verified only if they were idle for a second.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let lost_at = Instant::now();
        client.store_text(&session, "after the loss").await;
        assert_eq!(client.messages(&session, "").await["items"].as_array().unwrap().len(), 2);
        assert_eq!(client.get("/api/v1/disk").await.status, StatusCode::OK);
        // Without the verification, a write takes 10 seconds, and a request times out after 60 seconds.
        assert!(lost_at.elapsed() < Duration::from_secs(9), "{:?}", lost_at.elapsed());
    })
    .await;
}

/// Asserts that requests with a key get a 503, and that `/ready` names the reason.
async fn assert_unavailable(database: PgConnectOptions, reason: &str) {
    run_with(TestConfig { database: Some(database), ..TestConfig::default() }, async |app| {
        let ready = app.client().get("/ready").await;
        ready.assert_error(503, reason);
        let response = app.client().with_key("sk-ac-unknown").get("/api/v1/disk").await;
        response.assert_error(503, "the database is unavailable");
        assert_ne!(response.header("retry-after"), "");
    })
    .await;
}

#[tokio::test]
async fn each_outage_of_the_database_is_a_503_with_its_own_reason() {
    for (code, reason) in [
        ("28P01", "rejects the login"),
        ("28000", "rejects the login"),
        ("3D000", "does not exist"),
        ("53300", "too many connections"),
        ("53100", "the disk of the database is full"),
        ("53200", "out of memory"),
        ("57P03", "starting"),
        ("58030", "I/O error"),
    ] {
        let server = FakePostgres::start(Some(code)).await;
        assert_unavailable(server.options("prefer"), reason).await;
    }
    let without_tls = FakePostgres::start(Some("57P03")).await;
    assert_unavailable(without_tls.options("require"), "the TLS connection").await;
    let closed_port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let not_running = format!("postgres://user@127.0.0.1:{closed_port}/name").parse().unwrap();
    assert_unavailable(not_running, "database connection refused").await;
    let unknown_host = "postgres://user@host.invalid/name".parse().unwrap();
    assert_unavailable(unknown_host, "the host of the database").await;
}

#[tokio::test]
async fn a_database_that_does_not_respond_is_a_503_with_its_own_reason() {
    let server = FakePostgres::start(None).await;
    assert_unavailable(server.options("prefer"), "does not respond").await;
}
