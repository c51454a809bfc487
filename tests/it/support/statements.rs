//! Counts the statements that a test sends to the database. Each test has its own thread, so tests do not count each other's.

use std::cell::Cell;
use std::sync::Once;

use tracing::Subscriber;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// The target of the events that sqlx emits for each statement.
const STATEMENTS: &str = "sqlx::query";

/// A number of statements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatementCount {
    pub total: usize,
    /// The statements that handlers of jobs have sent, without those of the job runner.
    pub in_jobs: usize,
}

thread_local! {
    /// The statements that this thread has sent to the database.
    static SENT: Cell<StatementCount> = const { Cell::new(StatementCount { total: 0, in_jobs: 0 }) };
}

/// Counts statements. It is set for all threads, because a subscriber of a single thread is not always consulted.
struct StatementCounter;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for StatementCounter {
    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        if event.metadata().target() != STATEMENTS {
            return;
        }
        let is_in_job = context.event_scope(event).is_some_and(|mut spans| spans.any(|span| span.name() == "job"));
        let mut sent = SENT.get();
        sent.total += 1;
        sent.in_jobs += usize::from(is_in_job);
        SENT.set(sent);
    }
}

static SET_SUBSCRIBER: Once = Once::new();

/// Awaits a future and returns the number of statements that were sent in the meantime.
pub async fn count_statements(work: impl Future<Output = ()>) -> StatementCount {
    SET_SUBSCRIBER.call_once(|| {
        let only = Targets::new()
            .with_target(STATEMENTS, tracing::Level::DEBUG)
            .with_target("acontextd::jobs::runner", tracing::Level::INFO);
        let counting = tracing_subscriber::registry().with(StatementCounter.with_filter(only));
        tracing::subscriber::set_global_default(counting).unwrap();
    });
    SENT.take();
    work.await;
    SENT.take()
}
