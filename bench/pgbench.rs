//! The baseline for messages: pgbench on the same Postgres, with the same number of clients, which durably insert one
//! row per transaction.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use sqlx::{ConnectOptions, Connection};

use crate::Bench;
use crate::embedded_postgres::NAME;
use crate::external::{ExternalPostgres, Transport};
use crate::load::Times;
use crate::server::new_dir;

/// A table with the minimum of a message: an id, a content and a time.
const TABLE: &str = "create table if not exists plain_rows (
    id uuid primary key default gen_random_uuid(), content bytea not null, created_at timestamptz not null default now())";
const INSERT: &str = "insert into plain_rows (content) values (:content);\n";
const THREADS: u32 = 2;

/// pgbench with its script, ready to run.
pub struct Pgbench {
    program: PathBuf,
    dir: PathBuf,
    content: String,
}

/// The rate and the times of a run of pgbench.
pub struct PgbenchResult {
    pub per_second: f64,
    pub times: Times,
}

impl Pgbench {
    /// Prepares pgbench to insert rows with a content of `size` bytes. Returns `None` if pgbench is not installed.
    pub async fn prepare(bench: &Bench, postgres: &ExternalPostgres, size: usize) -> anyhow::Result<Option<Self>> {
        let Some(program) = postgres.program("pgbench") else { return Ok(None) };
        let mut connection = postgres.options().connect().await?;
        sqlx::query(TABLE).execute(&mut connection).await?;
        connection.close().await?;
        let dir = new_dir(&bench.dir, "pgbench")?;
        fs::write(dir.join("insert.sql"), INSERT)?;
        Ok(Some(Self { program, dir, content: "x".repeat(size) }))
    }

    /// Runs pgbench for `time`, rounded down to whole seconds but at least one second.
    pub fn run(
        &self,
        postgres: &ExternalPostgres,
        transport: Transport,
        clients: usize,
        time: Duration,
    ) -> anyhow::Result<PgbenchResult> {
        let seconds = time.as_secs().max(1).to_string();
        let mut command = Command::new(&self.program);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").current_dir(&self.dir);
        command.env("PGSSLMODE", transport.ssl_mode());
        command.args(["-n", "-M", "prepared", "-f", "insert.sql", "-l", "-U", NAME, "-T", &seconds]);
        command.args(["-c", &clients.to_string(), "-j", &THREADS.to_string()]).arg("-h").arg(postgres.host(transport));
        command.args(["-p", &postgres.port().to_string()]);
        command.arg("-D").arg(format!("content={}", self.content)).arg(NAME).stdin(Stdio::null());
        let result = command.output().context("cannot run pgbench")?;
        let output = String::from_utf8_lossy(&result.stdout);
        ensure!(result.status.success(), "pgbench failed: {}", String::from_utf8_lossy(&result.stderr));
        let per_second = output.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
        let per_second = per_second.context("the output of pgbench has no rate")?;
        Ok(PgbenchResult { per_second, times: self.take_times()? })
    }

    /// Reads the times from the logs and deletes the logs. Each transaction has a line with its microseconds in the
    /// third field.
    fn take_times(&self) -> anyhow::Result<Times> {
        let mut times = Vec::new();
        for file in fs::read_dir(&self.dir)? {
            let file = file?.path();
            if file.extension().is_none_or(|extension| extension != "sql") {
                let log = fs::read_to_string(&file)?;
                let took = log.lines().filter_map(|line| line.split(' ').nth(2)?.parse().ok());
                times.extend(took.map(Duration::from_micros));
                fs::remove_file(&file)?;
            }
        }
        Ok(times.into_iter().collect())
    }
}
