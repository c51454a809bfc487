//! SQL of learning spaces.

use std::collections::HashMap;

use serde_json::{Map, Value};
use sqlx::PgConnection;
use sqlx::types::Json;

use super::{LearningSpace, LearningSpaceSessionRow, LearningSpaceSkill, LearningStatus};
use crate::db::page::{PageRequest, fetch_page};
use crate::ids::{
    LearningSpaceId, LearningSpaceSessionId, LearningSpaceSkillId, ProjectId, SessionId, SkillId, UserId,
};
use crate::sessions::lock::LockedSession;
use crate::time::Timestamp;

/// Inserts a learning space.
pub async fn insert(
    conn: &mut PgConnection,
    project: ProjectId,
    user: Option<UserId>,
    meta: Option<&Map<String, Value>>,
) -> sqlx::Result<LearningSpace> {
    sqlx::query_as!(
        LearningSpace,
        r#"insert into learning_spaces (id, project_id, user_id, meta) values ($1, $2, $3, $4)
           returning id as "id: LearningSpaceId", user_id as "user_id: UserId",
                     meta as "meta: Json<Map<String, Value>>",
                     created_at as "created_at: Timestamp", updated_at as "updated_at: Timestamp""#,
        LearningSpaceId::new() as _,
        project as _,
        user as _,
        meta.map(Json) as _,
    )
    .fetch_one(conn)
    .await
}

/// Returns a learning space; `None` if the project has no such space.
pub async fn get(
    conn: &mut PgConnection,
    project: ProjectId,
    space: LearningSpaceId,
) -> sqlx::Result<Option<LearningSpace>> {
    sqlx::query_as!(
        LearningSpace,
        r#"select id as "id: LearningSpaceId", user_id as "user_id: UserId", meta as "meta: Json<Map<String, Value>>",
                  created_at as "created_at: Timestamp", updated_at as "updated_at: Timestamp"
           from learning_spaces where id = $1 and project_id = $2"#,
        space as _,
        project as _,
    )
    .fetch_optional(conn)
    .await
}

/// The filter of a list of learning spaces.
pub struct LearningSpaceFilter<'a> {
    /// The identifier of the owning user.
    pub user: Option<&'a str>,
    /// An object that the space's metadata must contain.
    pub meta: Option<Map<String, Value>>,
}

macro_rules! select_spaces {
    ($($rest:literal)+; $($parameter:expr),* $(,)?) => {
        sqlx::query_as!(
            LearningSpace,
            r#"select t.id as "id: LearningSpaceId", t.user_id as "user_id: UserId",
                      t.meta as "meta: Json<Map<String, Value>>",
                      t.created_at as "created_at: Timestamp", t.updated_at as "updated_at: Timestamp"
               from "# $(+ $rest)+,
            $($parameter),*
        )
    };
}

/// Returns a page of the learning spaces of a project.
pub async fn list(
    conn: &mut PgConnection,
    project: ProjectId,
    filter: LearningSpaceFilter<'_>,
    page: &PageRequest,
) -> sqlx::Result<Vec<LearningSpace>> {
    fetch_page!(
        select_spaces!(
            "learning_spaces t
             where t.project_id = $4
               and ($5::text is null
                    or t.user_id = (select u.id from users u where u.project_id = $4 and u.identifier = $5))
               and ($6::jsonb is null or t.meta @> $6)";
            project as _,
            filter.user,
            filter.meta.map(Json) as _,
        ),
        conn,
        page
    )
}

/// Returns `true` if the project has this learning space.
pub async fn exists(conn: &mut PgConnection, project: ProjectId, space: LearningSpaceId) -> sqlx::Result<bool> {
    let row = sqlx::query_scalar!(
        "select 1 as one from learning_spaces where id = $1 and project_id = $2",
        space as _,
        project as _,
    );
    Ok(row.fetch_optional(conn).await?.is_some())
}

/// Locks a learning space against deletion until the transaction ends. Returns `false` if the project has no such space.
pub async fn lock_for_share(conn: &mut PgConnection, project: ProjectId, space: LearningSpaceId) -> sqlx::Result<bool> {
    let row = sqlx::query_scalar!(
        "select 1 as one from learning_spaces where id = $1 and project_id = $2 for key share",
        space as _,
        project as _,
    );
    Ok(row.fetch_optional(conn).await?.is_some())
}

/// Locks a learning space and returns its metadata, an empty object if it has none; `None` if the project has no such space.
pub async fn lock_meta(
    conn: &mut PgConnection,
    project: ProjectId,
    space: LearningSpaceId,
) -> sqlx::Result<Option<Map<String, Value>>> {
    let row = sqlx::query_scalar!(
        r#"select meta as "meta: Json<Map<String, Value>>"
           from learning_spaces where id = $1 and project_id = $2 for no key update"#,
        space as _,
        project as _,
    );
    Ok(row.fetch_optional(conn).await?.map(|meta| meta.map(|meta| meta.0).unwrap_or_default()))
}

/// Replaces the metadata of a learning space, which the caller must have locked with [`lock_meta`].
pub async fn set_meta(
    conn: &mut PgConnection,
    project: ProjectId,
    space: LearningSpaceId,
    meta: &Map<String, Value>,
) -> sqlx::Result<LearningSpace> {
    sqlx::query_as!(
        LearningSpace,
        r#"update learning_spaces set meta = $3, updated_at = now() where id = $1 and project_id = $2
           returning id as "id: LearningSpaceId", user_id as "user_id: UserId",
                     meta as "meta: Json<Map<String, Value>>",
                     created_at as "created_at: Timestamp", updated_at as "updated_at: Timestamp""#,
        space as _,
        project as _,
        Json(meta) as _,
    )
    .fetch_one(conn)
    .await
}

/// Deletes a learning space, but not its skills and sessions. Returns `false` if the project has no such space.
pub async fn delete(conn: &mut PgConnection, project: ProjectId, space: LearningSpaceId) -> sqlx::Result<bool> {
    let delete =
        sqlx::query!("delete from learning_spaces where id = $1 and project_id = $2", space as _, project as _);
    Ok(delete.execute(conn).await?.rows_affected() == 1)
}

/// Adds a skill to a learning space. Returns `None` if the learning space already contains the skill or another one with the
/// same name. The caller must have locked the learning space and the skill, and pass the skill's name.
pub async fn add_skill(
    conn: &mut PgConnection,
    space: LearningSpaceId,
    skill: SkillId,
    name: &str,
) -> sqlx::Result<Option<LearningSpaceSkill>> {
    sqlx::query_as!(
        LearningSpaceSkill,
        r#"insert into learning_space_skills (id, learning_space_id, skill_id, skill_name) values ($1, $2, $3, $4)
           on conflict do nothing
           returning id as "id: LearningSpaceSkillId", learning_space_id as "learning_space_id: LearningSpaceId",
                     skill_id as "skill_id: SkillId", created_at as "created_at: Timestamp""#,
        LearningSpaceSkillId::new() as _,
        space as _,
        skill as _,
        name,
    )
    .fetch_optional(conn)
    .await
}

/// Returns `true` if a skill is in a learning space.
pub async fn has_skill(conn: &mut PgConnection, space: LearningSpaceId, skill: SkillId) -> sqlx::Result<bool> {
    let row = sqlx::query_scalar!(
        "select 1 as one from learning_space_skills where learning_space_id = $1 and skill_id = $2",
        space as _,
        skill as _,
    );
    Ok(row.fetch_optional(conn).await?.is_some())
}

/// Removes a skill from a learning space.
pub async fn remove_skill(conn: &mut PgConnection, space: LearningSpaceId, skill: SkillId) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from learning_space_skills where learning_space_id = $1 and skill_id = $2",
        space as _,
        skill as _,
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Adds a session to a learning space. Returns `None` if this or another learning space already learns from the session. The
/// caller must have locked the learning space.
pub async fn add_session(
    session: &mut LockedSession<'_>,
    space: LearningSpaceId,
) -> sqlx::Result<Option<LearningSpaceSessionRow>> {
    sqlx::query_as!(
        LearningSpaceSessionRow,
        r#"insert into learning_space_sessions (id, learning_space_id, session_id) values ($1, $2, $3)
           on conflict (session_id) do nothing
           returning id as "id: LearningSpaceSessionId", learning_space_id as "learning_space_id: LearningSpaceId",
                     session_id as "session_id: SessionId", status as "status: LearningStatus",
                     created_at as "created_at: Timestamp", updated_at as "updated_at: Timestamp""#,
        LearningSpaceSessionId::new() as _,
        space as _,
        session.id as _,
    )
    .fetch_optional(&mut ***session)
    .await
}

/// Returns a session of a learning space with its learning status; `None` if the session is not in the learning space.
pub async fn get_session(
    conn: &mut PgConnection,
    space: LearningSpaceId,
    session: SessionId,
) -> sqlx::Result<Option<LearningSpaceSessionRow>> {
    sqlx::query_as!(
        LearningSpaceSessionRow,
        r#"select id as "id: LearningSpaceSessionId", learning_space_id as "learning_space_id: LearningSpaceId",
                  session_id as "session_id: SessionId", status as "status: LearningStatus",
                  created_at as "created_at: Timestamp", updated_at as "updated_at: Timestamp"
           from learning_space_sessions where learning_space_id = $1 and session_id = $2"#,
        space as _,
        session as _,
    )
    .fetch_optional(conn)
    .await
}

/// Lists the sessions of a learning space, oldest first.
pub async fn list_sessions(
    conn: &mut PgConnection,
    space: LearningSpaceId,
    limit: usize,
) -> sqlx::Result<Vec<LearningSpaceSessionRow>> {
    sqlx::query_as!(
        LearningSpaceSessionRow,
        r#"select id as "id: LearningSpaceSessionId", learning_space_id as "learning_space_id: LearningSpaceId",
                  session_id as "session_id: SessionId", status as "status: LearningStatus",
                  created_at as "created_at: Timestamp", updated_at as "updated_at: Timestamp"
           from learning_space_sessions where learning_space_id = $1 order by created_at, id limit $2"#,
        space as _,
        i64::try_from(limit).unwrap_or(i64::MAX),
    )
    .fetch_all(conn)
    .await
}

/// The facts that determine the next step in the learning of a session that is not finished.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "the facts are independent")]
pub struct LearningProgress {
    pub session: SessionId,
    pub status: LearningStatus,
    pub has_pending_messages: bool,
    /// `true` if the observation of a message has failed, or was omitted because the project was over its quota.
    pub has_failed_messages: bool,
    pub has_open_tasks: bool,
    pub has_lessons: bool,
    /// `true` if a lesson of the session comes from a task, and does not consist of preferences.
    pub has_task_lessons: bool,
    /// `true` if a lesson of the session is being distilled or written, or waits for it.
    pub has_open_lessons: bool,
    pub has_failed_lessons: bool,
}

/// Returns the learning progress of a session; `None` if its learning is finished or no learning space learns from it.
pub async fn get_progress(conn: &mut PgConnection, session: SessionId) -> sqlx::Result<Option<LearningProgress>> {
    sqlx::query_as!(
        LearningProgress,
        r#"select session_id as "session!: SessionId", status as "status!: LearningStatus",
                  has_pending_messages as "has_pending_messages!", has_failed_messages as "has_failed_messages!",
                  has_open_tasks as "has_open_tasks!", has_lessons as "has_lessons!",
                  has_task_lessons as "has_task_lessons!", has_open_lessons as "has_open_lessons!",
                  has_failed_lessons as "has_failed_lessons!"
           from learning_progress where session_id = $1"#,
        session as _
    )
    .fetch_optional(conn)
    .await
}

/// Lists the learning progress of a learning space's sessions whose learning is not finished, oldest first.
pub async fn list_progress(conn: &mut PgConnection, space: LearningSpaceId) -> sqlx::Result<Vec<LearningProgress>> {
    sqlx::query_as!(
        LearningProgress,
        r#"select session_id as "session!: SessionId", status as "status!: LearningStatus",
                  has_pending_messages as "has_pending_messages!", has_failed_messages as "has_failed_messages!",
                  has_open_tasks as "has_open_tasks!", has_lessons as "has_lessons!",
                  has_task_lessons as "has_task_lessons!", has_open_lessons as "has_open_lessons!",
                  has_failed_lessons as "has_failed_lessons!"
           from learning_progress where learning_space_id = $1 order by created_at, id"#,
        space as _
    )
    .fetch_all(conn)
    .await
}

/// Returns the reason why the learning of a session waits, has failed or has ended early: the last error of the job for which it
/// waits, or else why a lesson or the observation has failed, or why the model has ended its work on a lesson.
pub async fn find_reason(conn: &mut PgConnection, session: SessionId) -> sqlx::Result<Option<String>> {
    let reason = sqlx::query_scalar!(
        r#"select reason as "reason!" from learning_reasons where session_id = $1 order by priority, updated_at desc limit 1"#,
        session as _
    );
    reason.fetch_optional(conn).await
}

/// Returns the reasons as [`find_reason`] does, for all sessions of a learning space.
pub async fn list_reasons(conn: &mut PgConnection, space: LearningSpaceId) -> sqlx::Result<HashMap<SessionId, String>> {
    let reasons = sqlx::query!(
        r#"select distinct on (session_id) session_id as "session!: SessionId", reason as "reason!" from learning_reasons
           where learning_space_id = $1 order by session_id, priority, updated_at desc"#,
        space as _
    );
    Ok(reasons.fetch_all(conn).await?.into_iter().map(|row| (row.session, row.reason)).collect())
}

/// Advances the learning status of a session. Has no effect if the current status is the same or a later one, because the status
/// never goes back.
pub async fn advance_session_status(session: &mut LockedSession<'_>, status: LearningStatus) -> sqlx::Result<()> {
    let earlier: Vec<String> =
        LearningStatus::VALUES.iter().take(status.rank()).map(|status| (*status).to_owned()).collect();
    sqlx::query!(
        "update learning_space_sessions set status = $2, updated_at = now() where session_id = $1 and status = any($3)",
        session.id as _,
        status as _,
        &earlier
    )
    .execute(&mut ***session)
    .await
    .map(drop)
}
