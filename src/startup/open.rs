//! Opens everything that the server needs, except the port.

use std::path::Path;

use sqlx::Connection;

use super::data_dir::DataDir;
use super::database::{connect, external_database_options};
use super::object_store::{open_object_store, wait_for_object_store};
use crate::blob::spool::SpoolDir;
use crate::config::Config;
use crate::db::pooler::PoolerCheck;
use crate::db::{migrations, privileges};
use crate::embedded::postgres::{EmbeddedPostgres, PostgresOptions};
use crate::error::data_dir::describe_failure;
use crate::features::App;
use crate::platform::{Platform, PlatformDependencies};
use crate::projects::default_project::{self, DefaultProject};
use crate::projects::pepper::PepperSources;

/// The app, whose database is migrated and whose object store is available, with the resources that it needs.
pub struct OpenedApp {
    pub app: App,
    pub default_project: DefaultProject,
    /// `None` if an external database is configured.
    pub postgres: Option<EmbeddedPostgres>,
    /// Holds the lock of the data directory.
    pub data_dir: DataDir,
}

impl OpenedApp {
    /// Starts the embedded Postgres or connects to the external one, checks the pepper, opens the object store, migrates the
    /// database, and creates the default project. `port` is the port in public links.
    ///
    /// # Errors
    /// Returns an error with a remedy if one of these steps fails.
    pub async fn open(mut config: Config, data_dir: DataDir, pepper: PepperSources, port: u16) -> anyhow::Result<Self> {
        let postgres = start_embedded(&config, &data_dir.path).await?;
        let database_options = match &postgres {
            Some(postgres) => postgres.options(),
            None => external_database_options(&config.database)?,
        };
        let pooler_check = PoolerCheck::default();
        let resolve_pepper = async {
            let mut conn = connect(&database_options, postgres.is_none(), &pooler_check).await?;
            migrations::ensure_supported(&mut conn).await?;
            let pepper = pepper.resolve(&mut conn, &config).await?;
            conn.close().await?;
            anyhow::Ok(pepper)
        };
        let pepper = tokio::select! {
            pepper = resolve_pepper => pepper.map_err(|error| privileges::explain(error, &database_options))?,
            error = wait_for_postgres_exit(postgres.as_ref()) => return Err(error),
        };
        config.keys.set_pepper(pepper);
        let spool = SpoolDir::open(&data_dir.path);
        let spool =
            spool.map_err(|error| describe_failure(&error, "write to", &data_dir.path.join("tmp"), &data_dir.path))?;
        let object_store = open_object_store(&config, &data_dir.path, &spool).await?;
        let explain_options = database_options.clone();
        let dependencies = PlatformDependencies { config, database_options, pooler_check, object_store, spool, port };
        let app = App::new(Platform::new(dependencies)?)?;
        let default_project = tokio::select! {
            default_project = initialize(&app) => {
                default_project.map_err(|error| privileges::explain(error, &explain_options))?
            }
            error = wait_for_postgres_exit(postgres.as_ref()) => return Err(error),
        };
        Ok(Self { app, default_project, postgres, data_dir })
    }
}

/// Starts the embedded Postgres unless an external database is configured.
async fn start_embedded(config: &Config, data_dir: &Path) -> anyhow::Result<Option<EmbeddedPostgres>> {
    if config.database.is_external() {
        return Ok(None);
    }
    let bin_dir = config.server.postgres_bin.as_deref();
    Ok(Some(EmbeddedPostgres::start(data_dir, bin_dir, PostgresOptions::default()).await?))
}

/// Migrates the database, checks the privileges of its user, waits for the object store, and creates the default project.
async fn initialize(app: &App) -> anyhow::Result<DefaultProject> {
    migrations::migrate(&app.db).await?;
    privileges::check(&app.db).await?;
    wait_for_object_store(&app.blobs).await?;
    default_project::ensure(app).await
}

/// Waits until the embedded Postgres exits unexpectedly. Never returns if there is no embedded Postgres.
pub(super) async fn wait_for_postgres_exit(postgres: Option<&EmbeddedPostgres>) -> anyhow::Error {
    match postgres {
        Some(postgres) => postgres.wait_for_exit().await,
        None => std::future::pending().await,
    }
}
