//! Registers the contexts, routes, job kinds, periodic tasks and notification handlers of all features, and the middleware.
//! This is the only file that knows all features.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::auth::access::{self, AccessControl, AccessRules};
use crate::auth::cache::KeyCacheTimes;
use crate::auth::keys::Authenticator;
use crate::blob::sweep::{self, SweepBlobs};
use crate::db::notify::NotificationHandler;
use crate::disks::Disks;
use crate::encryption::conversion::EncryptableContent;
use crate::encryption::text_converter::TextConverter;
use crate::http::idempotency;
use crate::http::openapi::{self, ApiDocument};
use crate::http::{host, middleware, route_not_found};
use crate::job_control::JobControl;
use crate::jobs::JobRegistry;
use crate::jobs::periodic::{self, PeriodicTask};
use crate::jobs::runner::Runner;
use crate::learn::jobs::{Distill, FinalizeSession, Observe, WriteLesson};
use crate::learn::{self, Learn};
use crate::learning_spaces::{self, LearningSpaces};
use crate::lessons::convert::LessonTexts;
use crate::llm::recording::RecordingLlm;
use crate::llm::{self, LimitedLlm, Llm};
use crate::messages::convert::MessageEncryptionConverter;
use crate::messages::{self, Messages};
use crate::platform::Platform;
use crate::projects::conversion::convert::ConvertProject;
use crate::projects::{self, Projects};
use crate::sandboxes::convert::CommandTexts;
use crate::sandboxes::provider::SandboxProvider;
use crate::sandboxes::{self, Sandboxes};
use crate::status::{self, Status};
use crate::{disks, job_control, material, sessions, skills, tasks, usage_metrics, users};

/// The prefixes of routes, each with the module of `src` that has these routes. If several prefixes match, the longest one
/// counts. A test compares this list with the routers.
pub const ROUTE_OWNERS: &[(&str, &str)] = &[
    ("/health", "status"),
    ("/ready", "status"),
    ("/metrics", "status"),
    ("/api/v1/ping", "status"),
    ("/api/v1/material", "material"),
    ("/api/v1/project", "projects"),
    ("/admin/v1/project", "projects"),
    ("/metrics/v1", "usage_metrics"),
    ("/admin/v1/project/{project_id}/metrics", "usage_metrics"),
    ("/api/v1/session", "sessions"),
    ("/api/v1/session/{session_id}/messages", "messages"),
    ("/api/v1/session/{session_id}/asset", "messages"),
    ("/api/v1/session/{session_id}/token_counts", "messages"),
    ("/api/v1/session/{session_id}/task", "tasks"),
    ("/api/v1/session/{session_id}/flush", "learn"),
    ("/api/v1/session/{session_id}/observing_status", "learn"),
    ("/api/v1/disk", "disks"),
    ("/api/v1/agent_skills", "skills"),
    ("/api/v1/learning_spaces", "learning_spaces"),
    ("/api/v1/user", "users"),
    ("/api/v1/sandbox", "sandboxes"),
    ("/api/v1/jobs", "job_control"),
];

/// The access rules of the routes of this server.
pub const ACCESS_RULES: AccessRules = AccessRules {
    public: &[
        "/health",
        "/ready",
        "/openapi.json",
        "/swagger",
        "/swagger/doc.json",
        "/swagger/{*file}",
        "/api/v1/material/{token}",
    ],
    admin: &["/metrics"],
    admin_prefix: "/admin/v1/",
    project_admin: &[ROTATE_KEY_ROUTE, "/admin/v1/project/encrypt", "/admin/v1/project/decrypt"],
    usage_metrics_prefix: "/metrics/v1",
    rotate_key: ROTATE_KEY_ROUTE,
};

const ROTATE_KEY_ROUTE: &str = "/admin/v1/project/secret_key";

/// The platform and the contexts of all features. A clone is cheap.
#[derive(Clone)]
pub struct App {
    pub platform: Platform,
    pub authenticator: Authenticator,
    pub sandboxes: Sandboxes,
    pub messages: Messages,
    pub disks: Disks,
    pub learning_spaces: LearningSpaces,
    pub learn: Learn,
    pub projects: Projects,
    pub status: Status,
}

impl App {
    /// Creates the contexts of all features, which use the configured services.
    ///
    /// # Errors
    /// Returns the errors of [`ExternalServices::from_config`].
    pub fn new(platform: Platform) -> anyhow::Result<Self> {
        let services = ExternalServices::from_config(&platform)?;
        Ok(Self::with_services(platform, services))
    }

    /// Creates the contexts of all features, which use `services` instead of the configured ones.
    pub fn with_services(platform: Platform, services: ExternalServices) -> Self {
        let ExternalServices { llm, sandbox_provider } = services;
        let sandboxes = Sandboxes::new(platform.clone(), sandbox_provider);
        let (db, process) = (platform.db.clone(), platform.process.clone());
        let metrics = Arc::clone(&platform.model_metrics);
        let llm = Arc::new(RecordingLlm::new(llm, db, process, metrics));
        let settings = &platform.config.model;
        let llm: Arc<dyn Llm> = Arc::new(LimitedLlm::new(llm, settings.max_requests, settings.max_project_requests));
        let authenticator = Authenticator::new(platform.clone(), KeyCacheTimes::default());
        Self {
            messages: Messages::new(platform.clone()),
            disks: Disks::new(platform.clone(), sandboxes.clone()),
            learning_spaces: LearningSpaces::new(platform.clone(), Arc::clone(&llm)),
            learn: Learn::new(platform.clone(), llm),
            projects: Projects::new(platform.clone(), authenticator.clone(), encrypted_content(&platform)),
            status: Status::new(platform.clone(), sandboxes.clone()),
            authenticator,
            sandboxes,
            platform,
        }
    }
}

/// The services outside of the server that features use, other than the database and the object store.
pub struct ExternalServices {
    pub llm: Arc<dyn Llm>,
    /// `None` if sandboxes are disabled.
    pub sandbox_provider: Option<Arc<dyn SandboxProvider>>,
}

impl ExternalServices {
    /// Returns the configured services.
    ///
    /// # Errors
    /// Returns an error if a key contains a character that a header cannot contain.
    pub fn from_config(platform: &Platform) -> anyhow::Result<Self> {
        let (spool, abort) = (platform.request_context.spool.clone(), platform.process.abort.clone());
        let client = platform.http_client.clone();
        Ok(Self {
            llm: llm::from_config(&platform.config.model, client.clone()),
            sandbox_provider: sandboxes::provider::from_config(&platform.config, client, spool, abort)?,
        })
    }
}

impl Deref for App {
    type Target = Platform;

    fn deref(&self) -> &Platform {
        &self.platform
    }
}

/// Returns the kinds of content that an encryption conversion rewrites.
fn encrypted_content(platform: &Platform) -> Vec<Arc<dyn EncryptableContent>> {
    vec![
        Arc::new(MessageEncryptionConverter { db: platform.db.clone() }),
        Arc::new(TextConverter { db: platform.db.clone(), table: LessonTexts }),
        Arc::new(TextConverter { db: platform.db.clone(), table: CommandTexts }),
        Arc::new(platform.blobs.clone()),
    ]
}

/// Returns the router of each feature with the name of its module.
fn routers(app: &App) -> Vec<(&'static str, OpenApiRouter)> {
    let platform = || app.platform.clone();
    vec![
        ("status", status::router().with_state(app.status.clone())),
        ("material", material::router().with_state(platform())),
        ("projects", projects::router().with_state(app.projects.clone())),
        ("sessions", sessions::router().merge(sessions::copy::router()).with_state(platform())),
        ("messages", messages::router().with_state(app.messages.clone())),
        ("tasks", tasks::router().with_state(platform())),
        ("learn", learn::router().with_state(app.learn.clone())),
        ("disks", disks::router().with_state(app.disks.clone())),
        (
            "skills",
            skills::router().with_state(platform()).merge(skills::sandbox_router().with_state(app.sandboxes.clone())),
        ),
        ("sandboxes", sandboxes::router().with_state(app.sandboxes.clone())),
        ("learning_spaces", learning_spaces::router().with_state(app.learning_spaces.clone())),
        ("job_control", job_control::router().with_state(JobControl::new(app.platform.clone(), job_registry(app)))),
        ("users", users::router().with_state(platform())),
        ("usage_metrics", usage_metrics::router().with_state(platform())),
    ]
}

/// Returns the paths of each feature with the name of its module.
pub fn paths(app: &App) -> Vec<(&'static str, Vec<String>)> {
    let paths = |router: OpenApiRouter| router.into_openapi().paths.paths.into_keys().collect();
    routers(app).into_iter().map(|(module, router)| (module, paths(router))).collect()
}

/// Merges the routers of all features, and completes the OpenAPI document.
fn merge_routers(app: &App) -> (Router, OpenApi) {
    let merged = routers(app).into_iter().fold(OpenApiRouter::new(), |merged, (_, router)| merged.merge(router));
    let (router, api) = merged.split_for_parts();
    (router, openapi::complete_document(api))
}

/// Returns the OpenAPI document.
pub fn openapi_document(app: &App) -> OpenApi {
    merge_routers(app).1
}

/// Builds the router of the whole server: all routes with their middleware.
///
/// # Errors
/// Returns an error if the OpenAPI document cannot be serialized.
pub fn router(app: &App) -> anyhow::Result<Router> {
    let (features, api) = merge_routers(app);
    let document = Arc::new(ApiDocument::new(&api)?);
    let access_control = AccessControl {
        authenticator: app.authenticator.clone(),
        rules: &ACCESS_RULES,
        document: Arc::clone(&document),
    };
    let documentation = Router::new()
        .route("/openapi.json", get(openapi::serve_document))
        .route("/swagger", get(openapi::redirect_to_swagger))
        .route("/swagger/doc.json", get(openapi::serve_document))
        .route("/swagger/{*file}", get(openapi::serve_swagger_ui))
        .with_state(document);
    let router = features
        .merge(documentation)
        .fallback(route_not_found)
        .method_not_allowed_fallback(route_not_found)
        .layer(from_fn_with_state(Arc::new(access_control), access::authenticate_request));
    let router = match host::AllowedHosts::from_config(&app.config) {
        Some(hosts) => router.layer(from_fn_with_state(hosts, host::check_host)),
        None => router,
    };
    Ok(router
        .layer(from_fn(middleware::limit_headers))
        .layer(CatchPanicLayer::custom(middleware::handle_panic))
        .layer(from_fn_with_state(app.request_context.clone(), middleware::limit_time_and_memory))
        .layer(from_fn_with_state(app.process.clone(), middleware::drain_rejected_body))
        .layer(from_fn_with_state(Arc::clone(&app.http_metrics), middleware::record_telemetry))
        .layer(from_fn_with_state(app.process.clone(), middleware::run_writes_to_completion)))
}

/// Returns the registry of all job kinds, each with its context.
pub fn job_registry(app: &App) -> JobRegistry {
    JobRegistry::default()
        .register::<SweepBlobs>(app.blobs.clone())
        .register::<Observe>(app.learn.clone())
        .register::<FinalizeSession>(app.learn.clone())
        .register::<Distill>(app.learn.clone())
        .register::<WriteLesson>(app.learn.clone())
        .register::<ConvertProject>(app.projects.clone())
}

/// Builds the runner for the job kinds of `registry`.
pub fn runner(app: &App, registry: JobRegistry) -> Arc<Runner> {
    Arc::new(Runner {
        db: app.db.clone(),
        queue: app.queue.clone(),
        registry,
        process: app.process.clone(),
        settings: app.config.jobs.clone(),
        max_model_jobs_per_project: app.config.model.max_project_requests,
        max_model_jobs: app.config.model.max_requests,
    })
}

/// How often expired sandboxes are ended.
const SANDBOX_EXPIRY_INTERVAL: Duration = Duration::from_secs(10);

/// Returns the periodic tasks.
pub fn periodic_tasks(app: &App, runner: &Arc<Runner>) -> Vec<PeriodicTask> {
    let (settings, hour) = (&app.config.jobs, Duration::from_hours(1));
    vec![
        PeriodicTask::new("reclaim_expired_jobs", settings.lease / 3, runner, periodic::reclaim_expired),
        PeriodicTask::new("purge_failed_jobs", hour, &app.db, periodic::purge_failed),
        PeriodicTask::new("purge_model_calls", hour, &app.db, llm::usage::purge_old_calls),
        PeriodicTask::new("purge_idempotency_records", hour, &app.db, idempotency::store::purge_expired),
        PeriodicTask::new("purge_rotated_keys", hour, &app.projects, projects::keys::purge_rotated_keys),
        PeriodicTask::new(
            "enqueue_missed_observations",
            Duration::from_mins(1),
            &app.learn,
            learn::observe::enqueue_missed,
        ),
        PeriodicTask::new(
            "resume_jobs_awaiting_model",
            Duration::from_mins(1),
            &app.learn,
            learn::resume_jobs_awaiting_model,
        ),
        PeriodicTask::new(
            "end_expired_sandboxes",
            SANDBOX_EXPIRY_INTERVAL,
            &app.sandboxes,
            sandboxes::expiry::end_expired,
        ),
        PeriodicTask::new("sweep_blobs", settings.sweep_interval, &app.blobs, sweep::enqueue_sweep),
    ]
}

/// Returns the handlers of Postgres notifications.
pub fn notification_handlers(app: &App) -> Vec<Arc<dyn NotificationHandler>> {
    vec![Arc::clone(app.db.job_waker()) as Arc<dyn NotificationHandler>, Arc::new(app.authenticator.clone())]
}
