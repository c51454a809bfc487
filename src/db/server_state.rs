//! Named values that belong to the installation and not to a project, in the table `server_state`.

use sqlx::PgConnection;

/// Returns the value with this name.
pub async fn get_state(conn: &mut PgConnection, name: &str) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar!("select value from server_state where name = $1", name).fetch_optional(conn).await
}

/// Sets the value with this name.
pub async fn set_state(conn: &mut PgConnection, name: &str, value: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into server_state (name, value) values ($1, $2)
         on conflict (name) do update set value = excluded.value, updated_at = now()",
        name,
        value,
    )
    .execute(conn)
    .await
    .map(drop)
}
