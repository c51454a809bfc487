//! Observation with a model whose responses take a fixed time: the time from a stored message to its model call, the time of the
//! server between two calls, the delay by another project, and the time for many sessions.

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::http::{Client, Request};
use crate::model::{Behavior, Model, Script};
use crate::project::Project;
use crate::report::{Report, Table, number};
use crate::server::Server;
use crate::{Bench, block_on};

/// The TTL of the observation buffer.
const TTL: Duration = Duration::from_secs(1);
/// The default of `ACONTEXTD_LLM_CONCURRENCY`.
const CONCURRENCY: usize = 16;
/// The default of `ACONTEXTD_LLM_PROJECT_CONCURRENCY`.
const PROJECT_CONCURRENCY: usize = 4;
/// The default of `PROJECT_SESSION_MESSAGE_BUFFER_MAX_TURNS`.
const TURNS: usize = 16;
const PROJECTS: usize = 8;
const MESSAGES: usize = 20;
/// How long the calls of all sessions may take.
const TIMEOUT: Duration = Duration::from_mins(10);

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    report.add_text(&format!(
        "The model is a server in the process of the benchmark. The buffer has a TTL of {} s unless stated otherwise. A \
         process calls the model {CONCURRENCY} times concurrently, and {PROJECT_CONCURRENCY} times for one project.",
        TTL.as_secs()
    ));
    block_on(measure_delay_after_ttl(bench, report))?;
    block_on(measure_steps(bench, report))?;
    block_on(measure_delay_by_busy_project(bench, report))?;
    block_on(measure_throughput(bench, report))
}

/// A server with its model and projects.
struct Setup {
    model: Model,
    server: Server,
    client: Client,
    projects: Vec<Project>,
}

impl Setup {
    /// Starts a server. Messages are observed after `ttl`, or when `turns` messages of a session are pending.
    async fn start(
        bench: &Bench,
        behavior: Behavior,
        projects: usize,
        ttl: Duration,
        turns: usize,
    ) -> anyhow::Result<Self> {
        let model = Model::start(behavior).await?;
        let mut settings = model.settings();
        settings.push(("SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS", ttl.as_secs().to_string()));
        settings.push(("PROJECT_SESSION_MESSAGE_BUFFER_MAX_TURNS", turns.to_string()));
        let server = Server::start_with(bench, "observation", &settings).await?;
        let mut client = server.client().await?;
        let mut created = Vec::new();
        for _ in 0..projects {
            created.push(Project::create(&mut client).await?);
        }
        Ok(Self { model, server, client, projects: created })
    }

    /// Creates a session, stores messages in it, and returns the time of the last response.
    async fn store(&mut self, project: usize, session: usize, messages: usize) -> anyhow::Result<Instant> {
        let project = &self.projects[project];
        let id = project.new_session(&mut self.client, true).await?;
        for _ in 0..messages {
            let body =
                format!(r#"{{"format":"openai","blob":{{"role":"user","content":"[session {session}] hello"}}}}"#);
            let request = Request::post_json("message", &format!("/api/v1/session/{id}/messages"), body);
            self.client.data(&project.with_key(request)).await?;
        }
        Ok(Instant::now())
    }

    /// Waits until the model has answered this number of calls.
    async fn wait_for_calls(&self, count: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        while self.model.count() < count {
            ensure!(Instant::now() < deadline, "the model was called {} of {count} times", self.model.count());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Adds a row with the distribution of times to a table and returns the 99th percentile.
fn add_times(table: &mut Table, name: &str, mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    let at = |percent: usize| {
        millis(times.get((times.len() * percent / 100).min(times.len() - 1)).copied().unwrap_or_default())
    };
    let values = [at(50), at(99), at(100)];
    table.add_row([name.to_owned(), times.len().to_string()].into_iter().chain(values.map(number)));
    values[1]
}

const COLUMNS: [&str; 5] = ["what", "count", "p50 ms", "p99 ms", "longest ms"];

/// The time from the response to a message until its call arrives at the model, without the TTL.
async fn measure_delay_after_ttl(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let sessions = bench.full_or_quick(200, 5);
    let mut setup = Setup::start(
        bench,
        Behavior { latency: Duration::ZERO, script: Script::Think { tool_calls: 0 } },
        1,
        TTL,
        TURNS,
    )
    .await?;
    let mut stored = Vec::new();
    for session in 0..sessions {
        stored.push(setup.store(0, session, 1).await?);
        // So that the calls do not wait for each other.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    setup.wait_for_calls(sessions).await?;
    let delay = |(session, stored): (usize, &Instant)| {
        let call = setup.model.calls(&format!("[session {session}]"));
        call.first().map_or(TIMEOUT, |call| call.arrived_at.saturating_duration_since(*stored + TTL))
    };
    let mut table = Table::new(&COLUMNS);
    let p99 = add_times(&mut table, "after the TTL", stored.iter().enumerate().map(delay).collect());
    report.add_table("From a stored message to its model call", &table);
    report.add_target("start of a call after the TTL, p99", &format!("{} ms", number(p99)), "under 50 ms", p99 < 50.0);
    setup.server.stop()
}

/// The time from a response of the model to the next request of the same run.
async fn measure_steps(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    const STEPS: usize = 5;
    let sessions = bench.full_or_quick(100, 5);
    let behavior = Behavior { latency: Duration::from_millis(20), script: Script::Think { tool_calls: STEPS } };
    let mut setup = Setup::start(bench, behavior, PROJECTS, TTL, TURNS).await?;
    for session in 0..sessions {
        setup.store(session % PROJECTS, session, MESSAGES / 2).await?;
    }
    setup.wait_for_calls(sessions * (STEPS + 1)).await?;
    let mut times = Vec::new();
    for session in 0..sessions {
        let calls = setup.model.calls(&format!("[session {session}]"));
        times.extend(calls.windows(2).map(|pair| pair[1].arrived_at.saturating_duration_since(pair[0].answered_at)));
    }
    let mut table = Table::new(&COLUMNS);
    let p99 = add_times(&mut table, "between two calls", times);
    report.add_table("The time of the server for each step of a run", &table);
    report.add_target("time for a step, p99", &format!("{} ms", number(p99)), "under 50 ms", p99 < 50.0);
    setup.server.stop()
}

/// The delay of a project's call while another project has many sessions.
async fn measure_delay_by_busy_project(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let sessions = bench.full_or_quick(200, 5);
    let latency = Duration::from_secs(1);
    let mut setup =
        Setup::start(bench, Behavior { latency, script: Script::Think { tool_calls: 0 } }, 2, TTL, TURNS).await?;
    for session in 0..sessions {
        setup.store(0, session, 1).await?;
    }
    setup.wait_for_calls(1).await?;
    let mut times = Vec::new();
    for session in sessions..sessions + bench.full_or_quick(10, 1) {
        let stored = setup.store(1, session, 1).await?;
        let marker = format!("[session {session}]");
        let deadline = Instant::now() + TIMEOUT;
        while setup.model.calls(&marker).is_empty() {
            ensure!(Instant::now() < deadline, "the other project was not observed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let call = setup.model.calls(&marker)[0];
        times.push(call.arrived_at.saturating_duration_since(stored + TTL));
    }
    let mut table = Table::new(&COLUMNS);
    let title = format!("after the TTL, while another project has {sessions} sessions");
    add_times(&mut table, &title, times.clone());
    report.add_table(&format!("A project next to a busy one, with a model of {latency:?}"), &table);
    let longest = times.into_iter().max().unwrap_or_default();
    report.add_target(
        "longest delay by another project",
        &format!("{} ms", number(millis(longest))),
        &format!("at most one call ({} ms)", latency.as_millis()),
        longest <= latency,
    );
    setup.server.stop()
}

/// The time for one call for each of many sessions.
async fn measure_throughput(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let sessions = bench.full_or_quick(1_000, 20);
    let latency = bench.full_or_quick(Duration::from_secs(1), Duration::from_millis(50));
    // A session is observed when it is complete.
    let ttl = Duration::from_hours(1);
    let mut setup =
        Setup::start(bench, Behavior { latency, script: Script::Think { tool_calls: 0 } }, PROJECTS, ttl, MESSAGES)
            .await?;
    let begin = Instant::now();
    for session in 0..sessions {
        setup.store(session % PROJECTS, session, MESSAGES).await?;
    }
    let stored = begin.elapsed();
    setup.wait_for_calls(sessions).await?;
    let total = begin.elapsed();
    let calls = setup.model.count();
    let ideal = latency.mul_f64(f64::from(u32::try_from(calls)?) / f64::from(u32::try_from(CONCURRENCY)?));
    let ratio = total.as_secs_f64() / ideal.as_secs_f64();
    let mut table = Table::new(&["sessions", "messages", "calls", "time to store s", "total s", "ideal s", "ratio"]);
    let seconds = |duration: Duration| number(duration.as_secs_f64());
    table.add_row([
        sessions.to_string(),
        (sessions * MESSAGES).to_string(),
        calls.to_string(),
        seconds(stored),
        seconds(total),
        seconds(ideal),
        number(ratio),
    ]);
    report.add_table(&format!("{sessions} sessions of {PROJECTS} projects, with a model of {latency:?}"), &table);
    report.add_text(
        "The ideal is the number of calls times the time of a call, divided by the number of concurrent calls.",
    );
    report.add_target("time in relation to the ideal", &number(ratio), "at most 1.1", ratio <= 1.1);
    setup.server.stop()
}
