//! The yardstick of `ping`: one axum route that says the same, without a key and without a database. It runs in a process of
//! its own, this program once more.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use acontextd::blob::local::LocalBlobStore;
use acontextd::blob::spool::SpoolDir;
use acontextd::config::{Config, Stop};
use acontextd::db::pooler::PoolerCheck;
use acontextd::http::{middleware, response, server};
use acontextd::platform::{Platform, PlatformDependencies};
use acontextd::telemetry;
use anyhow::bail;
use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use clap::ValueEnum;
use sqlx::postgres::PgConnectOptions;
use tokio::net::TcpListener;
use tower_http::catch_panic::CatchPanicLayer;

/// What stands around the route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Layers {
    /// What stands around the server's own: the id, the span and the log line, the time limit, the panics.
    Ours,
    /// Nothing, on axum's own loop of connections.
    None,
}

/// Serves until it is killed.
pub fn serve(layers: Layers, port: u16, folder: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let route = Router::new().route("/api/v1/ping", get(|| async { response::message("pong") }));
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        if layers == Layers::None {
            return Ok(axum::serve(listener, route).await?);
        }
        let platform = platform(folder, port)?;
        let traces = telemetry::init(&platform.config.telemetry)?;
        // As in `features::router`, without the key.
        let router = route
            .layer(CatchPanicLayer::custom(middleware::panicked))
            .layer(from_fn_with_state(platform.request_context.clone(), middleware::bound))
            .layer(from_fn_with_state(platform.process.clone(), middleware::drain))
            .layer(from_fn_with_state(Arc::clone(&platform.http_metrics), middleware::observe));
        let served = server::serve(platform.process.clone(), listener, router).await;
        traces.flush();
        served
    })
}

/// What the layers need; its database is never queried.
fn platform(folder: &Path, port: u16) -> anyhow::Result<Platform> {
    let (config, spool) = (settings(&[])?, SpoolDir::open(folder)?);
    let blob_store = Arc::new(LocalBlobStore::open(&folder.join("objects"), spool.clone())?);
    let (database, pooler) = (PgConnectOptions::new_without_pgpass(), PoolerCheck::default());
    Platform::new(PlatformDependencies { config, database, pooler, blob_store, spool, port })
}

/// The settings of a server that nothing but these is configured for.
pub fn settings(given: &[(&str, &str)]) -> anyhow::Result<Config> {
    let given = given.iter().chain(&[("ROOT_SECRET_PEPPER", "a pepper for measuring")]);
    let environment: HashMap<_, _> = given.map(|(name, value)| (name.into(), value.into())).collect();
    match Config::from_parts(["acontextd"], &environment) {
        Ok(config) => Ok(config),
        Err(Stop::Print(why) | Stop::Refuse(why)) => bail!(why),
    }
}
