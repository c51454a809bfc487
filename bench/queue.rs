//! Runs the job queue of the library in this process: how soon a job starts, and how many jobs per second are enqueued,
//! run and completed durably. The baseline is the rate of transactions of one row on the same Postgres.

use std::time::Duration;

use acontextd::embedded::postgres::{EmbeddedPostgres, PostgresOptions};

use crate::Bench;
use crate::load::to_f64;
use crate::queue_harness::{Harness, SingleTimes, WRITERS};
use crate::report::{Report, Table, number};
use crate::server::new_dir;

const SINGLE_JOBS: usize = 200;
const JOBS: usize = 10_000;
/// The target for p50, in milliseconds.
const MAX_P50_MS: f64 = 10.0;
const MIN_JOBS_PER_SECOND: f64 = 1_000.0;

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    // A multi-threaded runtime, as in the program, whose jobs share the cores with the requests.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let dir = new_dir(&bench.dir, "queue")?;
        let postgres = EmbeddedPostgres::start(&dir, None, PostgresOptions::default()).await?;
        let mut harness = Harness::new(dir, postgres.options())?;
        let outcome = Box::pin(measure(bench, report, &mut harness)).await;
        postgres.stop().await?;
        outcome
    })
}

async fn measure(bench: &Bench, report: &mut Report, harness: &mut Harness) -> anyhow::Result<()> {
    let count = bench.full_or_quick(JOBS, 500);
    let mut rates = Table::new(&["work", "jobs or rows", "seconds", "per second"]);
    let mut rate = |name: &str, time: Duration| {
        let rate = to_f64(count as u64) / time.as_secs_f64();
        rates.add_row([name.to_owned(), count.to_string(), number(time.as_secs_f64()), number(rate)]);
        rate
    };
    let (insert, delete) = harness.measure_plain_rows(count).await?;
    rate("baseline: insert a row", insert);
    rate("baseline: delete a row", delete);
    let mut drained = Vec::new();
    for (projects, name) in [(1, "one project"), (100, "100 projects")] {
        let (enqueue_time, run_time) = harness.enqueue_then_run(count, projects).await?;
        rate(&format!("enqueue, {name}, runner stopped"), enqueue_time);
        drained.push(rate(&format!("run and complete, {name}, all enqueued before"), run_time));
    }
    let running = harness.start_runner().await?;
    let both = harness.enqueue_while_running(&running.platform, count).await?;
    let both = rate("enqueue, run and complete concurrently, one project", both);
    let single = harness.measure_single_jobs(&running.platform, bench.full_or_quick(SINGLE_JOBS, 20)).await?;
    running.stop().await?;

    report.add_text(&format!(
        "Each row is inserted and each job is enqueued in its own transaction, and each row is deleted and each job is \
         completed in its own transaction, by {WRITERS} concurrent writers (the runner also has {WRITERS} slots), with \
         `fsync` on."
    ));
    report.add_table("Durable jobs", &rates);
    report.add_text(&format!(
        "{SINGLE_JOBS} single jobs, one after the other, 20 ms apart, on an idle queue. The baseline is the same \
         number of transactions that insert one row, with the same pauses."
    ));
    report.add_table("Latency", &latency_table(&single));
    let p50 = single.from_commit.p50();
    report.add_target(
        "commit to start of the job",
        &format!("p50 {} ms", number(p50)),
        "p50 < 10 ms",
        p50 < MAX_P50_MS,
    );
    let slowest = drained.into_iter().chain([both]).fold(f64::INFINITY, f64::min);
    let measured = format!("{} jobs/s (the slowest of three)", number(slowest));
    report.add_target("durable jobs", &measured, ">= 1000 jobs/s", slowest >= MIN_JOBS_PER_SECOND);
    Ok(())
}

fn latency_table(single: &SingleTimes) -> Table {
    let mut table = Table::new(&["from .. to", "p50 ms", "p99 ms"]);
    for (name, times) in [
        ("baseline: transaction of a row, begin .. commit", &single.insert),
        ("transaction that enqueues a job, begin .. start of the job", &single.from_begin),
        ("transaction that enqueues a job, commit .. start of the job", &single.from_commit),
    ] {
        table.add_row([name.to_owned(), number(times.p50()), number(times.p99())]);
    }
    table
}
