//! Messages of sessions, in four formats. The formats themselves, and the model they share, are in [`crate::conversation`].
//!
//! - Routes: [`api`] stores and lists messages, [`meta`] updates their metadata, and [`files`] serves their files.
//! - Storing: [`request`] reads and validates the request. [`save`] stores the message, usually through the [`writer`], which
//!   commits many messages together. [`call_references`] are the calls and results of a message; [`function_results`] matches
//!   results that do not name their calls.
//! - Listing: [`list_params`] are the parameters of the request. [`page`] reads a page of messages, [`encryption`] decrypts it,
//!   `earlier_calls` finds the calls before it, and [`render`] writes the response as JSON ([`json_writer`]).
//! - SQL: [`store`], [`page`], [`file_store`] and [`observing`]. [`new_message`] has the types of the insert statement.
//! - [`convert`] encrypts and decrypts stored messages after the storage format of their project has changed.
//!
//! A message is one row that includes its content, so a page of usual size is one query. When the client receives the 201, the
//! message is committed to disk.

pub mod api;
mod batch_columns;
pub mod call_references;
pub mod convert;
pub mod decode;
mod earlier_calls;
pub mod encryption;
pub mod file_store;
pub mod files;
pub mod function_results;
pub mod json_writer;
pub mod list_params;
mod load_page;
pub mod meta;
pub mod new_message;
pub mod observing;
pub mod page;
mod page_turns;
pub mod render;
pub mod request;
pub mod save;
pub mod store;
pub mod writer;

use std::sync::Arc;

use serde::Serialize;
use sqlx::PgPool;
use tokio::sync::Semaphore;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::idempotency::IdempotentTx;
use crate::platform::{Platform, platform_context};
use crate::text_enum::text_enum;
use crate::time::Timestamp;
use earlier_calls::EarlierCallCache;
use new_message::InsertedMessage;
use request::PreparedMessage;
use writer::MessageWriter;

text_enum! {
    /// The state of a message's observation.
    pub enum ProcessStatus {
        Pending = "pending",
        Running = "running",
        Success = "success",
        Failed = "failed",
        /// The tasks of the session are not tracked.
        DisableTracking = "disable_tracking",
        /// The project has used up its quota of tasks.
        LimitExceeded = "limit_exceed",
    }
}

platform_context! {
    /// The context of the message routes and of the message writer.
    Messages, MessagesInner
}

pub struct MessagesInner {
    platform: Platform,
    /// The pool of the connections that read pages of messages, with `page::PLANNER_SETTINGS`.
    pub page_pool: PgPool,
    pub writer: MessageWriter,
    earlier_calls: EarlierCallCache,
    /// One permit for each KiB of text that blocking threads may process concurrently. See [`request::run_blocking`].
    blocking_budget: Semaphore,
    /// One permit for each transaction that stores a message and may wait for the lock of its session.
    lock_wait_permits: Arc<Semaphore>,
}

impl Messages {
    pub fn new(platform: Platform) -> Self {
        let settings = &platform.config.database;
        Self(Arc::new(MessagesInner {
            page_pool: platform.db.open_pool("message_pages", settings.page_connections(), page::PLANNER_SETTINGS),
            writer: MessageWriter::default(),
            earlier_calls: EarlierCallCache::default(),
            blocking_budget: Semaphore::new(request::BLOCKING_BUDGET_KIB as usize),
            lock_wait_permits: Arc::new(Semaphore::new((settings.connections / 4).max(1))),
            platform,
        }))
    }
}

pub fn router() -> OpenApiRouter<Messages> {
    OpenApiRouter::new()
        .routes(routes!(api::store_message, api::get_messages))
        .routes(routes!(meta::patch_message_meta))
        .routes(routes!(files::download_asset))
        .routes(routes!(api::get_token_counts))
}

/// A message that was inserted, possibly in a transaction that is not committed yet.
pub struct StoredMessage {
    pub prepared: PreparedMessage,
    pub inserted: InsertedMessage,
    /// The transaction to commit together with the response; `None` if it is committed already.
    pub tx: Option<IdempotentTx>,
}

/// A signed URL that works without an API key until it expires.
#[derive(Serialize, utoipa::ToSchema)]
pub struct PublicUrl {
    pub url: String,
    pub expire_at: Timestamp,
}
