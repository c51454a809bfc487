//! Messages: what is said in a session, in four formats.
//!
//! [`api`] has the routes; [`incoming`] reads what a client sends, [`shown`] makes the answer of a list. What a message is, and its
//! formats, are in [`crate::conversation`].
//! [`save`] stores a message, in most cases through the [`writer`], which stores many at once; [`files`] are the files that come with
//! messages, [`function_results`] finds the calls that results belong to. [`store`] is the SQL, [`page`] reads a page of messages,
//! [`pieces`] writes a long response, and [`convert`] encrypts and decrypts stored messages.
//!
//! A message is one row, content and all, so a page of them is one query. What a 201 says is on disk.

pub mod api;
mod columns;
pub mod convert;
pub mod file_store;
pub mod files;
pub mod function_results;
pub mod incoming;
pub mod meta;
pub mod new_message;
pub mod observing;
pub mod page;
pub mod pieces;
pub mod save;
pub mod sealed;
pub mod shown;
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
use incoming::Ready;
use new_message::InsertedMessage;
use writer::Writer;

text_enum! {
    /// Whether the task agent has processed a message.
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
    /// The context of messages.
    Messages, MessagesInner
}

pub struct MessagesInner {
    platform: Platform,
    /// Connections that read pages of messages.
    pub message_pages: PgPool,
    pub writer: Writer,
    /// How much of long messages is worked on at one time, in KiB.
    parse_budget: Semaphore,
    /// For transactions that store a message and wait for its session.
    direct_store_permits: Arc<Semaphore>,
}

impl Messages {
    pub fn new(platform: Platform) -> Self {
        let settings = &platform.config.database;
        Self(Arc::new(MessagesInner {
            message_pages: platform.db.open_pool("pages", settings.page_connections(), page::SETTINGS),
            writer: Writer::default(),
            parse_budget: Semaphore::new(incoming::PARSE_BUDGET_KIB as usize),
            direct_store_permits: Arc::new(Semaphore::new((settings.connections / 4).max(1))),
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

/// A message that was written to the database.
pub struct Written {
    pub ready: Ready,
    pub stored: InsertedMessage,
    /// What is still to be committed, together with the answer.
    pub tx: Option<IdempotentTx>,
}

/// A signed URL, which needs no key.
#[derive(Serialize, utoipa::ToSchema)]
pub struct PublicUrl {
    pub url: String,
    pub expire_at: Timestamp,
}
