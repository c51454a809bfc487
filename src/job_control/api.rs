//! HTTP handlers that list a project's background jobs and retry failed ones.

use axum::extract::State;
use serde::{Deserialize, Serialize};

use super::JobControl;
use crate::auth::Caller;
use crate::db::Tx;
use crate::error::{Error, Result};
use crate::http::extract::{Path, Query};
use crate::http::idempotency::Idempotency;
use crate::http::page::{Page, PageParams};
use crate::http::response::{self, CommandResult, Data, PageBody, QueryResult};
use crate::ids::{JobId, LearningSpaceId, SessionId};
use crate::jobs::list::{self, ListedJob};
use crate::jobs::{ErrorClass, Job, JobState, WaitReason};
use crate::learn::jobs::Observe;
use crate::messages::{ProcessStatus, observing};
use crate::sessions::lock::LockedSession;
use crate::text_enum::text_enum;
use crate::time::Timestamp;
use crate::{lessons, sessions};

const JOB_NOT_FOUND: Error = Error::NotFound("job not found");

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListJobsParams {
    /// Only the jobs that work for this session.
    #[serde(default)]
    #[param(value_type = Option<SessionId>)]
    session_id: Option<String>,
}

impl ListJobsParams {
    fn session(self) -> Result<Option<SessionId>> {
        let id = self.session_id.filter(|id| !id.is_empty());
        id.map(|id| id.parse().map_err(|reason| Error::invalid_field("session_id", reason))).transpose()
    }
}

text_enum! {
    /// The condition that a ready job waits for: a request with the project's key (`key`), or a server with a language model
    /// (`model`).
    pub enum JobWaitReason {
        Key = "key",
        Model = "model",
    }
}

/// The error of the last attempt of a job.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct JobErrorBody {
    class: ErrorClass,
    message: String,
}

/// A background job of a project. Completed jobs are not listed, and failed ones are kept for 14 days.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct JobBody {
    id: JobId,
    /// The kind of work, such as `observe`.
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_id: Option<SessionId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    learning_space_id: Option<LearningSpaceId>,
    state: JobState,
    /// The condition that a ready job waits for, in addition to `run_at`. Null if there is none: the job then waits only for
    /// `run_at` and for a free worker.
    wait_reason: Option<JobWaitReason>,
    /// Number of attempts so far, including the running one.
    attempt: i32,
    /// After this number of attempts the job fails. 0 if this server cannot run the job.
    max_attempts: i32,
    /// The time of the next attempt, or of the last one if the job is not ready.
    run_at: Timestamp,
    /// The end of the lease of a running job. The process that runs the job renews the lease in time. If that process has died,
    /// the job is requeued after this time. Absent if the job is not running.
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_until: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<JobErrorBody>,
    created_at: Timestamp,
}

impl JobControl {
    fn to_body(&self, job: ListedJob) -> JobBody {
        let class = job.error_class.unwrap_or(ErrorClass::Internal);
        JobBody {
            id: job.id,
            max_attempts: self.registry.max_attempts(&job.kind).unwrap_or_default(),
            kind: job.kind,
            session_id: job.session.and_then(|id| id.parse().ok()),
            learning_space_id: job.learning_space.and_then(|id| id.parse().ok()),
            state: job.state,
            wait_reason: match job.wait_reason {
                Some(WaitReason::Key) => Some(JobWaitReason::Key),
                Some(WaitReason::Model) => Some(JobWaitReason::Model),
                Some(WaitReason::TimeSlice) | None => None,
            },
            attempt: job.attempt,
            run_at: job.run_at,
            lease_until: job.lease_expires_at.map(Timestamp),
            error: job.last_error.map(|message| JobErrorBody { class, message }),
            created_at: job.created_at,
        }
    }
}

/// List the project's background jobs
///
/// Returns the jobs that are ready, running or have failed, oldest first.
#[utoipa::path(get, path = "/api/v1/jobs", tag = "jobs", params(ListJobsParams, PageParams))]
pub async fn list_jobs(
    State(ctx): State<JobControl>,
    caller: Caller,
    Query(filter): Query<ListJobsParams>,
    Query(page): Query<PageParams>,
) -> QueryResult<PageBody<JobBody>> {
    let (session, page) = (filter.session()?, page.parse(20, 200)?);
    let mut conn = ctx.db.acquire().await?;
    let jobs = match session {
        Some(session) => list::list_of_session(&mut conn, caller.project, session, &page).await?,
        None => list::list(&mut conn, caller.project, &page).await?,
    };
    let Page { items, next_cursor, has_more, cursors } = Page::new(jobs, &page);
    let items = items.into_iter().map(|job| ctx.to_body(job)).collect();
    Ok(response::page(&Page { items, next_cursor, has_more, cursors }))
}

/// Retry a failed background job
///
/// Makes the job ready, with no attempt counted. Messages whose observation has failed are observed again, and a failed lesson is
/// distilled or written again. If a duplicate of the job is ready, the failed job is deleted, and the response contains the
/// duplicate. On an encrypted project, the job gets the project's key from the request.
#[utoipa::path(post, path = "/api/v1/jobs/{job_id}/retry", tag = "jobs", params(("job_id" = JobId, Path)))]
pub async fn retry_job(
    State(ctx): State<JobControl>,
    caller: Caller,
    idempotency: Idempotency,
    Path(job): Path<JobId>,
) -> CommandResult<Data<JobBody>> {
    let mut tx = idempotency.begin().await?;
    let found = list::get(&mut tx, caller.project, job).await?.ok_or(JOB_NOT_FOUND)?;
    caller.encryption.ensure_can_store()?;
    if found.state != JobState::Failed {
        let reason = format!("only a failed job can be retried; the state of this job is {}", found.state);
        return Err(Error::Conflict(reason.into()).into());
    }
    if let Some(lesson) = found.lesson.and_then(|id| id.parse().ok()) {
        lessons::store::reopen_failed(&mut tx, caller.project, lesson).await?;
    }
    if let Some(session) = found.session.and_then(|id| id.parse().ok())
        && found.kind == Observe::KIND
    {
        reset_failed_messages(&mut tx, &caller, session).await?;
    }
    let encrypted_kek = ctx.queue.wrap_kek_if_encrypted(&caller.encryption).map_err(Error::internal)?;
    // Another request may have retried the job in the meantime.
    let retried = list::retry(&mut tx, caller.project, job, encrypted_kek.as_deref()).await?;
    let retried = retried.ok_or(Error::Conflict("the job is being retried by another request".into()))?;
    tx.wake_on_commit();
    let retried = list::get(&mut tx, caller.project, retried).await?.ok_or(JOB_NOT_FOUND)?;
    tx.commit(response::ok(ctx.to_body(retried))).await
}

/// Makes the messages of a session pending again whose observation has failed, because the job observes only pending ones.
async fn reset_failed_messages(tx: &mut Tx, caller: &Caller, session: SessionId) -> Result<()> {
    if let Some(mut session) = LockedSession::lock(tx, caller.project, session).await? {
        observing::set_status(&mut session, None, ProcessStatus::Failed, ProcessStatus::Pending).await?;
        sessions::store::set_has_observe_job(&mut session, true).await?;
    }
    Ok(())
}
