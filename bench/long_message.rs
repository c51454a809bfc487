//! The memory of the server process while one very long message is stored and read, and the memory of the tokenizer.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;

use crate::conversation::page_request;
use crate::corpus::prose;
use crate::http::Request;
use crate::load::to_f64;
use crate::memory::mib;
use crate::messages::{store_message, store_numbered};
use crate::report::{Report, Table, number};
use crate::server::{Memory, Server};
use crate::{Bench, block_on};

/// The size of the text, in bytes.
const SIZE: usize = 20_000_000;
/// How often the message is stored and read.
const REPETITIONS: usize = 3;
/// The target for the growth of the memory, as a multiple of the size of the text.
const MAX_MULTIPLE: f64 = 3.0;
/// How long a server is idle before its memory is measured, in seconds.
const IDLE_SECS: u64 = 10;
/// The target for the memory of an idle server.
const MAX_IDLE_MIB: f64 = 50.0;

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(&["request", "ms", "peak MiB", "above idle MiB", "above idle / message size"]);
    let size = bench.full_or_quick(SIZE, SIZE / 20);
    let highest = block_on(async {
        // The first startup hashes the key of the default project, which takes memory that later startups do not need.
        Server::start(bench, "long-message").await?.stop()?;
        let server = Server::start(bench, "long-message").await?;
        let session = server.client().await?.new_session(true).await?;
        server.client().await?.data(&store_numbered(&session, 0, &prose(0, size))).await?;
        tokio::time::sleep(bench.seconds(IDLE_SECS)).await;
        let idle = server.process.memory()?.resident;
        table.add_row(["none".into(), "-".into(), number(mib(idle)), "-".into(), "-".into()]);
        let text = &prose(0, size)[..size];
        let mut highest: f64 = 0.0;
        for (name, request) in [
            ("POST", store_message(&session, &json!({"role": "user", "content": text}))),
            ("GET in the stored format", page_request(&session, 1, "openai")),
            ("GET in another format", page_request(&session, 1, "anthropic")),
        ] {
            for _ in 0..REPETITIONS {
                let (peak, time) = send_and_measure(&server, &request).await?;
                let above = peak.saturating_sub(idle);
                let multiple = to_f64(above) * 1024.0 / to_f64(size as u64);
                highest = highest.max(multiple);
                let numbers = [time.as_secs_f64() * 1000.0, mib(peak), mib(above), multiple].map(number);
                table.add_row([name.to_owned()].into_iter().chain(numbers));
            }
        }
        server.stop()?;
        Ok(highest)
    })?;
    report.add_text(&format!(
        "A message with {} MB of prose with line breaks and quotation marks, on a server that has stored a short \
         message and then was idle for {IDLE_SECS} s. The peak is the maximum of the resident memory during the \
         request (`VmHWM`, reset before each request). Memory that the allocator retains after one request counts in \
         the next.",
        number(to_f64(size as u64) / 1e6)
    ));
    report.add_table("A long message", &table);
    report.add_target(
        "growth by a long message",
        &format!("{} times the message size", number(highest)),
        "<= 3",
        highest <= MAX_MULTIPLE,
    );
    Ok(())
}

/// Sends the request. Returns the peak memory during it, in KiB, and its duration.
async fn send_and_measure(server: &Server, request: &Request) -> anyhow::Result<(u64, Duration)> {
    let mut client = server.client().await?;
    Memory::reset_peak(&server.process)?;
    let start = Instant::now();
    let response = client.send(request).await?;
    let time = start.elapsed();
    ensure!(response.is_success(), "{} returned {}", request.kind, response.status);
    Ok((server.process.memory()?.peak, time))
}

/// Measures the resident memory before the first message and after it.
pub fn tokenizer(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(&["moment", "resident MiB", "anonymous MiB", "peak MiB", "request ms"]);
    block_on(async {
        // The first startup hashes the key of the default project, which takes memory that later startups do not need.
        Server::start(bench, "tokenizer").await?.stop()?;
        let server = Server::start(bench, "tokenizer").await?;
        tokio::time::sleep(bench.seconds(IDLE_SECS)).await;
        let mut row = |moment: &str, time: String| {
            let now = server.process.memory()?;
            let memory = [now.resident, now.anonymous, now.peak].map(|kib| number(mib(kib)));
            table.add_row([moment.to_owned()].into_iter().chain(memory).chain([time]));
            anyhow::Ok(mib(now.resident))
        };
        row("idle", "-".into())?;
        let mut client = server.client().await?;
        let session = client.new_session(true).await?;
        let before = row("after a session was created", "-".into())?;
        let text = prose(0, 4 << 10);
        let mut after = before;
        for (index, moment) in
            ["after the first message was stored", "after the second", "after the third"].into_iter().enumerate()
        {
            let (_, time) = client.timed(&store_numbered(&session, index, &text)).await?;
            after = row(moment, number(time.as_secs_f64() * 1000.0))?;
        }
        tokio::time::sleep(bench.seconds(IDLE_SECS)).await;
        let idle = row("10 s later", "-".into())?;
        let what = format!("idle memory after the first message, which added {} MiB", number(after - before));
        report.add_target(&what, &format!("{} MiB", number(idle)), "< 50 MiB", idle < MAX_IDLE_MIB);
        server.stop()
    })?;
    report.add_text(
        "The server was started on existing data and then idle. The tokenizer is created when the tokens of the first \
         message are counted, and stays in memory. The processes of the database are not included.",
    );
    report.add_table("Memory", &table);
    Ok(())
}
