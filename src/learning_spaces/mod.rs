//! Learning spaces: sets of skills, and of the sessions from which these skills are learned.
//!
//! [`api`] contains the routes of learning spaces, [`skills`] those of their skills, and [`sessions`] those of their sessions,
//! and [`changes`] the one that lists the changes of the skills. [`progress`] determines the learning status of sessions, and
//! [`defaults`] uploads the default skills. [`store`] and [`changes_store`] contain the SQL. The jobs that learn from sessions
//! are in `learn`.

pub mod api;
pub mod changes;
pub mod changes_store;
pub mod defaults;
pub mod progress;
pub mod sessions;
pub mod skills;
pub mod store;

use std::sync::Arc;

use axum::extract::FromRef;
use serde::Serialize;
use serde_json::{Map, Value};
use sqlx::types::Json;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::db::page::impl_paged;
use crate::error::Error;
use crate::ids::{LearningSpaceId, LearningSpaceSessionId, LearningSpaceSkillId, SessionId, SkillId, UserId};
use crate::llm::Llm;
use crate::platform::{Platform, platform_context};
use crate::text_enum::text_enum;
use crate::time::Timestamp;

platform_context! {
    /// The context of the routes of this module.
    LearningSpaces, LearningSpacesInner
}

/// The fields of a [`LearningSpaces`].
pub struct LearningSpacesInner {
    platform: Platform,
    llm: Arc<dyn Llm>,
}

impl LearningSpaces {
    pub fn new(platform: Platform, llm: Arc<dyn Llm>) -> Self {
        Self(Arc::new(LearningSpacesInner { platform, llm }))
    }
}

/// Provides the platform to the handlers that do not need the model.
impl FromRef<LearningSpaces> for Platform {
    fn from_ref(context: &LearningSpaces) -> Self {
        context.platform.clone()
    }
}

pub fn router() -> OpenApiRouter<LearningSpaces> {
    OpenApiRouter::new()
        .routes(routes!(api::create_space, api::list_spaces))
        .routes(routes!(api::get_space, api::update_space, api::delete_space))
        .routes(routes!(skills::include_skill, skills::list_space_skills))
        .routes(routes!(skills::exclude_skill))
        .routes(routes!(sessions::learn_session))
        .routes(routes!(sessions::list_space_sessions))
        .routes(routes!(sessions::get_space_session))
        .routes(routes!(changes::list_space_changes))
}

pub const LEARNING_SPACE_NOT_FOUND: Error = Error::NotFound("learning space not found");

/// A set of skills, and of the sessions from which these skills are learned.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct LearningSpace {
    pub id: LearningSpaceId,
    pub user_id: Option<UserId>,
    /// Client-supplied metadata.
    #[schema(value_type = Option<Object>)]
    pub meta: Option<Json<Map<String, Value>>>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl_paged!(LearningSpace);

/// A skill in a learning space.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct LearningSpaceSkill {
    pub id: LearningSpaceSkillId,
    pub learning_space_id: LearningSpaceId,
    pub skill_id: SkillId,
    pub created_at: Timestamp,
}

text_enum! {
    /// The learning status of a session. It never goes back. `pending`: no lesson is being distilled or written yet.
    /// `distilling`: a lesson is being distilled from a task. `queued`: a lesson waits until another lesson of the space is
    /// written. `skill_writing`: a lesson is being written to the skills, or is about to be. `completed` and `failed` are
    /// final.
    pub enum LearningStatus {
        Pending = "pending",
        Distilling = "distilling",
        Queued = "queued",
        SkillWriting = "skill_writing",
        Completed = "completed",
        Failed = "failed",
    }
}

impl LearningStatus {
    /// Returns `true` for a status that never changes.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed)
    }

    /// Returns the number of statuses that come before this one. The final ones have the same rank.
    pub fn rank(self) -> usize {
        match self {
            Self::Pending => 0,
            Self::Distilling => 1,
            Self::Queued => 2,
            Self::SkillWriting => 3,
            Self::Completed | Self::Failed => 4,
        }
    }
}

/// A session that a learning space learns from, with its learning status.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct LearningSpaceSession {
    pub id: LearningSpaceSessionId,
    pub learning_space_id: LearningSpaceId,
    pub session_id: SessionId,
    pub status: LearningStatus,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// The reason why the learning waits, for example for a language model or for the project's key, why it has failed, or why the
    /// model has ended its work on a lesson early. Absent if it does none of this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl LearningSpaceSession {
    fn new(row: LearningSpaceSessionRow, reason: Option<String>) -> Self {
        let LearningSpaceSessionRow { id, learning_space_id, session_id, status, created_at, updated_at } = row;
        Self { id, learning_space_id, session_id, status, created_at, updated_at, reason }
    }
}

/// The row of a session that a learning space learns from.
#[derive(Clone, Copy, Debug)]
pub struct LearningSpaceSessionRow {
    pub id: LearningSpaceSessionId,
    pub learning_space_id: LearningSpaceId,
    pub session_id: SessionId,
    pub status: LearningStatus,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}
