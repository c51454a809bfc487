//! The stored commands of sandboxes, for the conversion of a project to the other storage format.

use async_trait::async_trait;
use sqlx::PgConnection;
use uuid::Uuid;

use super::command_store;
use crate::encryption::stored_text::{StaleText, StoredText};
use crate::encryption::text_converter::TextTable;
use crate::ids::ProjectId;

/// The table of commands.
pub struct CommandTexts;

#[async_trait]
impl TextTable for CommandTexts {
    const NOUN: &'static str = "command";

    async fn count_remaining(&self, conn: &mut PgConnection, project: ProjectId, encrypted: bool) -> sqlx::Result<i64> {
        command_store::count_remaining(conn, project, encrypted).await
    }

    async fn lock_remaining(
        &self,
        conn: &mut PgConnection,
        project: ProjectId,
        encrypted: bool,
        after: Uuid,
        limit: i64,
    ) -> sqlx::Result<Vec<StaleText>> {
        command_store::lock_remaining(conn, project, encrypted, after, limit).await
    }

    async fn set_text(&self, conn: &mut PgConnection, id: Uuid, text: &StoredText) -> sqlx::Result<()> {
        command_store::set_text(conn, id, text).await
    }
}
