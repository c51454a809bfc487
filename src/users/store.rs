//! SQL of users.

use sqlx::PgConnection;

use super::{Identifier, ResourceCounts, User};
use crate::db::page::{PageRequest, fetch_page};
use crate::ids::{ProjectId, UserId};
use crate::time::Timestamp;

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

macro_rules! select_users {
    ($($rest:literal)+; $($parameter:expr),* $(,)?) => {
        sqlx::query_as!(
            User,
            r#"select t.id as "id: UserId", t.project_id as "project_id: ProjectId", t.identifier,
                      t.created_at as "created_at: Timestamp", t.updated_at as "updated_at: Timestamp"
               from "# $(+ $rest)+,
            $($parameter),*
        )
    };
}

pub async fn list(conn: &mut PgConnection, project: ProjectId, page: &PageRequest) -> sqlx::Result<Vec<User>> {
    fetch_page!(select_users!("users t where t.project_id = $4"; project as _), conn, page)
}

/// How much a user has; `None` if there is no such user.
pub async fn count(
    conn: &mut PgConnection,
    project: ProjectId,
    user: &Identifier,
) -> sqlx::Result<Option<ResourceCounts>> {
    sqlx::query_as!(
        ResourceCounts,
        r#"select (select count(*) from sessions s where s.user_id = u.id) as "sessions_count!",
                  (select count(*) from disks d where d.user_id = u.id) as "disks_count!",
                  (select count(*) from agent_skills s where s.user_id = u.id) as "skills_count!"
           from users u where u.project_id = $1 and u.identifier = $2"#,
        project as _,
        user.as_str(),
    )
    .fetch_optional(conn)
    .await
}

/// Deletes a user with all that the user has; the stored bytes are released to the sweep.
pub async fn delete(conn: &mut PgConnection, project: ProjectId, user: &Identifier) -> sqlx::Result<bool> {
    let gone = sqlx::query!("delete from users where project_id = $1 and identifier = $2", project as _, user.as_str());
    Ok(gone.execute(conn).await?.rows_affected() == 1)
}
