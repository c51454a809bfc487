//! Messages: what is said in a session, in four formats.
//!
//! [`api`] has the routes; [`incoming`] reads what a client sends, [`shown`] makes the answer of a list. What a message is, and its
//! formats, are in [`crate::conversation`].
//! [`store`] is the SQL, [`page`] reads a page of messages, and [`writer`] stores many at once; [`files`] are the files that
//! come with messages, [`answers`] messages that answer calls, [`pieces`] a long answer.
//!
//! A message is one row, content and all, so a page of them is one query. What a 201 says is on disk.

pub mod answers;
pub mod api;
mod columns;
pub mod convert;
pub mod file_store;
pub mod files;
pub mod incoming;
pub mod meta;
pub mod new_message;
pub mod page;
pub mod pieces;
pub mod sealed;
pub mod shown;
pub mod store;
pub mod storing;
pub mod writer;

use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::http::idempotency::Act;
use crate::time::Timestamp;
use incoming::Ready;
use new_message::InsertedMessage;

pub fn router() -> OpenApiRouter<App> {
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
    pub act: Option<Act>,
}

/// A signed URL, which needs no key.
#[derive(Serialize, utoipa::ToSchema)]
pub struct PublicUrl {
    pub url: String,
    pub expire_at: Timestamp,
}
