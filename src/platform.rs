//! What every feature stands on: the database, the queue, stored objects, and how requests are read. It names no feature.

use std::ops::Deref;
use std::sync::Arc;

use axum::extract::FromRef;
use reqwest::redirect::Policy;
use sqlx::postgres::PgConnectOptions;

use crate::blob::BlobStore;
use crate::blob::service::BlobService;
use crate::blob::spool::SpoolDir;
use crate::config::Config;
use crate::crypto::LinkKey;
use crate::db::Db;
use crate::db::pooler::PoolerCheck;
use crate::http::context::RequestContext;
use crate::http::idempotency::settings::IdempotencySettings;
use crate::http::prometheus::HttpMetrics;
use crate::jobs::JobQueue;
use crate::process::Process;

/// The handles that features share; cheap to clone. It is the state of routers that need nothing of their own.
#[derive(Clone)]
pub struct Platform(Arc<PlatformInner>);

pub struct PlatformInner {
    pub config: Config,
    pub process: Process,
    pub db: Db,
    pub queue: JobQueue,
    pub blobs: BlobService,
    pub request_context: RequestContext,
    pub http_metrics: Arc<HttpMetrics>,
    /// For requests to other services. It follows no redirects: only the configured address is contacted.
    pub http_client: reqwest::Client,
    /// Signs public links.
    pub link_key: LinkKey,
    /// The beginning of public links, without a slash at its end.
    pub public_url: String,
}

/// What startup has found out or made before there can be a [`Platform`].
pub struct PlatformDependencies {
    pub config: Config,
    pub database: PgConnectOptions,
    pub pooler: PoolerCheck,
    pub blob_store: Arc<dyn BlobStore>,
    pub spool: SpoolDir,
    /// The port that is listened on, which the configured one may leave open.
    pub port: u16,
}

impl Platform {
    /// # Errors
    /// The client for requests to other services cannot be built.
    pub fn new(dependencies: PlatformDependencies) -> anyhow::Result<Self> {
        let PlatformDependencies { config, database, pooler, blob_store, spool, port } = dependencies;
        let (process, pepper, limits) = (Process::default(), config.keys.pepper(), &config.limits);
        let db = Db::new(database, config.database.main_connections(), pooler, process.clone());
        let queue = JobQueue::new(pepper)?;
        let idempotency = IdempotencySettings::new(db.clone(), pepper.to_owned(), limits.idempotency_wait);
        Ok(Self(Arc::new(PlatformInner {
            blobs: BlobService::new(db.clone(), queue.clone(), process.clone(), spool.clone(), blob_store, limits),
            request_context: RequestContext::new(limits.clone(), spool, idempotency),
            http_metrics: Arc::default(),
            http_client: reqwest::Client::builder().redirect(Policy::none()).build()?,
            link_key: LinkKey::derive(pepper)?,
            public_url: config.server.public_url(port),
            process,
            db,
            queue,
            config,
        })))
    }
}

impl Deref for Platform {
    type Target = PlatformInner;

    fn deref(&self) -> &PlatformInner {
        &self.0
    }
}

impl AsRef<Self> for Platform {
    fn as_ref(&self) -> &Self {
        self
    }
}

/// Every state that contains the platform has what the extractors need.
impl<S: AsRef<Platform>> FromRef<S> for RequestContext {
    fn from_ref(state: &S) -> Self {
        state.as_ref().request_context.clone()
    }
}

/// Defines the context of a feature: a handle around `$Inner`, which has a field `platform`. It dereferences to the platform, so that
/// handlers read `context.db`, and it can be the state of a router. Methods of the feature reach its own fields with `inner`.
macro_rules! platform_context {
    ($(#[$doc:meta])* $Context:ident, $Inner:ident) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $Context(std::sync::Arc<$Inner>);

        impl std::ops::Deref for $Context {
            type Target = $Inner;

            fn deref(&self) -> &$Inner {
                &self.0
            }
        }

        impl std::ops::Deref for $Inner {
            type Target = $crate::platform::Platform;

            fn deref(&self) -> &$crate::platform::Platform {
                &self.platform
            }
        }

        impl AsRef<$crate::platform::Platform> for $Context {
            fn as_ref(&self) -> &$crate::platform::Platform {
                &self.0.platform
            }
        }
    };
}

pub(crate) use platform_context;
