//! Schema migrations.

use anyhow::{anyhow, bail};
use sqlx::migrate::MigrateError;
use sqlx::{PgConnection, PgPool};

/// The only `Migrator`, shared by the server and its tests, because each use of the macro embeds another copy of the
/// migrations.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!();

/// The oldest supported version of Postgres, as in `server_version_num`.
const MIN_POSTGRES_VERSION: u32 = 15_00_00;

/// Checks that this version of the server can use the database. Writes nothing.
///
/// # Errors
/// Returns an error with a remedy if this version cannot use the database, or an error of the database.
pub async fn ensure_supported(conn: &mut PgConnection) -> anyhow::Result<()> {
    if let Some(version) = conn.server_version_num()
        && version < MIN_POSTGRES_VERSION
    {
        bail!(
            "the database is Postgres {}, but acontextd requires version {} or newer: upgrade Postgres, or set \
             DATABASE_URL to a newer one",
            version / 1_00_00,
            MIN_POSTGRES_VERSION / 1_00_00
        );
    }
    // These queries cannot be checked at compile time, because sqlx itself creates the table `_sqlx_migrations`.
    let is_new_query = sqlx::query_scalar("select to_regclass('_sqlx_migrations') is null");
    if is_new_query.fetch_one(&mut *conn).await? {
        return Ok(());
    }
    let applied: Vec<(i64, Vec<u8>, bool)> =
        sqlx::query_as("select version, checksum, success from _sqlx_migrations order by version")
            .fetch_all(conn)
            .await?;
    let mut newest_unknown = None;
    for (version, checksum, success) in &applied {
        match MIGRATOR.iter().find(|migration| migration.version == *version) {
            Some(migration) if *migration.checksum != **checksum => return Err(different_migration(*version)),
            Some(_) if !success => return Err(interrupted_migration(*version)),
            Some(_) => {}
            None => newest_unknown = Some(*version),
        }
    }
    if let Some(version) = newest_unknown {
        return Err(unknown_migration(version));
    }
    let newest = applied.last().map_or(0, |(version, ..)| *version);
    let is_applied = |version| applied.iter().any(|(applied, ..)| *applied == version);
    let mut versions = MIGRATOR.iter().map(|migration| migration.version);
    if let Some(version) = versions.find(|version| *version < newest && !is_applied(*version)) {
        bail!(
            "migration {version} is missing in the table _sqlx_migrations of the database, although migration {newest} \
             was applied after it: restore the database from a backup, or set DATABASE_URL to another database"
        );
    }
    Ok(())
}

/// Applies all pending migrations. Takes an advisory lock, so several processes may do this concurrently.
///
/// # Errors
/// Returns an error if a migration fails, or if the database is unavailable or was used by an incompatible version.
pub async fn migrate(pool: &PgPool) -> anyhow::Result<()> {
    // A process of another version may have migrated the database after `ensure_supported`.
    MIGRATOR.run(pool).await.map_err(|error| match error {
        MigrateError::VersionMissing(version) => unknown_migration(version),
        MigrateError::VersionMismatch(version) => different_migration(version),
        MigrateError::Dirty(version) => interrupted_migration(version),
        error => anyhow!(error).context("failed to migrate the database"),
    })
}

fn different_migration(version: i64) -> anyhow::Error {
    anyhow!(
        "migration {version} of the database differs from that of this version, because the database was created by a \
         version of acontextd from before its first release, or by a modified one, and this version cannot use its \
         tables: set DATABASE_URL to an empty database or, with the embedded Postgres, ACONTEXTD_DATA_DIR to an empty \
         directory"
    )
}

fn unknown_migration(version: i64) -> anyhow::Error {
    anyhow!(
        "the database has migration {version}, which this version of acontextd does not know, because a newer version \
         has used the database: start that version or a later one"
    )
}

fn interrupted_migration(version: i64) -> anyhow::Error {
    anyhow!(
        "migration {version} of the database was interrupted, so that its tables are incomplete: restore the database \
         from a backup, or set DATABASE_URL to another database"
    )
}
