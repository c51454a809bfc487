//! The memory of the server while clients request a long list and never read the response.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::http::Request;
use crate::memory::mib;
use crate::report::{Report, Table, number};
use crate::server::{Memory, Server};
use crate::{Bench, block_on};

const CLIENTS: usize = 60;
const MESSAGES: usize = 30;
/// The length of the text of a message.
const LENGTH: usize = 2 << 20;
/// How long the clients do not read, in seconds. The server disconnects them after 30 s.
const SECONDS: u64 = 45;
/// The target for the growth of the memory, in MiB: the server's limit for unread responses, and what it needs to build some.
const MAX_GROWTH_MIB: f64 = 1024.0;

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(&["moment", "resident MiB", "above idle MiB"]);
    block_on(async {
        let server = Server::start(bench, "slow-readers").await?;
        let mut client = server.client().await?;
        let session = client.new_session(false).await?;
        let text = "a long text, ".repeat(bench.full_or_quick(LENGTH, LENGTH / 16) / 13);
        let body = Bytes::from(format!(r#"{{"format":"openai","blob":{{"role":"user","content":"{text}"}}}}"#));
        let path = format!("/api/v1/session/{session}/messages");
        for _ in 0..MESSAGES {
            client.send(&Request::post_json("POST", &path, body.clone())).await?;
        }
        server.stop()?;
        // Another process, so that the memory for storing the messages does not count.
        let server = Server::start(bench, "slow-readers").await?;
        tokio::time::sleep(bench.seconds(5)).await;
        let idle = server.process.memory()?;
        Memory::reset_peak(&server.process)?;
        let list = Request::get("GET", &path);
        let mut connections = Vec::new();
        for _ in 0..CLIENTS {
            let mut connection = TcpStream::connect(server.address).await?;
            connection.write_all(&list.to_bytes()).await?;
            connections.push(connection);
        }
        let (started, mut slowest) = (Instant::now(), Duration::ZERO);
        let mut other = server.client().await?;
        while started.elapsed() < bench.seconds(SECONDS) {
            let sent = Instant::now();
            other.send(&Request::get("ping", "/api/v1/ping")).await?;
            slowest = slowest.max(sent.elapsed());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let now = server.process.memory()?;
        drop(connections);
        let above = |kib: u64| mib(kib) - mib(idle.resident);
        table.add_row(["idle".to_owned(), number(mib(idle.resident)), number(0.0)]);
        table.add_row(["highest".to_owned(), number(mib(now.peak)), number(above(now.peak))]);
        table.add_row([format!("after {SECONDS} s"), number(mib(now.resident)), number(above(now.resident))]);
        let growth = above(now.peak);
        report.add_target("growth", &format!("{} MiB", number(growth)), "< 1024 MiB", growth < MAX_GROWTH_MIB);
        let slowest_ms = slowest.as_secs_f64() * 1000.0;
        report
            .add_text(&format!("The slowest ping of another client during this time took {} ms.", number(slowest_ms)));
        server.stop()
    })?;
    report.add_text(&format!(
        "{CLIENTS} clients request a list of {MESSAGES} messages of 2 MiB at the same time, and never read the response."
    ));
    report.add_table("Memory", &table);
    Ok(())
}
