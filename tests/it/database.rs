//! Cancellation of database calls, and lost connections.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use axum::http::StatusCode;

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
