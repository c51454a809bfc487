//! Explains missing privileges in an external database at startup.

use anyhow::bail;
use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;

use super::migrations::MIGRATOR;
use crate::error::database::DatabaseOutage;

/// Adds the cause and a remedy to an error of the database at startup, if a privilege is missing or the database is read-only.
/// Returns any other error unchanged.
pub fn explain(error: anyhow::Error, options: &PgConnectOptions) -> anyhow::Error {
    let Some(sqlx::Error::Database(cause)) = error.chain().find_map(|cause| cause.downcast_ref()) else {
        return error;
    };
    let (user, user_text) = (quote(options.get_username()), options.get_username());
    let message = cause.message();
    let grant_schema = format!("GRANT USAGE, CREATE ON SCHEMA public TO {user}");
    let remedy = match cause.code().as_deref() {
        Some("25006") => return error.context(DatabaseOutage::ReadOnly.description()),
        // invalid_schema_name: the user has no privilege on any schema of the search path.
        Some("3F000") => grant_schema,
        Some("42501") if message.contains("for schema") => grant_schema,
        Some("42501") if message.contains("for database") => {
            let database = options.get_database().unwrap_or(user_text);
            format!("GRANT CONNECT ON DATABASE {} TO {user}", quote(database))
        }
        Some("42501") if message.contains("must be owner") => {
            return error.context(format!(
                "the database user {user_text} cannot change the tables, because another user owns them: connect as \
                 that user (DATABASE_USER, or the user in DATABASE_URL), or make {user_text} a member of that user with GRANT"
            ));
        }
        Some("42501") => grant_tables(&user),
        _ => return error,
    };
    let text = format!(
        "the database user {user_text} lacks a privilege: execute {remedy} as the owner of the database or a superuser"
    );
    error.context(text)
}

/// Checks that the user of the database can read and write every table. Otherwise requests that use a table without privileges
/// would fail later.
///
/// # Errors
/// Returns an error that names the first table without privileges, or an error of the database.
pub async fn check(pool: &PgPool) -> anyhow::Result<()> {
    // The query cannot be checked at compile time, because its table names come from the migrations.
    let query = "select relation, current_user::text
                 from (select relation, to_regclass(relation)::oid as id, is_view
                       from unnest($1::text[], $2::boolean[]) r (relation, is_view)) r
                 where id is not null
                   and not (has_table_privilege(id, 'select')
                            and (is_view or has_table_privilege(id, 'insert') and has_table_privilege(id, 'update')
                                            and has_table_privilege(id, 'delete')))
                 limit 1";
    let (names, are_views): (Vec<_>, Vec<_>) = relations().unzip();
    let missing: Option<(String, String)> =
        sqlx::query_as(query).bind(names).bind(are_views).fetch_optional(pool).await?;
    if let Some((relation, user)) = missing {
        bail!(
            "the database user {user} cannot read and write {relation}: execute {} as the owner of the tables or a \
             superuser",
            grant_tables(&quote(&user))
        );
    }
    Ok(())
}

/// Returns the names of the tables and views that the migrations create, and `true` for a view.
fn relations() -> impl Iterator<Item = (String, bool)> {
    let lines = MIGRATOR.iter().flat_map(|migration| migration.sql.lines());
    lines.filter_map(|line| {
        let (rest, is_view) = match line.strip_prefix("create table ") {
            Some(rest) => (rest, false),
            None => (line.strip_prefix("create view ")?, true),
        };
        Some((rest.split([' ', '(']).next()?.to_owned(), is_view))
    })
}

fn grant_tables(quoted_user: &str) -> String {
    format!("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {quoted_user}")
}

/// Quotes an identifier for SQL.
fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}
