//! Projects, the tenants.
//!
//! Modules with routes: [`api`] creates and deletes projects, [`configs`] returns and changes the settings of a project,
//! [`keys`] rotates and resets its key, [`conversion`] encrypts and decrypts its content, and [`usage`] reports its usage.
//!
//! [`default_project`] creates the default project at startup. [`pepper`] rejects a pepper other than the one with which the
//! database was set up. [`store`] has the SQL.

pub mod api;
pub mod configs;
pub mod conversion;
pub mod default_project;
pub mod keys;
pub mod pepper;
pub mod store;
pub mod usage;

use std::sync::Arc;

use tokio::sync::Notify;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::keys::Authenticator;
use crate::encryption::conversion::EncryptableContent;
use crate::platform::{Platform, platform_context};

platform_context! {
    /// The context of the feature `projects`.
    Projects, ProjectsInner
}

pub struct ProjectsInner {
    platform: Platform,
    authenticator: Authenticator,
    /// The kinds of content that a conversion encrypts or decrypts.
    content_kinds: Vec<Arc<dyn EncryptableContent>>,
    /// Signaled when a conversion has finished.
    conversion_finished: Notify,
}

impl Projects {
    pub fn new(
        platform: Platform,
        authenticator: Authenticator,
        content_kinds: Vec<Arc<dyn EncryptableContent>>,
    ) -> Self {
        let conversion_finished = Notify::new();
        Self(Arc::new(ProjectsInner { platform, authenticator, content_kinds, conversion_finished }))
    }
}

pub fn router() -> OpenApiRouter<Projects> {
    OpenApiRouter::new()
        .routes(routes!(api::create_project))
        .routes(routes!(api::delete_project))
        .routes(routes!(conversion::api::encrypt_project))
        .routes(routes!(conversion::api::decrypt_project))
        .routes(routes!(conversion::api::get_project_encryption))
        .routes(routes!(conversion::api::encrypt_project_as_admin))
        .routes(routes!(conversion::api::decrypt_project_as_admin))
        .routes(routes!(keys::rotate_key))
        .routes(routes!(keys::reset_key))
        .routes(routes!(usage::api::get_project_statistics))
        .routes(routes!(usage::api::get_project_usages))
        .routes(routes!(usage::models::get_model_usage))
        .routes(routes!(configs::get_project_configs, configs::update_project_configs))
}
