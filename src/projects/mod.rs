//! Projects: the tenants. [`api`] is the operator's side, [`configs`] what a project configures itself, [`keys`] rotates and resets its
//! key, [`conversion`] encrypts and decrypts its content, [`usages`] reports its usage, [`root`] creates the default project at startup,
//! and [`pepper`] rejects a pepper other than the database's. [`store`] is the SQL, [`usage_store`] that of [`usages`].

pub mod api;
pub mod configs;
pub mod conversion;
pub mod keys;
pub mod pepper;
pub mod root;
pub mod store;
pub mod usage_store;
pub mod usages;

use std::sync::Arc;

use tokio::sync::Notify;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::keys::Authenticator;
use crate::encryption::reencrypt::Reencrypt;
use crate::platform::{Platform, platform_context};

platform_context! {
    /// The context of projects.
    Projects, ProjectsInner
}

pub struct ProjectsInner {
    platform: Platform,
    authenticator: Authenticator,
    /// Everything that a conversion has to encrypt or decrypt.
    encrypted_content: Vec<Arc<dyn Reencrypt>>,
    /// Notified whenever a conversion has finished.
    conversion_finished: Notify,
}

impl Projects {
    pub fn new(platform: Platform, authenticator: Authenticator, encrypted_content: Vec<Arc<dyn Reencrypt>>) -> Self {
        let conversion_finished = Notify::new();
        Self(Arc::new(ProjectsInner { platform, authenticator, encrypted_content, conversion_finished }))
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
        .routes(routes!(keys::replace_key))
        .routes(routes!(keys::reset_key))
        .routes(routes!(usages::get_project_statistics))
        .routes(routes!(usages::get_project_usages))
        .routes(routes!(configs::get_project_configs, configs::update_project_configs))
}
