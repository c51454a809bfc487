//! Every feature: its context, routes, job kinds, periodic tasks and notification handlers, and what stands around the routes. This is
//! the only file that knows all of them.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::auth::gate::{self, AccessRules, Gate};
use crate::auth::keys::Authenticator;
use crate::blob::sweep::{self, SweepBlobs};
use crate::db::notify::NotificationHandler;
use crate::disks::Disks;
use crate::encryption::reencrypt::Reencrypt;
use crate::http::idempotency;
use crate::http::openapi::{self, ApiDocument};
use crate::http::{host, middleware, not_found};
use crate::jobs::JobRegistry;
use crate::jobs::periodic::{self, PeriodicTask};
use crate::jobs::runner::Runner;
use crate::learn::queue::{Distill, FinalizeSession, Observe};
use crate::learn::{self, Learn};
use crate::llm::{self, Llm};
use crate::messages::convert::EncryptedMessages;
use crate::messages::{self, Messages};
use crate::platform::Platform;
use crate::projects::conversion::convert::Convert;
use crate::projects::{self, Projects};
use crate::{disks, learning_spaces, material, sessions, skills, status, tasks, usage_metrics, users};

/// In which folder of `src` a route is: the longest prefix counts. A test compares this list with the routers.
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
];

/// Which routes need another token than a project's key, or none.
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

/// The platform and the contexts of all features; cheap to clone.
#[derive(Clone)]
pub struct App {
    pub platform: Platform,
    pub authenticator: Authenticator,
    pub messages: Messages,
    pub disks: Disks,
    pub learn: Learn,
    pub projects: Projects,
}

impl App {
    /// Uses the model that the settings name.
    pub fn new(platform: Platform) -> Self {
        let llm = llm::from_config(&platform.config.learning);
        Self::with_llm(platform, llm)
    }

    /// Uses this model, whatever the settings name.
    pub fn with_llm(platform: Platform, llm: Arc<dyn Llm>) -> Self {
        let authenticator = Authenticator::new(platform.clone());
        Self {
            messages: Messages::new(platform.clone()),
            disks: Disks::new(platform.clone()),
            learn: Learn::new(platform.clone(), llm),
            projects: Projects::new(platform.clone(), authenticator.clone(), encrypted_content(&platform)),
            authenticator,
            platform,
        }
    }
}

impl Deref for App {
    type Target = Platform;

    fn deref(&self) -> &Platform {
        &self.platform
    }
}

/// Returns every kind of content that is encrypted in encrypted projects.
fn encrypted_content(platform: &Platform) -> Vec<Arc<dyn Reencrypt>> {
    vec![Arc::new(EncryptedMessages { db: platform.db.clone() }), Arc::new(platform.blobs.clone())]
}

/// Returns the routes of each feature, by the folder they are in.
fn routers(app: &App) -> Vec<(&'static str, OpenApiRouter)> {
    let platform = || app.platform.clone();
    vec![
        ("status", status::router().with_state(platform())),
        ("material", material::router().with_state(platform())),
        ("projects", projects::router().with_state(app.projects.clone())),
        ("sessions", sessions::router().merge(sessions::copy::router()).with_state(platform())),
        ("messages", messages::router().with_state(app.messages.clone())),
        ("tasks", tasks::router().with_state(platform())),
        ("learn", learn::router().with_state(app.learn.clone())),
        ("disks", disks::router().with_state(app.disks.clone())),
        ("skills", skills::router().with_state(platform())),
        ("learning_spaces", learning_spaces::router().with_state(platform())),
        ("users", users::router().with_state(platform())),
        ("usage_metrics", usage_metrics::router().with_state(platform())),
    ]
}

/// Returns the paths of each feature, by the folder they are in.
pub fn paths(app: &App) -> Vec<(&'static str, Vec<String>)> {
    let paths = |router: OpenApiRouter| router.into_openapi().paths.paths.into_keys().collect();
    routers(app).into_iter().map(|(folder, router)| (folder, paths(router))).collect()
}

fn routes(app: &App) -> (Router, OpenApi) {
    let merged = routers(app).into_iter().fold(OpenApiRouter::new(), |merged, (_, router)| merged.merge(router));
    let (router, api) = merged.split_for_parts();
    (router, openapi::complete(api))
}

/// Returns the API's description.
pub fn document(app: &App) -> OpenApi {
    routes(app).1
}

/// Builds the whole HTTP interface: the routes with the layers around them.
///
/// # Errors
/// The API's description cannot be serialized, which a test excludes.
pub fn router(app: &App) -> anyhow::Result<Router> {
    let (features, api) = routes(app);
    let document = Arc::new(ApiDocument::new(&api)?);
    let gate = Gate { authenticator: app.authenticator.clone(), rules: &ACCESS_RULES, document: Arc::clone(&document) };
    let documentation = Router::new()
        .route("/openapi.json", get(openapi::serve))
        .route("/swagger", get(openapi::to_swagger))
        .route("/swagger/doc.json", get(openapi::serve))
        .route("/swagger/{*file}", get(openapi::swagger))
        .with_state(document);
    let router = features
        .merge(documentation)
        .fallback(not_found)
        .method_not_allowed_fallback(not_found)
        .layer(from_fn_with_state(Arc::new(gate), gate::require_key));
    let router = match host::AllowedHosts::of(&app.config) {
        Some(hosts) => router.layer(from_fn_with_state(hosts, host::check_host)),
        None => router,
    };
    Ok(router
        .layer(from_fn(middleware::head_limit))
        .layer(CatchPanicLayer::custom(middleware::panicked))
        .layer(from_fn_with_state(app.request_context.clone(), middleware::bound))
        .layer(from_fn_with_state(app.process.clone(), middleware::drain))
        .layer(from_fn_with_state(Arc::clone(&app.http_metrics), middleware::observe))
        .layer(from_fn_with_state(app.process.clone(), middleware::detach)))
}

/// Returns every kind of job that this program can run, with its context.
pub fn job_registry(app: &App) -> JobRegistry {
    JobRegistry::default()
        .register::<SweepBlobs>(app.blobs.clone())
        .register::<Observe>(app.learn.clone())
        .register::<FinalizeSession>(app.learn.clone())
        .register::<Distill>(app.learn.clone())
        .register::<Convert>(app.projects.clone())
}

/// Builds the runner of these kinds of jobs.
pub fn runner(app: &App, registry: JobRegistry) -> Arc<Runner> {
    Arc::new(Runner {
        db: app.db.clone(),
        queue: app.queue.clone(),
        registry,
        process: app.process.clone(),
        settings: app.config.jobs.clone(),
    })
}

/// Returns everything that is done at intervals.
pub fn periodic_tasks(app: &App, runner: &Arc<Runner>) -> Vec<PeriodicTask> {
    let (settings, hour) = (&app.config.jobs, Duration::from_hours(1));
    vec![
        PeriodicTask::new("reclaim_expired_jobs", settings.lease / 3, runner, periodic::reclaim_expired),
        PeriodicTask::new("purge_failed_jobs", hour, &app.db, periodic::purge_failed),
        PeriodicTask::new("purge_idempotency_records", hour, &app.db, idempotency::store::purge_expired),
        PeriodicTask::new("purge_rotated_keys", hour, &app.projects, projects::keys::purge_rotated),
        PeriodicTask::new(
            "enqueue_missed_observations",
            Duration::from_mins(1),
            &app.learn,
            learn::observe::enqueue_missed,
        ),
        PeriodicTask::new("sweep_blobs", settings.sweep_every, &app.blobs, sweep::enqueue_sweep),
    ]
}

/// Returns who is notified by the database.
pub fn notification_handlers(app: &App) -> Vec<Arc<dyn NotificationHandler>> {
    vec![Arc::clone(app.db.job_waker()) as Arc<dyn NotificationHandler>, Arc::new(app.authenticator.clone())]
}
