//! Postgres notifications between the processes of an installation.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgListener;

use super::Db;

/// How long to wait before the connection for notifications is opened again.
const RECONNECT_DELAY: Duration = Duration::from_secs(1);

/// Reacts to the notifications of one channel.
pub trait NotificationHandler: Send + Sync {
    fn channel(&self) -> &'static str;

    fn on_notification(&self, payload: &str);

    /// Is called when the connection was opened or lost: any notification may have been missed.
    fn on_reconnect(&self);
}

/// Passes notifications to their handlers until the process shuts down. Reconnects when the connection is lost.
///
/// # Errors
/// Never; the signature is that of every component.
pub async fn listen(db: Db, handlers: Vec<Arc<dyn NotificationHandler>>) -> anyhow::Result<()> {
    let shutdown = &db.process().shutdown;
    loop {
        let result = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            result = listen_once(&db, &handlers) => result,
        };
        for handler in &handlers {
            handler.on_reconnect();
        }
        if db.is_closed() {
            shutdown.cancelled().await;
        } else if let Err(error) = result {
            tracing::warn!(error = %error, "the connection for notifications was lost");
            tokio::time::sleep(RECONNECT_DELAY).await;
        }
    }
}

/// Returns when the connection is lost.
async fn listen_once(db: &Db, handlers: &[Arc<dyn NotificationHandler>]) -> sqlx::Result<()> {
    let mut listener = PgListener::connect_with(db).await?;
    listener.eager_reconnect(false);
    listener.listen_all(handlers.iter().map(|handler| handler.channel())).await?;
    // Notifications from before this moment were not received.
    for handler in handlers {
        handler.on_reconnect();
    }
    while let Some(notification) = listener.try_recv().await? {
        for handler in handlers.iter().filter(|handler| handler.channel() == notification.channel()) {
            handler.on_notification(notification.payload());
        }
    }
    Ok(())
}
