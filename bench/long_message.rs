//! The memory of the server process while one very long message is stored and read, and what the tokenizer takes.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;

use crate::conversation::page;
use crate::corpus::prose;
use crate::http::Request;
use crate::load::real;
use crate::memory::mib;
use crate::messages::{message, store};
use crate::report::{Report, Table, number};
use crate::server::{Memory, Server};
use crate::{Bench, block_on};

/// Of the text, in bytes.
const SIZE: usize = 20_000_000;
/// How often it is stored and read.
const TIMES: usize = 3;
/// How many times its size the memory may grow.
const MULTIPLE: f64 = 3.0;
/// How long a server is left alone, in seconds.
const ALONE: u64 = 10;
/// In MiB.
const IDLE: f64 = 50.0;

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(&["request", "ms", "peak MiB", "above idle MiB", "above idle / its size"]);
    let size = bench.pick(SIZE, SIZE / 20);
    let most = block_on(async {
        // The first start makes a key's hash, which takes memory that a later one does not.
        Server::start(bench, "long-message").await?.stop()?;
        let server = Server::start(bench, "long-message").await?;
        let session = server.client().await?.new_session(true).await?;
        server.client().await?.data(&message(&session, 0, &prose(0, size))).await?;
        tokio::time::sleep(bench.seconds(ALONE)).await;
        let idle = server.process.memory()?.resident;
        table.row(["none".into(), "-".into(), number(mib(idle)), "-".into(), "-".into()]);
        let text = &prose(0, size)[..size];
        let mut most: f64 = 0.0;
        for (name, request) in [
            ("POST", store(&session, &json!({"role": "user", "content": text}))),
            ("GET in its own format", page(&session, 1, "openai")),
            ("GET in another format", page(&session, 1, "anthropic")),
        ] {
            for _ in 0..TIMES {
                let (peak, time) = watch(&server, &request).await?;
                let above = peak.saturating_sub(idle);
                let multiple = real(above) * 1024.0 / real(size as u64);
                most = most.max(multiple);
                let numbers = [time.as_secs_f64() * 1000.0, mib(peak), mib(above), multiple].map(number);
                table.row([name.to_owned()].into_iter().chain(numbers));
            }
        }
        server.stop()?;
        Ok(most)
    })?;
    report.text(&format!(
        "A message with {} MB of prose, with line breaks and quotation marks, on a server that has stored a short one and then \
         was alone for {ALONE} s. The peak is the most that was resident during the request (`VmHWM`, reset before each); \
         what the allocator keeps of one request counts in the next.",
        number(real(size as u64) / 1e6)
    ));
    report.table("A long message", &table);
    report.target("growth by a long message", &format!("{} times its size", number(most)), "<= 3", most <= MULTIPLE);
    Ok(())
}

/// The most memory during a request, in KiB, and how long it took.
async fn watch(server: &Server, request: &Request) -> anyhow::Result<(u64, Duration)> {
    let mut client = server.client().await?;
    Memory::forget_peak(&server.process)?;
    let start = Instant::now();
    let answer = client.send(request).await?;
    let time = start.elapsed();
    ensure!(answer.is_success(), "{} answered {}", request.kind, answer.status);
    Ok((server.process.memory()?.peak, time))
}

/// What is resident before the first message and after it.
pub fn tokenizer(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(&["moment", "resident MiB", "anonymous MiB", "peak MiB", "request ms"]);
    block_on(async {
        // The first start makes a key's hash, which takes memory that a later one does not.
        Server::start(bench, "tokenizer").await?.stop()?;
        let server = Server::start(bench, "tokenizer").await?;
        tokio::time::sleep(bench.seconds(ALONE)).await;
        let mut row = |moment: &str, time: String| {
            let now = server.process.memory()?;
            let memory = [now.resident, now.anonymous, now.peak].map(|kib| number(mib(kib)));
            table.row([moment.to_owned()].into_iter().chain(memory).chain([time]));
            anyhow::Ok(mib(now.resident))
        };
        row("idle", "-".into())?;
        let mut client = server.client().await?;
        let session = client.new_session(true).await?;
        let before = row("a session was made", "-".into())?;
        let text = prose(0, 4 << 10);
        let mut after = before;
        for (at, moment) in ["the first message was stored", "the second", "the third"].into_iter().enumerate() {
            let (_, time) = client.timed(&message(&session, at, &text)).await?;
            after = row(moment, number(time.as_secs_f64() * 1000.0))?;
        }
        tokio::time::sleep(bench.seconds(ALONE)).await;
        let idle = row("10 s later", "-".into())?;
        let what = format!("idle after the first message ({} MiB more by it)", number(after - before));
        report.target(&what, &format!("{} MiB", number(idle)), "< 50 MiB", idle < IDLE);
        server.stop()
    })?;
    report.text(
        "Started on data that is there and left alone; the tokenizer is made when the first message is counted, and stays. The \
         database's processes are not in it.",
    );
    report.table("Memory", &table);
    Ok(())
}
