//! Receives Postgres notifications, which the processes of an installation send to each other.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgListener;

use super::Db;

/// The delay before a lost notification connection is opened again.
const RECONNECT_DELAY: Duration = Duration::from_secs(1);

/// A handler of the notifications of one channel.
pub trait NotificationHandler: Send + Sync {
    /// Returns the name of the channel.
    fn channel(&self) -> &'static str;

    /// Handles a notification.
    fn on_notification(&self, payload: &str);

    /// Handles a change of the connection: it was opened or lost. Any notification may have been missed.
    fn on_connection_change(&self);
}

/// Dispatches notifications to their handlers until shutdown, and reconnects when the connection is lost. This is a
/// component of the process.
///
/// # Errors
/// Never returns an error; all components have this signature.
pub async fn listen(db: Db, handlers: Vec<Arc<dyn NotificationHandler>>) -> anyhow::Result<()> {
    let shutdown = &db.process().shutdown;
    loop {
        let result = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            result = listen_once(&db, &handlers) => result,
        };
        for handler in &handlers {
            handler.on_connection_change();
        }
        // The pool is closed at shutdown, and when a pooler is found to share sessions.
        if db.is_closed() {
            shutdown.cancelled().await;
        } else if let Err(error) = result {
            tracing::warn!(error = %error, "notification connection lost; reconnecting");
            tokio::time::sleep(RECONNECT_DELAY).await;
        }
    }
}

/// Opens a connection and dispatches its notifications. Returns when the connection is lost.
async fn listen_once(db: &Db, handlers: &[Arc<dyn NotificationHandler>]) -> sqlx::Result<()> {
    let mut listener = PgListener::connect_with(db).await?;
    listener.eager_reconnect(false);
    listener.listen_all(handlers.iter().map(|handler| handler.channel())).await?;
    // Notifications that were sent before LISTEN were not received.
    for handler in handlers {
        handler.on_connection_change();
    }
    while let Some(notification) = listener.try_recv().await? {
        for handler in handlers.iter().filter(|handler| handler.channel() == notification.channel()) {
            handler.on_notification(notification.payload());
        }
    }
    Ok(())
}
