//! Cancellation of database calls.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

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
