//! Brings up everything but the port: what commands without a server begin with, too.

use std::path::Path;

use anyhow::Context;
use sqlx::Connection;

use super::data_dir::DataDir;
use super::database::{connect, external_database_options};
use super::object_store::{open_object_store, wait_for_object_store};
use crate::blob::spool::SpoolDir;
use crate::config::Config;
use crate::db::migrations;
use crate::db::pooler::PoolerCheck;
use crate::embedded::postgres::{Postgres, Tuning};
use crate::features::App;
use crate::platform::{Platform, PlatformDependencies};
use crate::projects;
use crate::projects::pepper::Pepper;

/// The features over a migrated database and a reachable object store.
pub struct OpenedServer {
    pub app: App,
    pub postgres: Option<Postgres>,
    /// Keeps other servers out of the data directory.
    pub data_dir: DataDir,
}

impl OpenedServer {
    /// Starts the embedded Postgres or connects to the external one, checks the pepper, opens the objects, migrates the database, and
    /// creates the default project. `port` is the one in public links.
    ///
    /// # Errors
    /// The message says what to do.
    pub async fn open(mut config: Config, data_dir: DataDir, pepper: Pepper, port: u16) -> anyhow::Result<Self> {
        let postgres = start_embedded(&config, &data_dir.path).await?;
        let database = match &postgres {
            Some(postgres) => postgres.options(),
            None => external_database_options(&config.database)?,
        };
        let pooler = PoolerCheck::default();
        let resolved = async {
            let mut conn = connect(&database, postgres.is_none(), &pooler).await?;
            migrations::ensure_supported(&mut conn).await?;
            let pepper = pepper.resolve(&mut conn, &config.keys).await?;
            conn.close().await?;
            anyhow::Ok(pepper)
        };
        let pepper = tokio::select! {
            pepper = resolved => pepper?,
            error = postgres_exit(postgres.as_ref()) => return Err(error),
        };
        config.keys.set_pepper(pepper);
        let spool = SpoolDir::open(&data_dir.path);
        let spool = spool.with_context(|| format!("{} cannot be written", data_dir.path.display()))?;
        let blob_store = open_object_store(&config, &data_dir.path, &spool)?;
        let dependencies = PlatformDependencies { config, database, pooler, blob_store, spool, port };
        let app = App::new(Platform::new(dependencies)?);
        tokio::select! {
            initialized = initialize(&app) => initialized?,
            error = postgres_exit(postgres.as_ref()) => return Err(error),
        }
        Ok(Self { app, postgres, data_dir })
    }
}

async fn start_embedded(config: &Config, data_dir: &Path) -> anyhow::Result<Option<Postgres>> {
    if config.database.is_external() {
        return Ok(None);
    }
    let postgres = Postgres::start(data_dir, config.server.postgres_bin.as_deref(), Tuning::default()).await?;
    Ok(Some(postgres))
}

async fn initialize(app: &App) -> anyhow::Result<()> {
    migrations::migrate(&app.db).await?;
    wait_for_object_store(&app.blobs).await?;
    projects::root::ensure(app).await.map(drop)
}

/// Waits until the embedded Postgres exits by itself; without one, forever.
pub(super) async fn postgres_exit(postgres: Option<&Postgres>) -> anyhow::Error {
    match postgres {
        Some(postgres) => postgres.exited().await,
        None => std::future::pending().await,
    }
}
