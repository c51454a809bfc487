//! The queue, in this process with the library: how soon a job starts, and how many a second are put in, run and completed
//! durably; beside what plain transactions of one row reach on the same Postgres.

use std::time::Duration;

use acontextd::embedded::postgres::{Postgres, Tuning};

use crate::Bench;
use crate::load::real;
use crate::probe::{Single, Site, WRITERS};
use crate::report::{Report, Table, number};
use crate::server::new_folder;

const SINGLE: usize = 200;
const MANY: usize = 10_000;
/// Of p50, in milliseconds.
const LATENCY: f64 = 10.0;
const PER_SECOND: f64 = 1_000.0;

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    // As in the program, whose workers share the cores with the requests.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let folder = new_folder(&bench.folder, "queue")?;
        let postgres = Postgres::start(&folder, None, Tuning::default()).await?;
        let mut site = Site::new(folder, postgres.options())?;
        let measured = Box::pin(measure(bench, report, &mut site)).await;
        postgres.stop().await?;
        measured
    })
}

async fn measure(bench: &Bench, report: &mut Report, site: &mut Site) -> anyhow::Result<()> {
    let many = bench.pick(MANY, 500);
    let mut rates = Table::new(&["work", "jobs or rows", "seconds", "per second"]);
    let mut rate = |name: &str, time: Duration| {
        let rate = real(many as u64) / time.as_secs_f64();
        rates.row([name.to_owned(), many.to_string(), number(time.as_secs_f64()), number(rate)]);
        rate
    };
    let (insert, delete) = site.plain_rows(many).await?;
    rate("yardstick: insert a row", insert);
    rate("yardstick: delete a row", delete);
    let mut drained = Vec::new();
    for (projects, name) in [(1, "one project"), (100, "100 projects")] {
        let (put_in, ran) = site.put_in_then_run(many, projects).await?;
        rate(&format!("put in, {name}, nothing runs"), put_in);
        drained.push(rate(&format!("run and complete, {name}, all wait"), ran));
    }
    let running = site.start_runner().await?;
    let both = site.put_in_and_run(&running.platform, many).await?;
    let both = rate("put in, run and complete at once, one project", both);
    let single = site.single(&running.platform, bench.pick(SINGLE, 20)).await?;
    running.stop().await?;

    report.text(&format!(
        "Each row and each job is put in by a transaction of its own, and deleted or completed by one of its own, by \
         {WRITERS} at once (the runner's slots are {WRITERS} too), with `fsync` on."
    ));
    report.table("Durable jobs", &rates);
    report.text(&format!(
        "{SINGLE} single jobs, one after the other, 20 ms apart, on an idle queue; the yardstick is a transaction that \
         inserts one row, as often and as far apart."
    ));
    report.table("Latency", &table(&single));
    let p50 = single.from_commit.p50();
    report.target("committed to started", &format!("p50 {} ms", number(p50)), "p50 < 10 ms", p50 < LATENCY);
    let slowest = drained.into_iter().chain([both]).fold(f64::INFINITY, f64::min);
    let measured = format!("{} jobs/s (the slowest of three)", number(slowest));
    report.target("durable jobs", &measured, ">= 1000 jobs/s", slowest >= PER_SECOND);
    Ok(())
}

fn table(single: &Single) -> Table {
    let mut table = Table::new(&["from .. to", "p50 ms", "p99 ms"]);
    for (name, times) in [
        ("yardstick: a row's transaction, begun .. committed", &single.insert),
        ("a job's transaction, begun .. the job runs", &single.from_begin),
        ("a job's transaction, committed .. the job runs", &single.from_commit),
    ] {
        table.row([name.to_owned(), number(times.p50()), number(times.p99())]);
    }
    table
}
