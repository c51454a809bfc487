//! Learning with a model that responds immediately: the rate at which lessons are written, the statements for each of them, the
//! time of the server between two calls of the model, and its memory.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;
use sqlx::{Connection, PgConnection};

use crate::embedded_postgres::EmbeddedPostgres;
use crate::http::{Client, Request};
use crate::memory::mib;
use crate::model::{Behavior, Model, Script};
use crate::project::Project;
use crate::report::{Report, Table, number};
use crate::server::Server;
use crate::{Bench, block_on};

const PROJECTS: usize = 8;
/// The number of lessons for each learning space.
const LESSONS: usize = 10;
/// How long the observation or the learning of all sessions may take.
const TIMEOUT: Duration = Duration::from_mins(10);
/// How often the number of finished sessions is read.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let spaces = bench.full_or_quick(100, 4);
    report.add_text(&format!(
        "The model is a server in the process of the benchmark. It responds to the distillation with a lesson, and to the skill \
         agent with a new file for each lesson and then with `finish`. {PROJECTS} projects have {spaces} learning spaces, and \
         each space learns from {LESSONS} sessions with a finished task."
    ));
    block_on(measure(bench, report, spaces))
}

/// A project's session and the learning space that learns from it.
struct LearningSession {
    project: usize,
    space: usize,
    id: String,
}

async fn measure(bench: &Bench, report: &mut Report, spaces: usize) -> anyhow::Result<()> {
    let model = Model::start(Behavior { latency: Duration::ZERO, script: Script::Learn }).await?;
    let server = Server::start_with(bench, "learning", &model.settings()).await?;
    let postgres = EmbeddedPostgres::find(&server)?;
    let mut connection = PgConnection::connect_with(&postgres.options()).await?;
    let mut client = server.client().await?;
    let mut projects = Vec::new();
    for _ in 0..PROJECTS {
        projects.push(Project::create(&mut client).await?);
    }
    let sessions = create_finished_tasks(&mut client, &mut connection, &projects, spaces).await?;

    let mut table = Table::new(&["lessons", "seconds", "lessons/s", "resident MiB", "peak MiB", "transactions/lesson"]);
    let mut memory = Vec::new();
    let quarter = spaces.div_ceil(4);
    for first in (0..spaces).step_by(quarter) {
        let range = first..(first + quarter).min(spaces);
        let lessons = range.len() * LESSONS;
        let before = count_transactions(bench, &mut connection).await?;
        let time = learn(&mut client, &mut connection, &projects, &sessions, range).await?;
        let transactions = count_transactions(bench, &mut connection).await? - before;
        let now = server.process.memory()?;
        memory.push(mib(now.resident));
        let per_lesson = f64::from(u32::try_from(transactions)?) / f64::from(u32::try_from(lessons)?);
        let rate = f64::from(u32::try_from(lessons)?) / time.as_secs_f64();
        let numbers = [time.as_secs_f64(), rate, mib(now.resident), mib(now.peak), per_lesson].map(number);
        table.add_row([lessons.to_string()].into_iter().chain(numbers));
    }
    check_skills(&mut connection, sessions.len()).await?;
    report.add_table("Lessons, a quarter of the learning spaces after the other", &table);
    report.add_text(
        "The transactions are all of the database, also those that are idle in between. The memory is that of the server, \
         without Postgres.",
    );
    let (early, late) = (memory[memory.len() / 2 - 1], memory[memory.len() - 1]);
    report.add_target(
        "memory after all lessons",
        &format!("{} MiB", number(late)),
        &format!("at most 10 % more than after half of them ({} MiB)", number(early)),
        late <= early * 1.1,
    );
    add_steps(&model, report);
    count_statements(bench, report, &server, &mut client, &mut connection, &projects).await?;
    server.stop()
}

/// Creates the learning spaces, and for each of them sessions with a finished task.
async fn create_finished_tasks(
    client: &mut Client,
    connection: &mut PgConnection,
    projects: &[Project],
    spaces: usize,
) -> anyhow::Result<Vec<LearningSession>> {
    let finished = "select count(*) from tasks where status = 'success' and not is_planning";
    let before: i64 = sqlx::query_scalar(finished).fetch_one(&mut *connection).await?;
    let mut sessions = Vec::new();
    for space in 0..spaces {
        for _ in 0..LESSONS {
            let project = space % projects.len();
            let id = projects[project].new_session(client, true).await?;
            let text = format!("[session {}] deploy the service", sessions.len());
            let body = json!({"format": "openai", "blob": {"role": "user", "content": text}}).to_string();
            let request = Request::post_json("message", &format!("/api/v1/session/{id}/messages"), body);
            client.data(&projects[project].with_key(request)).await?;
            let flush = Request::post("flush", &format!("/api/v1/session/{id}/flush"));
            client.data(&projects[project].with_key(flush)).await?;
            sessions.push(LearningSession { project, space, id });
        }
    }
    wait_for_count(connection, finished, usize::try_from(before)? + sessions.len()).await?;
    Ok(sessions)
}

/// Lets the learning spaces with these numbers learn from their sessions. Returns the time until all lessons are written.
async fn learn(
    client: &mut Client,
    connection: &mut PgConnection,
    projects: &[Project],
    sessions: &[LearningSession],
    spaces: std::ops::Range<usize>,
) -> anyhow::Result<Duration> {
    let written = "select count(*) from lessons where state = 'written'";
    let before: i64 = sqlx::query_scalar(written).fetch_one(&mut *connection).await?;
    let mut ids = Vec::new();
    for space in spaces.clone() {
        let request = Request::post_json("create a learning space", "/api/v1/learning_spaces", "{}");
        ids.push(client.new_id(&projects[space % projects.len()].with_key(request)).await?);
    }
    let begin = Instant::now();
    let mut count = 0;
    for session in sessions.iter().filter(|session| spaces.contains(&session.space)) {
        let body = json!({"session_id": session.id}).to_string();
        let path = format!("/api/v1/learning_spaces/{}/learn", ids[session.space - spaces.start]);
        client.data(&projects[session.project].with_key(Request::post_json("learn", &path, body))).await?;
        count += 1;
    }
    wait_for_count(connection, written, usize::try_from(before)? + count).await?;
    Ok(begin.elapsed())
}

/// Polls a query until it returns the count.
async fn wait_for_count(connection: &mut PgConnection, query: &str, expected: usize) -> anyhow::Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let count: i64 = sqlx::query_scalar(query).fetch_one(&mut *connection).await?;
        if usize::try_from(count)? >= expected {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "`{query}` returns {count} instead of {expected}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Checks that each lesson has written its own file.
async fn check_skills(connection: &mut PgConnection, lessons: usize) -> anyhow::Result<()> {
    let files: i64 = sqlx::query_scalar("select count(*) from artifacts where filename like 'lesson-%'")
        .fetch_one(connection)
        .await?;
    ensure!(usize::try_from(files)? == lessons, "{files} files instead of {lessons}");
    Ok(())
}

/// Returns the number of committed transactions, after the statistics of all processes have been reported.
async fn count_transactions(bench: &Bench, connection: &mut PgConnection) -> anyhow::Result<i64> {
    tokio::time::sleep(bench.seconds(2)).await;
    let count = "select xact_commit from pg_stat_database where datname = current_database()";
    Ok(sqlx::query_scalar(count).fetch_one(connection).await?)
}

/// Adds the time of the server between two calls of the same conversation.
fn add_steps(model: &Model, report: &mut Report) {
    let mut times: Vec<Duration> = model
        .conversations()
        .iter()
        .flat_map(|calls| {
            calls.windows(2).map(|pair| pair[1].arrived_at.saturating_duration_since(pair[0].answered_at))
        })
        .collect();
    times.sort_unstable();
    let at = |percent: usize| {
        let time = times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied();
        time.unwrap_or_default().as_secs_f64() * 1e3
    };
    let mut table = Table::new(&["steps", "p50 ms", "p99 ms", "longest ms"]);
    table.add_row([times.len().to_string()].into_iter().chain([at(50), at(99), at(100)].map(number)));
    report.add_table("The time of the server between two calls of a conversation with the model", &table);
    report.add_text("A step after `finish` stores the edits of a lesson and begins the next one.");
    report.add_target("time for a step, p99", &format!("{} ms", number(at(99))), "under 50 ms", at(99) < 50.0);
}

/// Counts the statements of further lessons, which Postgres logs for this purpose.
async fn count_statements(
    bench: &Bench,
    report: &mut Report,
    server: &Server,
    client: &mut Client,
    connection: &mut PgConnection,
    projects: &[Project],
) -> anyhow::Result<()> {
    let spaces = bench.full_or_quick(10, 2);
    let mut table = Table::new(&["lessons", "statements/lesson"]);
    let sessions = create_finished_tasks(client, connection, projects, spaces).await?;
    sqlx::query("alter system set log_statement = 'all'").execute(&mut *connection).await?;
    sqlx::query("select pg_reload_conf()").execute(&mut *connection).await?;
    let before = read_statement_count(server)?;
    learn(client, connection, projects, &sessions, 0..spaces).await?;
    let statements = read_statement_count(server)? - before;
    let per_lesson = f64::from(u32::try_from(statements)?) / f64::from(u32::try_from(sessions.len())?);
    table.add_row([sessions.len().to_string(), number(per_lesson)]);
    report.add_table("Statements", &table);
    report.add_text(
        "All statements of the database while the lessons are distilled and written, also `begin` and `commit`, those of the \
         request `learn` and of the job queue.",
    );
    Ok(())
}

/// Returns the number of statements in the log of Postgres.
fn read_statement_count(server: &Server) -> anyhow::Result<usize> {
    let mut count = 0;
    for file in fs::read_dir(server.data.join("postgres/data/log"))? {
        let log = fs::read(file?.path()).context("cannot read the log of Postgres")?;
        let log = String::from_utf8_lossy(&log);
        count += log.matches("LOG:  execute ").count() + log.matches("LOG:  statement: ").count();
    }
    Ok(count)
}
