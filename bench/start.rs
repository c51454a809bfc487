//! The time of startup on existing data, compared with the startup of the same Postgres alone.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::Signal;
use sqlx::{ConnectOptions, Connection};

use crate::embedded_postgres::EmbeddedPostgres;
use crate::external::run_as_owner_of;
use crate::load::median;
use crate::report::{Report, Table, number};
use crate::server::{Process, Server};
use crate::{Bench, block_on};

const RUNS: usize = 5;
/// How much longer than the startup of Postgres alone the startup of the server may take, in milliseconds.
const MAX_EXTRA_MS: f64 = 200.0;

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(&["run", "/health ms", "/ready ms", "Postgres alone ms", "/ready minus Postgres ms"]);
    let mut extra_times = Vec::new();
    block_on(async {
        let server = Server::start(bench, "start").await?;
        let postgres = EmbeddedPostgres::find(&server)?;
        server.stop()?;
        // The first run loads the files into the page cache and is not counted.
        for run in 0..=RUNS {
            let (health, ready) = start_server(bench).await?;
            let alone = start_postgres(&postgres).await?;
            if run > 0 {
                let numbers = [health, ready, alone, ready - alone].map(number);
                table.add_row([run.to_string()].into_iter().chain(numbers));
                extra_times.push(ready - alone);
            }
        }
        Ok(())
    })?;
    report.add_text(
        "The time from the spawn of the process to the first response 200 of each route, on existing data after a \
         graceful shutdown. *Postgres alone* is the same Postgres with the same settings on the same data, from its \
         spawn to the first connection. Both are measured alternately.",
    );
    report.add_table("Startup", &table);
    let extra = median(extra_times);
    let measured = format!("{} ms (median)", number(extra));
    report.add_target("startup minus Postgres alone", &measured, "< 200 ms", extra < MAX_EXTRA_MS);
    Ok(())
}

/// Starts and stops the server. Returns the time until `/health` and until `/ready`, in milliseconds.
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

/// Starts Postgres directly, connects to it and stops it. Returns the time until the connection, in milliseconds.
async fn start_postgres(postgres: &EmbeddedPostgres) -> anyhow::Result<f64> {
    let mut command = run_as_owner_of(&postgres.data)?;
    command.args(&postgres.command).current_dir("/").env_clear();
    command.env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").env("TZ", "UTC");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let start = Instant::now();
    let mut process = Process::spawn(&mut command)?;
    let connection = loop {
        match postgres.options().connect().await {
            Ok(connection) => break connection,
            Err(err) if process.has_ended() => return Err(err).context("Postgres exited during startup"),
            Err(_) if start.elapsed() > Duration::from_mins(1) => bail!("Postgres does not accept connections"),
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    };
    let time = start.elapsed();
    connection.close().await?;
    process.stop(Signal::INT)?;
    Ok(time.as_secs_f64() * 1000.0)
}
