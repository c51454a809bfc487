//! The baseline of `ping`: an axum server with one route that returns the same response, without a key and without a
//! database. It runs in a separate process of the benchmark program.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use acontextd::blob::local::LocalObjectStore;
use acontextd::blob::spool::SpoolDir;
use acontextd::config::{Config, EarlyExit};
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

/// The middleware around the route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Layers {
    /// The same middleware as in the server: request id, span and log line, timeout, and panic handler.
    Server,
    /// No middleware, and axum's own connection loop.
    None,
}

/// Serves until it is killed.
pub fn serve(layers: Layers, port: u16, dir: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let route = Router::new().route("/api/v1/ping", get(|| async { response::ok_message("pong") }));
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        if layers == Layers::None {
            return Ok(axum::serve(listener, route).await?);
        }
        let platform = platform(dir, port)?;
        let traces = telemetry::init(&platform.config.telemetry)?;
        // The same layers as in `features::router`, except for the check of the key.
        let router = route
            .layer(CatchPanicLayer::custom(middleware::handle_panic))
            .layer(from_fn_with_state(platform.request_context.clone(), middleware::limit_time_and_memory))
            .layer(from_fn_with_state(platform.process.clone(), middleware::drain_rejected_body))
            .layer(from_fn_with_state(Arc::clone(&platform.http_metrics), middleware::record_telemetry));
        let outcome = server::serve(platform.process.clone(), listener, router, 4096).await;
        traces.flush();
        outcome
    })
}

/// Creates the platform that the layers need. Its database is never queried.
fn platform(dir: &Path, port: u16) -> anyhow::Result<Platform> {
    let (config, spool) = (load_config(&[])?, SpoolDir::open(dir)?);
    let object_store = Arc::new(LocalObjectStore::open(&dir.join("objects"), spool.clone())?);
    let (database_options, pooler_check) = (PgConnectOptions::new_without_pgpass(), PoolerCheck::default());
    Platform::new(PlatformDependencies { config, database_options, pooler_check, object_store, spool, port })
}

/// Returns the configuration of a server with the given settings and otherwise the defaults.
pub fn load_config(settings: &[(&str, &str)]) -> anyhow::Result<Config> {
    let settings = settings.iter().chain(&[("ROOT_SECRET_PEPPER", "a pepper for measuring")]);
    let environment: HashMap<_, _> = settings.map(|(name, value)| (name.into(), value.into())).collect();
    match Config::from_args_and_env(["acontextd"], &environment) {
        Ok(config) => Ok(config),
        Err(EarlyExit::Help(message) | EarlyExit::Error(message)) => bail!(message),
    }
}
