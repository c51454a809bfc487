//! Learning spaces: what gathers skills, and says which sessions are learned into them.
//!
//! [`api`] has the routes of spaces, [`skills`] those of the skills in one, [`sessions`] those of the sessions that one learns;
//! [`defaults`] are the skills that each begins with, [`store`] is the SQL. The learning itself is in `learn`.

pub mod api;
pub mod defaults;
pub mod progress;
pub mod sessions;
pub mod skills;
pub mod store;

use serde::Serialize;
use serde_json::{Map, Value};
use sqlx::types::Json;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::db::page::impl_paged;
use crate::error::Error;
use crate::ids::{SessionId, SkillId, SpaceId, SpaceSessionId, SpaceSkillId, UserId};
use crate::platform::Platform;
use crate::text_enum::text_enum;
use crate::time::Timestamp;

pub fn router() -> OpenApiRouter<Platform> {
    OpenApiRouter::new()
        .routes(routes!(api::create_space, api::list_spaces))
        .routes(routes!(api::get_space, api::update_space, api::delete_space))
        .routes(routes!(skills::include_skill, skills::list_space_skills))
        .routes(routes!(skills::exclude_skill))
        .routes(routes!(sessions::learn_session))
        .routes(routes!(sessions::list_space_sessions))
        .routes(routes!(sessions::get_space_session))
}

pub const NOT_FOUND: Error = Error::NotFound("learning space not found");

/// A learning space.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Space {
    pub id: SpaceId,
    pub user_id: Option<UserId>,
    /// What the client keeps with it.
    #[schema(value_type = Option<Object>)]
    pub meta: Option<Json<Map<String, Value>>>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl_paged!(Space);

/// A skill in a learning space.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct SpaceSkill {
    pub id: SpaceSkillId,
    pub learning_space_id: SpaceId,
    pub skill_id: SkillId,
    pub created_at: Timestamp,
}

text_enum! {
    /// How far learning from a session is. `completed` and `failed` are final.
    pub enum LearningStatus {
        Pending = "pending",
        Distilling = "distilling",
        Queued = "queued",
        SkillWriting = "skill_writing",
        Completed = "completed",
        Failed = "failed",
    }
}

/// A session that a learning space learns.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct SpaceSession {
    pub id: SpaceSessionId,
    pub learning_space_id: SpaceId,
    pub session_id: SessionId,
    pub status: LearningStatus,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}
