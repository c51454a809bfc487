//! Creates the tables of a new database and brings those of an older one up to date.

use anyhow::{Context, bail};
use sqlx::{PgConnection, PgPool};

/// One for the program and all its tests: each use of the macro would embed another copy.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!();

const BEFORE_FIRST_RELEASE: &str = "the database was created by a build of acontextd from before its first release, whose tables this version cannot \
     use: set DATABASE_URL to an empty database, or ACONTEXTD_DATA_DIR to an empty directory if the server starts its own Postgres";

/// Refuses a database that this version of the program cannot use. Writes nothing.
///
/// # Errors
/// Returns a sentence for the operator, or the error of the database.
pub async fn ensure_supported(conn: &mut PgConnection) -> anyhow::Result<()> {
    // The table is the driver's and not in the migrations, so the compiler cannot check these queries.
    let is_new = sqlx::query_scalar("select to_regclass('_sqlx_migrations') is null");
    if is_new.fetch_one(&mut *conn).await? {
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
            "the database has migration {version}, which this version of acontextd does not know: a newer version has used the \
             database, so start that version or a later one"
        );
    }
    Ok(())
}

/// Brings the database up to date. Takes an advisory lock, so two processes may do this at once.
///
/// # Errors
/// The database does not answer, or this version of the program cannot use it.
pub async fn migrate(pool: &PgPool) -> anyhow::Result<()> {
    MIGRATOR.run(pool).await.context("the database could not be brought up to date")
}
