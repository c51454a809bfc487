//! SQL of metrics.

use sqlx::PgConnection;

use crate::ids::ProjectId;

/// The flag of a project that stores too much.
pub const STORAGE: &str = "excess.storage.usage";
/// The flag of a project that has too many tasks.
pub const TASKS: &str = "excess.task.created";

/// Whether a flag is up: the newest word counts.
pub async fn is_excess(conn: &mut PgConnection, project: ProjectId, flag: &str) -> sqlx::Result<bool> {
    let newest = sqlx::query_scalar!(
        "select increment from metrics where project_id = $1 and tag = $2 order by created_at desc limit 1",
        project as _,
        flag
    );
    Ok(newest.fetch_optional(conn).await?.is_some_and(|increment| increment != 0))
}
