//! Copying a session, beside SQL that copies as many rows on the same Postgres.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;
use sqlx::{ConnectOptions, Connection, PgConnection};
use uuid::Uuid;

use crate::corpus::prose;
use crate::http::{Client, Request};
use crate::load::{Plan, Source, drive, median, real};
use crate::memory::mib;
use crate::messages::message;
use crate::private::Private;
use crate::report::{Report, Table, number};
use crate::server::{Memory, Server};
use crate::{Bench, block_on};

/// As many as may be copied unless a setting says otherwise.
const MESSAGES: usize = 5_000;
const ROUNDS: usize = 11;
/// In seconds.
const TARGET: f64 = 1.0;
/// The largest page.
const PAGE: usize = 200;

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let messages = bench.pick(MESSAGES, MESSAGES / 10);
    let mut times = Table::new(&["what", "median ms", "fastest ms", "slowest ms", "server CPU ms"]);
    let mut memory = Table::new(&["moment", "resident MiB", "anonymous MiB", "peak MiB"]);
    let copied = block_on(async {
        // What storing and reading takes of memory stays with the server that did it.
        let filled = Server::start(bench, "copy").await?;
        let session = filled.client().await?.new_session(true).await?;
        fill(&filled, &session, messages).await?;
        let original = walk(&mut filled.client().await?, &session).await?;
        ensure!(original.len() == messages, "{} messages were stored", original.len());
        filled.stop()?;
        let server = Server::start(bench, "copy").await?;
        let mut client = server.client().await?;
        let mut connection = Private::of(&server)?.options().connect().await?;
        // Or Postgres would do so by itself in one of the rounds.
        sqlx::raw_sql("vacuum (analyze) messages").execute(&mut connection).await?;
        sqlx::raw_sql("create table plain as select * from messages where false").execute(&mut connection).await?;

        // The first request checks the key, which takes memory.
        client.data(&Request::get("GET", &format!("/api/v1/session/{session}/configs"))).await?;
        Memory::forget_peak(&server.process)?;
        memory.row(row("before", server.process.memory()?));
        let (mut copies, mut rows, mut cpu) = (Vec::new(), Vec::new(), Duration::ZERO);
        for number in 0..bench.pick(ROUNDS, 3) {
            let before = server.process.cpu_time()?;
            let (copy, time) = copy(&mut client, &session).await?;
            cpu += server.process.cpu_time()?.saturating_sub(before);
            copies.push(time.as_secs_f64() * 1000.0);
            if number == 0 {
                memory.row(row("after one copy", server.process.memory()?));
            }
            rows.push(copy_rows(&mut connection, &session, messages).await?.as_secs_f64() * 1000.0);
            ensure!(walk(&mut client, &copy).await? == original, "a copy is not the same conversation");
        }
        memory.row(row("after all, and reading them", server.process.memory()?));
        connection.close().await?;
        let cpu = number(cpu.as_secs_f64() * 1000.0 / real(copies.len() as u64));
        times.row(times_of("POST copy", &copies).into_iter().chain([cpu]));
        times.row(times_of("insert ... select", &rows).into_iter().chain(["-".into()]));
        server.stop()?;
        Ok(median(copies) / 1000.0)
    })?;
    report.text(&format!(
        "A session of {messages} messages of 1 KiB of text is copied again and again, by one client. Each copy is then read \
         and compared with the session. The database's processes are not in the memory."
    ));
    report.table("Copies", &times);
    report.table("Memory", &memory);
    let measured = format!("{} s", number(copied));
    report.target(&format!("copy of {messages} messages"), &measured, "< 1 s", copied < TARGET);
    Ok(())
}

async fn fill(server: &Server, session: &str, messages: usize) -> anyhow::Result<()> {
    let (count, text): (_, Arc<str>) = (Arc::new(AtomicUsize::new(0)), prose(1, 1 << 10).into());
    let stored = drive(server.address, Plan::to_the_end(16), |_| -> Source {
        let (count, text, session) = (Arc::clone(&count), Arc::clone(&text), session.to_owned());
        Box::new(move || {
            let number = count.fetch_add(1, Ordering::Relaxed);
            (number < messages).then(|| message(&session, number, &text))
        })
    })
    .await;
    ensure!(stored.failed() == 0, "messages could not be stored: {:?}", stored.failures());
    Ok(())
}

/// The id of a new copy, and how long it took.
async fn copy(client: &mut Client, session: &str) -> anyhow::Result<(String, Duration)> {
    let (copied, time) = client.timed(&Request::post("copy", &format!("/api/v1/session/{session}/copy"))).await?;
    Ok((copied["new_session_id"].as_str().context("a copy has no id")?.to_owned(), time))
}

/// All messages of a session, oldest first.
async fn walk(client: &mut Client, session: &str) -> anyhow::Result<Vec<Value>> {
    let (mut items, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/api/v1/session/{session}/messages?limit={PAGE}&format=openai&cursor={cursor}");
        let mut page = client.data(&Request::get("GET", &path)).await?;
        items.extend(page["items"].as_array_mut().map(std::mem::take).unwrap_or_default());
        match page["next_cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => return Ok(items),
        }
    }
}

/// How long Postgres takes for as many rows and nothing else.
async fn copy_rows(connection: &mut PgConnection, session: &str, messages: usize) -> anyhow::Result<Duration> {
    let rows = sqlx::query("insert into plain select * from messages where session_id = $1");
    let rows = rows.bind(session.parse::<Uuid>()?);
    let start = Instant::now();
    let copied = rows.execute(&mut *connection).await?.rows_affected();
    let time = start.elapsed();
    ensure!(copied == messages as u64, "{copied} rows instead of {messages}");
    Ok(time)
}

fn times_of(what: &str, times: &[f64]) -> Vec<String> {
    let fastest = times.iter().copied().fold(f64::INFINITY, f64::min);
    let slowest = times.iter().copied().fold(0.0, f64::max);
    let numbers = [median(times.to_vec()), fastest, slowest].map(number);
    [what.to_owned()].into_iter().chain(numbers).collect()
}

fn row(moment: &str, now: Memory) -> Vec<String> {
    let numbers = [now.resident, now.anonymous, now.peak].map(|kib| number(mib(kib)));
    [moment.to_owned()].into_iter().chain(numbers).collect()
}
