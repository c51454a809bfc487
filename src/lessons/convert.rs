//! The texts of lessons, for the conversion of a project to the other storage format.

use async_trait::async_trait;
use sqlx::PgConnection;
use uuid::Uuid;

use super::store;
use crate::encryption::stored_text::{StaleText, StoredText};
use crate::encryption::text_converter::TextTable;
use crate::ids::ProjectId;

/// The table of lessons.
pub struct LessonTexts;

#[async_trait]
impl TextTable for LessonTexts {
    const NOUN: &'static str = "lesson";

    async fn count_remaining(&self, conn: &mut PgConnection, project: ProjectId, encrypted: bool) -> sqlx::Result<i64> {
        store::count_remaining(conn, project, encrypted).await
    }

    async fn lock_remaining(
        &self,
        conn: &mut PgConnection,
        project: ProjectId,
        encrypted: bool,
        after: Uuid,
        limit: i64,
    ) -> sqlx::Result<Vec<StaleText>> {
        store::lock_remaining(conn, project, encrypted, after, limit).await
    }

    async fn set_text(&self, conn: &mut PgConnection, id: Uuid, text: &StoredText) -> sqlx::Result<()> {
        store::set_text(conn, id, text).await
    }
}
