//! Copying a session, compared with SQL that copies the same number of rows on the same Postgres.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;
use sqlx::{ConnectOptions, Connection, PgConnection};
use uuid::Uuid;

use crate::corpus::prose;
use crate::embedded_postgres::EmbeddedPostgres;
use crate::http::{Client, Request};
use crate::load::{Plan, Source, median, run_load, to_f64};
use crate::memory::mib;
use crate::messages::store_numbered;
use crate::report::{Report, Table, number};
use crate::server::{Memory, Server};
use crate::{Bench, block_on};

/// The default limit for the number of messages in a session that is copied.
const MESSAGES: usize = 5_000;
const ROUNDS: usize = 11;
/// The target for the time of a copy, in seconds.
const MAX_SECONDS: f64 = 1.0;
/// The maximum page size.
const PAGE_SIZE: usize = 200;

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let messages = bench.full_or_quick(MESSAGES, MESSAGES / 10);
    let mut times = Table::new(&["what", "median ms", "fastest ms", "slowest ms", "server CPU ms"]);
    let mut memory = Table::new(&["moment", "resident MiB", "anonymous MiB", "peak MiB"]);
    let seconds_per_copy = block_on(async {
        // Another server process stores and reads the messages, so that its memory is not measured.
        let filled = Server::start(bench, "copy").await?;
        let session = filled.client().await?.new_session(true).await?;
        store_messages(&filled, &session, messages).await?;
        let original = read_all_messages(&mut filled.client().await?, &session).await?;
        ensure!(original.len() == messages, "{} messages were stored", original.len());
        filled.stop()?;
        let server = Server::start(bench, "copy").await?;
        let mut client = server.client().await?;
        let mut connection = EmbeddedPostgres::find(&server)?.options().connect().await?;
        // Otherwise the autovacuum of Postgres could start during a measurement.
        sqlx::raw_sql("vacuum (analyze) messages").execute(&mut connection).await?;
        sqlx::raw_sql("create table plain as select * from messages where false").execute(&mut connection).await?;

        // The first request checks the key, which takes memory.
        client.data(&Request::get("GET", &format!("/api/v1/session/{session}/configs"))).await?;
        Memory::reset_peak(&server.process)?;
        memory.add_row(memory_row("before", server.process.memory()?));
        let (mut copy_times, mut row_times, mut cpu) = (Vec::new(), Vec::new(), Duration::ZERO);
        for number in 0..bench.full_or_quick(ROUNDS, 3) {
            let before = server.process.cpu_time()?;
            let (copy, time) = copy_session(&mut client, &session).await?;
            cpu += server.process.cpu_time()?.saturating_sub(before);
            copy_times.push(time.as_secs_f64() * 1000.0);
            if number == 0 {
                memory.add_row(memory_row("after one copy", server.process.memory()?));
            }
            row_times.push(copy_rows_by_sql(&mut connection, &session, messages).await?.as_secs_f64() * 1000.0);
            ensure!(
                read_all_messages(&mut client, &copy).await? == original,
                "a copy differs from the original session"
            );
        }
        memory.add_row(memory_row("after all copies, and reading them", server.process.memory()?));
        connection.close().await?;
        let cpu = number(cpu.as_secs_f64() * 1000.0 / to_f64(copy_times.len() as u64));
        times.add_row(times_row("POST copy", &copy_times).into_iter().chain([cpu]));
        times.add_row(times_row("insert ... select", &row_times).into_iter().chain(["-".into()]));
        server.stop()?;
        Ok(median(copy_times) / 1000.0)
    })?;
    report.add_text(&format!(
        "One client copies a session of {messages} messages of 1 KiB of text again and again. Each copy is then read \
         and compared with the session. The memory does not include the processes of the database."
    ));
    report.add_table("Copies", &times);
    report.add_table("Memory", &memory);
    let measured = format!("{} s", number(seconds_per_copy));
    report.add_target(&format!("copy of {messages} messages"), &measured, "< 1 s", seconds_per_copy < MAX_SECONDS);
    Ok(())
}

async fn store_messages(server: &Server, session: &str, messages: usize) -> anyhow::Result<()> {
    let (count, text): (_, Arc<str>) = (Arc::new(AtomicUsize::new(0)), prose(1, 1 << 10).into());
    let stored = run_load(server.address, Plan::until_exhausted(16), |_| -> Source {
        let (count, text, session) = (Arc::clone(&count), Arc::clone(&text), session.to_owned());
        Box::new(move || {
            let number = count.fetch_add(1, Ordering::Relaxed);
            (number < messages).then(|| store_numbered(&session, number, &text))
        })
    })
    .await;
    ensure!(stored.failed() == 0, "could not store messages: {:?}", stored.failures());
    Ok(())
}

/// Copies the session. Returns the id of the copy, and how long copying took.
async fn copy_session(client: &mut Client, session: &str) -> anyhow::Result<(String, Duration)> {
    let (copy, time) = client.timed(&Request::post("copy", &format!("/api/v1/session/{session}/copy"))).await?;
    Ok((copy["new_session_id"].as_str().context("a copy has no id")?.to_owned(), time))
}

/// Returns all messages of a session, oldest first.
async fn read_all_messages(client: &mut Client, session: &str) -> anyhow::Result<Vec<Value>> {
    let (mut items, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/api/v1/session/{session}/messages?limit={PAGE_SIZE}&format=openai&cursor={cursor}");
        let mut page = client.data(&Request::get("GET", &path)).await?;
        items.extend(page["items"].as_array_mut().map(std::mem::take).unwrap_or_default());
        match page["next_cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => return Ok(items),
        }
    }
}

/// Returns how long Postgres takes to copy the same rows into a table without indexes.
async fn copy_rows_by_sql(connection: &mut PgConnection, session: &str, messages: usize) -> anyhow::Result<Duration> {
    let insert = sqlx::query("insert into plain select * from messages where session_id = $1");
    let insert = insert.bind(session.parse::<Uuid>()?);
    let start = Instant::now();
    let copied = insert.execute(&mut *connection).await?.rows_affected();
    let time = start.elapsed();
    ensure!(copied == messages as u64, "{copied} rows instead of {messages}");
    Ok(time)
}

fn times_row(what: &str, times: &[f64]) -> Vec<String> {
    let fastest = times.iter().copied().fold(f64::INFINITY, f64::min);
    let slowest = times.iter().copied().fold(0.0, f64::max);
    let numbers = [median(times.to_vec()), fastest, slowest].map(number);
    [what.to_owned()].into_iter().chain(numbers).collect()
}

fn memory_row(moment: &str, now: Memory) -> Vec<String> {
    let numbers = [now.resident, now.anonymous, now.peak].map(|kib| number(mib(kib)));
    [moment.to_owned()].into_iter().chain(numbers).collect()
}
