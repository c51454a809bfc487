//! What the database's driver must not do to us.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use crate::support::{Setup, eventually, run_with};

#[tokio::test]
async fn a_transaction_that_nobody_waits_for_any_more_is_not_left_open() {
    // One connection, which all the others get to use.
    run_with(Setup::default().with("ACONTEXTD_DATABASE_CONNECTIONS", "2"), async |app| {
        for polls in 1..40 {
            {
                let mut begin = pin!(app.app.db.begin());
                let mut left = polls;
                // Given up after so many looks.
                poll_fn(|context| {
                    left -= 1;
                    if left < 0 || begin.as_mut().poll(context).is_ready() { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
            }
            eventually("no transaction is open", async || {
                let open = "select count(*) from pg_stat_activity
                    where datname = current_database() and state like 'idle in transaction%'";
                app.value::<i64>(open).await == 0
            })
            .await;
            app.execute("insert into server_state (name, value) values (gen_random_uuid()::text, '')").await;
        }
        app.app.db.close().await;
        let twin = app.twin(Setup::default()).await;
        assert_eq!(twin.value::<i64>("select count(*) from server_state where value = ''").await, 39, "some were lost");
    })
    .await;
}
