//! The SQL of a project's statistics and usage. Days are in UTC. The queries per day read only rows of the requested days,
//! except for [`tasks_per_session`] and [`storage_by_day`].

use chrono::NaiveDate;
use serde::Serialize;
use sqlx::PgConnection;

use crate::ids::ProjectId;
use crate::tasks::TaskStatus;

/// The number of entities of a project.
#[derive(Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Statistics {
    /// Number of tasks, without planning tasks.
    pub task_count: i64,
    pub skill_count: i64,
    pub session_count: i64,
}

/// The number of entities created on a day, or of bytes stored on it.
#[derive(Debug)]
pub struct DailyCount {
    pub day: NaiveDate,
    pub count: i64,
}

/// The mean of a number over the entities created on a day.
#[derive(Debug)]
pub struct DailyMean {
    pub day: NaiveDate,
    pub mean: f64,
}

/// The number of tasks created on a day, by their current status.
#[derive(Debug)]
pub struct DailyTaskCounts {
    pub day: NaiveDate,
    pub success: i64,
    pub running: i64,
    pub pending: i64,
    pub failed: i64,
}

/// The number and duration of tasks with one status.
#[derive(Debug)]
pub struct TaskDuration {
    pub status: TaskStatus,
    pub count: i64,
    /// The mean time from the creation to the end of a task; `None` if tasks with this status have not ended.
    pub seconds: Option<f64>,
}

/// Returns `true` if a project exists.
pub async fn exists(conn: &mut PgConnection, project: ProjectId) -> sqlx::Result<bool> {
    let query = sqlx::query_scalar!("select 1 as one from projects where id = $1", project as _);
    Ok(query.fetch_optional(conn).await?.is_some())
}

/// Counts the entities of a project. Returns `None` if the project does not exist.
pub async fn count_entities(conn: &mut PgConnection, project: ProjectId) -> sqlx::Result<Option<Statistics>> {
    sqlx::query_as!(
        Statistics,
        r#"select (select count(*) from tasks t where t.project_id = p.id and not t.is_planning) as "task_count!",
                  (select count(*) from agent_skills s where s.project_id = p.id) as "skill_count!",
                  (select count(*) from sessions s where s.project_id = p.id) as "session_count!"
           from projects p where p.id = $1"#,
        project as _
    )
    .fetch_optional(conn)
    .await
}

/// Defines a function that returns counts or means of a project from the day `from` on.
macro_rules! usage_query {
    ($(#[$meta:meta])* $name:ident, $Row:ty, $sql:literal) => {
        $(#[$meta])*
        pub async fn $name(conn: &mut PgConnection, project: ProjectId, from: NaiveDate) -> sqlx::Result<Vec<$Row>> {
            sqlx::query_as!($Row, $sql, project as _, from).fetch_all(conn).await
        }
    };
}

usage_query!(
    count_tasks,
    DailyTaskCounts,
    r#"select created_at::date as "day!", count(*) filter (where status = 'success') as "success!",
              count(*) filter (where status = 'running') as "running!",
              count(*) filter (where status = 'pending') as "pending!",
              count(*) filter (where status = 'failed') as "failed!"
       from tasks where project_id = $1 and created_at >= $2::date and not is_planning group by 1"#
);

usage_query!(
    messages_per_session,
    DailyMean,
    r#"select s.created_at::date as "day!",
              avg((select count(*) from messages m where m.session_id = s.id))::float8 as "mean!"
       from sessions s where s.project_id = $1 and s.created_at >= $2::date group by 1"#
);

usage_query!(
    /// Reads all tasks of the project in one pass, because a lookup per session takes ten times as long.
    tasks_per_session,
    DailyMean,
    r#"select s.created_at::date as "day!", avg(coalesce(t.count, 0))::float8 as "mean!"
       from sessions s
       left join (select session_id, count(*) from tasks where project_id = $1 and not is_planning group by 1) t
         on t.session_id = s.id
       where s.project_id = $1 and s.created_at >= $2::date group by 1"#
);

usage_query!(
    messages_per_task,
    DailyMean,
    r#"select t.created_at::date as "day!",
              avg((select count(*) from messages m where m.task_id = t.id))::float8 as "mean!"
       from tasks t where t.project_id = $1 and t.created_at >= $2::date and not t.is_planning group by 1"#
);

usage_query!(
    /// Sums the bytes that were stored on each day and still exist. Bytes that were stored before `from` are added to the day
    /// before `from`.
    storage_by_day,
    DailyCount,
    r#"select greatest(created_at::date, $2::date - 1) as "day!", sum(size)::bigint as "count!"
       from blobs where project_id = $1 and state = 'live' group by 1"#
);

usage_query!(
    count_sessions,
    DailyCount,
    r#"select created_at::date as "day!", count(*) as "count!"
       from sessions where project_id = $1 and created_at >= $2::date group by 1"#
);

usage_query!(
    count_disks,
    DailyCount,
    r#"select created_at::date as "day!", count(*) as "count!"
       from disks where project_id = $1 and created_at >= $2::date group by 1"#
);

usage_query!(
    count_spaces,
    DailyCount,
    r#"select created_at::date as "day!", count(*) as "count!"
       from learning_spaces where project_id = $1 and created_at >= $2::date group by 1"#
);

usage_query!(
    /// Returns the number and the mean duration of all tasks created since `from`, by status, in the order success, running,
    /// pending, failed.
    task_durations,
    TaskDuration,
    r#"select status as "status: TaskStatus", count(*) as "count!",
              avg(extract(epoch from updated_at - created_at)) filter (where status in ('success', 'failed'))::float8
                  as seconds
       from tasks where project_id = $1 and created_at >= $2::date and not is_planning
       group by status order by array_position(array['success', 'running', 'pending', 'failed'], status)"#
);
