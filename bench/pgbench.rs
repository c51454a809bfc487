//! pgbench on the Postgres of a server: as many clients that insert one row each time, durably.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use sqlx::{ConnectOptions, Connection};

use crate::Bench;
use crate::external::{External, Way};
use crate::load::Times;
use crate::private::NAME;
use crate::server::new_folder;

/// A row with what any message needs: an id, a content and a time.
const TABLE: &str = "create table if not exists plain_rows (
    id uuid primary key default gen_random_uuid(), content bytea not null, created_at timestamptz not null default now())";
const INSERT: &str = "insert into plain_rows (content) values (:content);\n";
const THREADS: u32 = 2;

/// pgbench with its script, ready to run.
pub struct Pgbench {
    program: PathBuf,
    folder: PathBuf,
    content: String,
}

/// What a run of it has reached.
pub struct Reached {
    pub per_second: f64,
    pub times: Times,
}

impl Pgbench {
    /// `None` if it is not installed. Its rows have a content of `size` bytes.
    pub async fn prepare(bench: &Bench, postgres: &External, size: usize) -> anyhow::Result<Option<Self>> {
        let Some(program) = postgres.program("pgbench") else { return Ok(None) };
        let mut connection = postgres.options().connect().await?;
        sqlx::query(TABLE).execute(&mut connection).await?;
        connection.close().await?;
        let folder = new_folder(&bench.folder, "pgbench")?;
        fs::write(folder.join("insert.sql"), INSERT)?;
        Ok(Some(Self { program, folder, content: "x".repeat(size) }))
    }

    /// In whole seconds, at least one.
    pub fn run(&self, postgres: &External, way: Way, clients: usize, time: Duration) -> anyhow::Result<Reached> {
        let seconds = time.as_secs().max(1).to_string();
        let mut command = Command::new(&self.program);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").current_dir(&self.folder);
        command.env("PGSSLMODE", way.ssl_mode());
        command.args(["-n", "-M", "prepared", "-f", "insert.sql", "-l", "-U", NAME, "-T", &seconds]);
        command.args(["-c", &clients.to_string(), "-j", &THREADS.to_string()]).arg("-h").arg(postgres.host(way));
        command.args(["-p", &postgres.port().to_string()]);
        command.arg("-D").arg(format!("content={}", self.content)).arg(NAME).stdin(Stdio::null());
        let done = command.output().context("pgbench cannot be run")?;
        let said = String::from_utf8_lossy(&done.stdout);
        ensure!(done.status.success(), "pgbench failed: {}", String::from_utf8_lossy(&done.stderr));
        let per_second = said.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
        let per_second = per_second.context("pgbench does not tell its rate")?;
        Ok(Reached { per_second, times: self.take_times()? })
    }

    /// From the logs, where each transaction has a line with its microseconds in the third field.
    fn take_times(&self) -> anyhow::Result<Times> {
        let mut times = Vec::new();
        for file in fs::read_dir(&self.folder)? {
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
