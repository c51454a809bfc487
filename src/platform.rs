//! The handles that features share: the database, the job queue, the object store and the context of requests. This module
//! uses no feature.

use std::ops::Deref;
use std::sync::Arc;

use axum::extract::FromRef;
use reqwest::redirect::Policy;
use sqlx::postgres::PgConnectOptions;

use crate::blob::ObjectStore;
use crate::blob::service::BlobService;
use crate::blob::spool::SpoolDir;
use crate::config::Config;
use crate::crypto::LinkKeys;
use crate::db::Db;
use crate::db::pooler::PoolerCheck;
use crate::http::context::RequestContext;
use crate::http::idempotency::context::IdempotencyContext;
use crate::http::prometheus::HttpMetrics;
use crate::jobs::JobQueue;
use crate::llm::metrics::ModelMetrics;
use crate::process::Process;

/// The handles that features share. A clone is cheap. A feature without a context uses the platform as its router state.
#[derive(Clone)]
pub struct Platform(Arc<PlatformInner>);

/// The fields of a [`Platform`].
pub struct PlatformInner {
    pub config: Config,
    pub process: Process,
    pub db: Db,
    pub queue: JobQueue,
    pub blobs: BlobService,
    pub request_context: RequestContext,
    pub http_metrics: Arc<HttpMetrics>,
    pub model_metrics: Arc<ModelMetrics>,
    /// See [`build_http_client`].
    pub http_client: reqwest::Client,
    /// The keys of public links.
    pub link_keys: LinkKeys,
    /// The base URL of public links, without a trailing slash.
    pub public_url: String,
}

/// The dependencies of a [`Platform`], which startup creates.
pub struct PlatformDependencies {
    pub config: Config,
    pub database_options: PgConnectOptions,
    pub pooler_check: PoolerCheck,
    pub object_store: Arc<dyn ObjectStore>,
    pub spool: SpoolDir,
    /// The port that the server listens on. If the configured port is 0, the system has chosen this one.
    pub port: u16,
}

impl Platform {
    /// Creates the shared handles. The database connections are opened on demand.
    ///
    /// # Errors
    /// Returns an error if the HTTP client cannot be built or a key cannot be derived.
    pub fn new(dependencies: PlatformDependencies) -> anyhow::Result<Self> {
        let PlatformDependencies { config, database_options, pooler_check, object_store, spool, port } = dependencies;
        let (process, pepper, limits) = (Process::default(), config.keys.pepper(), &config.limits);
        let db = Db::new(database_options, config.database.main_connections(), pooler_check, process.clone());
        let queue = JobQueue::new(pepper)?;
        let idempotency = IdempotencyContext::new(db.clone(), pepper.to_owned(), limits.idempotency_wait);
        Ok(Self(Arc::new(PlatformInner {
            blobs: BlobService::new(db.clone(), queue.clone(), process.clone(), spool.clone(), object_store, limits),
            request_context: RequestContext::new(limits.clone(), spool, idempotency),
            http_metrics: Arc::default(),
            model_metrics: Arc::default(),
            http_client: build_http_client()?,
            link_keys: LinkKeys::derive(pepper)?,
            public_url: config.server.public_url(port),
            process,
            db,
            queue,
            config,
        })))
    }
}

/// Builds the client for requests to other services. It follows no redirects, so that it contacts only configured addresses.
///
/// # Errors
/// Returns an error if the certificates of the system cannot be loaded.
pub fn build_http_client() -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder().redirect(Policy::none()).build()
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

/// Provides the context of requests to extractors, from any router state that contains the platform.
impl<S: AsRef<Platform>> FromRef<S> for RequestContext {
    fn from_ref(state: &S) -> Self {
        state.as_ref().request_context.clone()
    }
}

/// Defines the context of a feature: a cloneable handle to `$Inner`, which must have a field `platform`. `$Inner`
/// dereferences to the platform, so handlers can read `context.db`. The context can be the state of a router.
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
