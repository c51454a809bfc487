//! Schema migrations.

use anyhow::{Context, bail};
use sqlx::{PgConnection, PgPool};

/// The only `Migrator`, shared by the server and its tests, because each use of the macro embeds another copy of the
/// migrations.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!();

const BEFORE_FIRST_RELEASE: &str = "the database was created by a version of acontextd from before its first release, \
     and this version cannot use its tables: set DATABASE_URL to an empty database or, with the embedded Postgres, \
     ACONTEXTD_DATA_DIR to an empty directory";

/// Checks that this version of the server can use the database. Writes nothing.
///
/// # Errors
/// Returns an error with a remedy if this version cannot use the database, or an error of the database.
pub async fn ensure_supported(conn: &mut PgConnection) -> anyhow::Result<()> {
    // These queries cannot be checked at compile time, because sqlx itself creates the table `_sqlx_migrations`.
    let is_new_query = sqlx::query_scalar("select to_regclass('_sqlx_migrations') is null");
    if is_new_query.fetch_one(&mut *conn).await? {
        return Ok(());
    }
    let applied: Vec<(i64, Vec<u8>)> =
        sqlx::query_as("select version, checksum from _sqlx_migrations order by version").fetch_all(conn).await?;
    let mut newest_unknown = None;
    for (version, checksum) in &applied {
        match MIGRATOR.iter().find(|migration| migration.version == *version) {
            Some(migration) if *migration.checksum == **checksum => {}
            Some(_) => bail!(BEFORE_FIRST_RELEASE),
            None => newest_unknown = Some(version),
        }
    }
    if let Some(version) = newest_unknown {
        bail!(
            "the database has migration {version}, which this version of acontextd does not know, because a newer \
             version has used the database: start that version or a later one"
        );
    }
    Ok(())
}

/// Applies all pending migrations. Takes an advisory lock, so several processes may do this concurrently.
///
/// # Errors
/// Returns an error if a migration fails, or if the database is unavailable or was used by an incompatible version.
pub async fn migrate(pool: &PgPool) -> anyhow::Result<()> {
    MIGRATOR.run(pool).await.context("failed to migrate the database")
}
