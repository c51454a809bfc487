//! How long a start on existing data takes, beside the same Postgres started by hand.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::Signal;
use sqlx::{ConnectOptions, Connection};

use crate::external::as_owner_of;
use crate::load::median;
use crate::private::Private;
use crate::report::{Report, Table, number};
use crate::server::{Process, Server};
use crate::{Bench, block_on};

const RUNS: usize = 5;
/// How much longer than Postgres alone a start may take, in milliseconds.
const MORE: f64 = 200.0;

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(&["run", "/health ms", "/ready ms", "Postgres alone ms", "/ready less Postgres ms"]);
    let mut more = Vec::new();
    block_on(async {
        let server = Server::start(bench, "start").await?;
        let postgres = Private::of(&server)?;
        server.stop()?;
        // The first round finds what was not in memory before.
        for run in 0..=RUNS {
            let (health, ready) = start_server(bench).await?;
            let alone = start_by_hand(&postgres).await?;
            if run > 0 {
                let numbers = [health, ready, alone, ready - alone].map(number);
                table.row([run.to_string()].into_iter().chain(numbers));
                more.push(ready - alone);
            }
        }
        Ok(())
    })?;
    report.text(
        "From the spawn of the process to the first 200 of each route, on data that is there and was closed in order; and \
         the same Postgres with the same settings on the same data, from its spawn to the first connection. By turns.",
    );
    report.table("Start", &table);
    let more = median(more);
    report.target("start less Postgres' own", &format!("{} ms (median)", number(more)), "< 200 ms", more < MORE);
    Ok(())
}

/// In milliseconds.
async fn start_server(bench: &Bench) -> anyhow::Result<(f64, f64)> {
    let start = Instant::now();
    let mut server = Server::spawn(bench, "start")?;
    server.wait_for("/health").await?;
    let health = start.elapsed();
    server.wait_for("/ready").await?;
    let ready = start.elapsed();
    server.stop()?;
    Ok((health.as_secs_f64() * 1000.0, ready.as_secs_f64() * 1000.0))
}

/// Starts it by hand, connects, stops it. In milliseconds.
async fn start_by_hand(postgres: &Private) -> anyhow::Result<f64> {
    let mut command = as_owner_of(&postgres.data)?;
    command.args(&postgres.command).current_dir("/").env_clear();
    command.env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").env("TZ", "UTC");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let start = Instant::now();
    let mut process = Process::spawn(&mut command)?;
    let connection = loop {
        match postgres.options().connect().await {
            Ok(connection) => break connection,
            Err(err) if process.has_ended() => return Err(err).context("Postgres does not start by hand"),
            Err(_) if start.elapsed() > Duration::from_mins(1) => bail!("Postgres started by hand does not answer"),
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    };
    let time = start.elapsed();
    connection.close().await?;
    process.stop(Signal::INT)?;
    Ok(time.as_secs_f64() * 1000.0)
}
