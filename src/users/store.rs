//! SQL of users.

use sqlx::PgConnection;

use super::Identifier;
use crate::ids::{ProjectId, UserId};

/// Finds a user and keeps it there until the transaction ends.
pub async fn get(conn: &mut PgConnection, project: ProjectId, user: &Identifier) -> sqlx::Result<Option<UserId>> {
    sqlx::query_scalar!(
        r#"select id as "id: UserId" from users where project_id = $1 and identifier = $2 for key share"#,
        project as _,
        user.as_str(),
    )
    .fetch_optional(conn)
    .await
}

/// The user of that name, made now if there is none. Two requests may name a new user at once.
pub async fn get_or_insert(conn: &mut PgConnection, project: ProjectId, user: &Identifier) -> sqlx::Result<UserId> {
    if let Some(id) = get(conn, project, user).await? {
        return Ok(id);
    }
    // The update changes nothing, but waits for the other request and returns its row.
    sqlx::query_scalar!(
        r#"insert into users (project_id, identifier) values ($1, $2)
           on conflict (project_id, identifier) do update set identifier = excluded.identifier
           returning id as "id: UserId""#,
        project as _,
        user.as_str(),
    )
    .fetch_one(conn)
    .await
}
