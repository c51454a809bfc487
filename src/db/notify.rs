//! Receives Postgres notifications, which the processes of an installation send to each other.

use std::sync::Arc;
use std::time::Duration;

use sqlx::Acquire;
use sqlx::postgres::PgListener;
use tokio::time::timeout;

use super::Db;
use super::pooler::no_response_error;
use crate::error::database::DatabaseOutage;

/// The delay before a lost notification connection is opened again.
const RECONNECT_DELAY: Duration = Duration::from_secs(1);
/// How long it may take to open the notification connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the notification connection may be silent before it is verified. A connection that was lost without a TCP reset is
/// noticed after this time and the timeout of the verification.
const VERIFY_AFTER_SILENCE: Duration = Duration::from_secs(2);

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
        let mut close_event = db.close_event();
        let result = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            result = close_event.do_until(listen_once(&db, &handlers)) => result.and_then(|result| result),
        };
        for handler in &handlers {
            handler.on_connection_change();
        }
        // The pool is closed at shutdown, and when a pooler is found to share sessions.
        if db.is_closed() {
            shutdown.cancelled().await;
        } else if let Err(error) = result {
            let reason = DatabaseOutage::classify(&error).map(DatabaseOutage::description);
            tracing::warn!(error = %error, reason, "notification connection lost; reconnecting");
            tokio::time::sleep(RECONNECT_DELAY).await;
        }
    }
}

/// Opens a connection and dispatches its notifications. Returns when the connection is lost or no longer responds.
///
/// The connection does not belong to a pool of requests: it would occupy one of its connections, and a connection that does not
/// respond would stay there.
async fn listen_once(db: &Db, handlers: &[Arc<dyn NotificationHandler>]) -> sqlx::Result<()> {
    let pool = db.single_connection_pool();
    let connect = async {
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        listener.listen_all(handlers.iter().map(|handler| handler.channel())).await?;
        Ok::<_, sqlx::Error>(listener)
    };
    let Ok(listener) = timeout(CONNECT_TIMEOUT, connect).await else {
        db.probe().await?;
        return Err(no_response_error());
    };
    let mut listener = listener?;
    // Notifications that were sent before LISTEN were not received.
    for handler in handlers {
        handler.on_connection_change();
    }
    loop {
        match timeout(VERIFY_AFTER_SILENCE, listener.try_recv()).await {
            Ok(Ok(Some(notification))) => {
                for handler in handlers.iter().filter(|handler| handler.channel() == notification.channel()) {
                    handler.on_notification(notification.payload());
                }
            }
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(err)) => return Err(err),
            Err(_) => db.pooler_check().verify(listener.acquire().await?).await?,
        }
    }
}
