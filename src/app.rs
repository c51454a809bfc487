//! The program as a value: what every handler and every job is given, and the three lists that know all features.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use reqwest::redirect::Policy;
use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utoipa_axum::router::OpenApiRouter;

use crate::auth::KeyCache;
use crate::blob::Blobs;
use crate::blob::spool::SpoolDir;
use crate::blob::sweep::{self, SweepBlobs};
use crate::config::Config;
use crate::crypto::LinkKey;
use crate::db::pooler::PoolerCheck;
use crate::http::memory::BodyMemory;
use crate::http::meters::Meters;
use crate::jobs::periodic::{self, Reconciler};
use crate::jobs::{Jobs, Kinds};
use crate::learn::conclude::Conclude;
use crate::learn::distill::Distill;
use crate::learn::observe::{self, Observe};
use crate::llm::{self, Llm};
use crate::messages::writer::Writer;
use crate::projects::encryption::convert::Convert;
use crate::seal::jobs::JobKeys;
use crate::{db, disks, http, learn, messages, metrics, projects, sessions, skills, spaces, tasks, users};

/// Of the text of long messages that is worked on at one time. JSON takes many times its length while it is looked at.
pub const WORKED_KIB: u32 = 32 * 1024;

/// Of files that are shown as text at one time; a reply takes about three times as much.
pub const SHOWN_KIB: u32 = 64 * 1024;

/// A handle to everything; cheap to clone, and an extractor.
#[derive(Clone)]
pub struct App(Arc<Services>);

pub struct Services {
    pub config: Config,
    pub db: PgPool,
    /// Connections that read pages of messages.
    pub pages: PgPool,
    pub pooler: PoolerCheck,
    pub blobs: Arc<dyn Blobs>,
    pub spool: SpoolDir,
    pub keys: KeyCache,
    pub link_key: LinkKey,
    /// Seals the keys that jobs are given.
    pub job_keys: JobKeys,
    /// The beginning of public links, without a slash at its end.
    pub public_url: String,
    pub meters: Arc<Meters>,
    /// Asks other services.
    pub http: reqwest::Client,
    pub jobs: Jobs,
    pub messages: Writer,
    pub llm: Arc<dyn Llm>,
    /// Told whenever messages were observed.
    pub observed: Notify,
    /// Told whenever a project's content is all in the form that is wanted.
    pub converted: Notify,
    pub greps: disks::search::Greps,
    pub body_memory: BodyMemory,
    /// How much of files is held in memory at once to be shown, in KiB.
    pub shown: Semaphore,
    /// How much of long messages is worked on at once, in KiB.
    pub worked: Semaphore,
    /// Messages that wait on a connection of their own.
    pub waiting_stores: Semaphore,
    /// Everything that runs beside the requests. A stop waits for it.
    pub tasks: TaskTracker,
    /// The process stops: take nothing new on.
    pub shutdown: CancellationToken,
    /// The time for an orderly stop is over.
    pub hard_stop: CancellationToken,
}

impl Deref for App {
    type Target = Services;

    fn deref(&self) -> &Services {
        &self.0
    }
}

/// What a start has found out or made before there can be an [`App`].
pub struct Parts {
    pub config: Config,
    pub database: PgConnectOptions,
    pub pooler: PoolerCheck,
    pub blobs: Arc<dyn Blobs>,
    pub spool: SpoolDir,
    /// The port that is listened on, which the configured one may leave open.
    pub port: u16,
    pub kinds: Kinds,
}

impl App {
    ///
    /// # Errors
    /// None that can be helped.
    pub fn new(parts: Parts) -> anyhow::Result<Self> {
        let Parts { config, database, pooler, blobs, spool, port, kinds } = parts;
        let connections = u32::try_from(config.database.connections).unwrap_or(u32::MAX);
        let for_pages = (connections / 3).max(1);
        Ok(Self(Arc::new(Services {
            pages: db::page_pool(database.clone(), for_pages, &pooler),
            db: db::pool(database, connections.saturating_sub(for_pages).max(1), &pooler),
            pooler,
            link_key: LinkKey::derive(config.keys.pepper())?,
            job_keys: JobKeys::derive(config.keys.pepper())?,
            public_url: config.server.public_url(port),
            meters: Arc::default(),
            // What is asked is configured; nobody else shall be asked instead.
            http: reqwest::Client::builder().redirect(Policy::none()).build().unwrap_or_default(),
            messages: Writer::default(),
            llm: llm::configured(&config.learning),
            observed: Notify::new(),
            converted: Notify::new(),
            greps: disks::search::Greps::default(),
            body_memory: BodyMemory::default(),
            shown: Semaphore::new(SHOWN_KIB as usize),
            worked: Semaphore::new(WORKED_KIB as usize),
            waiting_stores: Semaphore::new((config.database.connections / 4).max(1)),
            keys: KeyCache::default(),
            jobs: Jobs::new(kinds),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
            hard_stop: CancellationToken::new(),
            config,
            blobs,
            spool,
        })))
    }

    /// Begins a transaction; see [`db::begin`].
    pub fn begin(&self) -> db::Begin {
        db::begin(&self.db, &self.tasks)
    }

    /// The HTTP surface.
    pub fn router(&self) -> Router {
        http::surface(self, routes())
    }
}

/// Every feature's routes.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .merge(http::router())
        .merge(projects::router())
        .merge(sessions::router())
        .merge(messages::router())
        .merge(tasks::router())
        .merge(learn::router())
        .merge(disks::router())
        .merge(skills::router())
        .merge(spaces::router())
        .merge(users::router())
        .merge(metrics::router())
}

/// Every kind of job that this program can run.
pub fn kinds() -> Kinds {
    Kinds::default().with::<SweepBlobs>().with::<Observe>().with::<Conclude>().with::<Distill>().with::<Convert>()
}

/// Everything that is done from time to time.
pub fn reconcilers(config: &Config) -> Vec<Reconciler> {
    vec![
        Reconciler {
            name: "take_over_jobs",
            every: config.jobs.lease / 3,
            run: |app| Box::pin(periodic::take_over(app)),
        },
        Reconciler {
            name: "forget_failed_jobs",
            every: Duration::from_hours(1),
            run: |app| Box::pin(periodic::forget_failed(app)),
        },
        Reconciler {
            name: "forget_answers",
            every: Duration::from_hours(1),
            run: |app| Box::pin(http::idempotency::store::forget_old(app)),
        },
        Reconciler {
            name: "forget_replaced_keys",
            every: Duration::from_hours(1),
            run: |app| Box::pin(projects::keys::forget_old(app)),
        },
        Reconciler {
            name: "observe_forgotten",
            every: Duration::from_mins(1),
            run: |app| Box::pin(observe::find_forgotten(app)),
        },
        Reconciler { name: "sweep_blobs", every: config.jobs.sweep_every, run: |app| Box::pin(sweep::request(app)) },
    ]
}
