//! SQL of users.

use sqlx::PgConnection;

use super::{ResourceCounts, User, UserIdentifier};
use crate::db::page::{PageRequest, fetch_page};
use crate::ids::{ProjectId, UserId};
use crate::time::Timestamp;

/// Locks a user against deletion until the transaction ends, and returns its id; `None` if the project has no such user.
pub async fn lock_for_share(
    conn: &mut PgConnection,
    project: ProjectId,
    user: &UserIdentifier,
) -> sqlx::Result<Option<UserId>> {
    sqlx::query_scalar!(
        r#"select id as "id: UserId" from users where project_id = $1 and identifier = $2 for key share"#,
        project as _,
        user.as_str(),
    )
    .fetch_optional(conn)
    .await
}

/// Returns the id of a user, and creates the user if it does not exist. Concurrent transactions may create the same user.
pub async fn get_or_insert(conn: &mut PgConnection, project: ProjectId, user: &UserIdentifier) -> sqlx::Result<UserId> {
    if let Some(id) = lock_for_share(conn, project, user).await? {
        return Ok(id);
    }
    // On a conflict, the update changes nothing, but waits for the other transaction and returns its row.
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

/// Returns a page of the users of a project.
pub async fn list(conn: &mut PgConnection, project: ProjectId, page: &PageRequest) -> sqlx::Result<Vec<User>> {
    fetch_page!(select_users!("users t where t.project_id = $4"; project as _), conn, page)
}

/// Counts the resources of a user. Returns `None` if there is no such user.
pub async fn count_resources(
    conn: &mut PgConnection,
    project: ProjectId,
    user: &UserIdentifier,
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

/// Deletes a user with all its resources. The sweep deletes the objects later. Returns `false` if there is no such user.
pub async fn delete(conn: &mut PgConnection, project: ProjectId, user: &UserIdentifier) -> sqlx::Result<bool> {
    let delete =
        sqlx::query!("delete from users where project_id = $1 and identifier = $2", project as _, user.as_str());
    Ok(delete.execute(conn).await?.rows_affected() == 1)
}
