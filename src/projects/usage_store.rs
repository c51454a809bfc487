//! SQL of what operators ask about a project. Days are those of UTC; whoever has few rows in the days asked for has few read.

use chrono::NaiveDate;
use serde::Serialize;
use sqlx::PgConnection;

use crate::ids::ProjectId;
use crate::tasks::TaskStatus;

/// The number of entities of a project.
#[derive(Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Statistics {
    /// Without planning tasks.
    pub task_count: i64,
    pub skill_count: i64,
    pub session_count: i64,
}

/// How much came on a day.
#[derive(Debug)]
pub struct Counted {
    pub day: NaiveDate,
    pub count: i64,
}

/// How much there is of something for each thing that was made on a day.
#[derive(Debug)]
pub struct Mean {
    pub day: NaiveDate,
    pub mean: f64,
}

/// The tasks that were made on a day, by what has become of them.
#[derive(Debug)]
pub struct TaskCounts {
    pub day: NaiveDate,
    pub success: i64,
    pub running: i64,
    pub pending: i64,
    pub failed: i64,
}

/// The tasks of one status.
#[derive(Debug)]
pub struct Timed {
    pub status: TaskStatus,
    pub count: i64,
    /// From beginning to end, of those that have ended.
    pub seconds: Option<f64>,
}

pub async fn exists(conn: &mut PgConnection, project: ProjectId) -> sqlx::Result<bool> {
    let found = sqlx::query_scalar!("select 1 as one from projects where id = $1", project as _);
    Ok(found.fetch_optional(conn).await?.is_some())
}

/// How much a project has; `None` if there is no such project.
pub async fn count(conn: &mut PgConnection, project: ProjectId) -> sqlx::Result<Option<Statistics>> {
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

/// Defines a function that reads numbers of a project day by day, from a day on.
macro_rules! numbers_by_day {
    ($(#[$meta:meta])* $name:ident, $Row:ty, $sql:literal) => {
        $(#[$meta])*
        pub async fn $name(conn: &mut PgConnection, project: ProjectId, from: NaiveDate) -> sqlx::Result<Vec<$Row>> {
            sqlx::query_as!($Row, $sql, project as _, from).fetch_all(conn).await
        }
    };
}

numbers_by_day!(
    count_tasks,
    TaskCounts,
    r#"select created_at::date as "day!", count(*) filter (where status = 'success') as "success!",
              count(*) filter (where status = 'running') as "running!",
              count(*) filter (where status = 'pending') as "pending!",
              count(*) filter (where status = 'failed') as "failed!"
       from tasks where project_id = $1 and created_at >= $2::date and not is_planning group by 1"#
);

numbers_by_day!(
    messages_per_session,
    Mean,
    r#"select s.created_at::date as "day!",
              avg((select count(*) from messages m where m.session_id = s.id))::float8 as "mean!"
       from sessions s where s.project_id = $1 and s.created_at >= $2::date group by 1"#
);

numbers_by_day!(
    /// Reads all tasks of the project once: a look-up for each session takes ten times as long.
    tasks_per_session,
    Mean,
    r#"select s.created_at::date as "day!", avg(coalesce(t.count, 0))::float8 as "mean!"
       from sessions s
       left join (select session_id, count(*) from tasks where project_id = $1 and not is_planning group by 1) t
         on t.session_id = s.id
       where s.project_id = $1 and s.created_at >= $2::date group by 1"#
);

numbers_by_day!(
    messages_per_task,
    Mean,
    r#"select t.created_at::date as "day!",
              avg((select count(*) from messages m where m.task_id = t.id))::float8 as "mean!"
       from tasks t where t.project_id = $1 and t.created_at >= $2::date and not t.is_planning group by 1"#
);

numbers_by_day!(
    /// Sums the bytes that were stored on each day and still exist; those from before the first day count on the day before it.
    storage_by_day,
    Counted,
    r#"select greatest(created_at::date, $2::date - 1) as "day!", sum(size)::bigint as "count!"
       from blobs where project_id = $1 and state = 'live' group by 1"#
);

numbers_by_day!(
    count_sessions,
    Counted,
    r#"select created_at::date as "day!", count(*) as "count!"
       from sessions where project_id = $1 and created_at >= $2::date group by 1"#
);

numbers_by_day!(
    count_disks,
    Counted,
    r#"select created_at::date as "day!", count(*) as "count!"
       from disks where project_id = $1 and created_at >= $2::date group by 1"#
);

numbers_by_day!(
    count_spaces,
    Counted,
    r#"select created_at::date as "day!", count(*) as "count!"
       from learning_spaces where project_id = $1 and created_at >= $2::date group by 1"#
);

numbers_by_day!(
    /// Counts the tasks by status: those that succeeded, are running, are pending, and failed.
    task_durations,
    Timed,
    r#"select status as "status: TaskStatus", count(*) as "count!",
              avg(extract(epoch from updated_at - created_at)) filter (where status in ('success', 'failed'))::float8
                  as seconds
       from tasks where project_id = $1 and created_at >= $2::date and not is_planning
       group by status order by array_position(array['success', 'running', 'pending', 'failed'], status)"#
);
