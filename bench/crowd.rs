//! Five hundred clients at once, each with a connection of its own, each doing a bit of everything.

use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Resource, getrlimit};

use crate::artifacts::content;
use crate::http::Request;
use crate::load::{Plan, Source, drive};
use crate::report::{Report, Table, number};
use crate::server::Server;
use crate::{Bench, block_on};

const CLIENTS: usize = 500;
const SIZE: usize = 1 << 10;
/// How many files there are to read and to list.
const FILES: usize = 20;
/// Connections at both ends, and some files.
const OPEN_FILES: u64 = 1_200;
/// Ten requests in this order, each client beginning at another.
const MIX: [&str; 10] = ["ping", "PUT", "GET", "ping", "ls", "ping", "PUT", "GET", "ping", "ls"];

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(&["request", "answered", "p50 ms", "p99 ms"]);
    let outcome = block_on(async {
        let server = Server::start(bench, "crowd").await?;
        let mut client = server.client().await?;
        let disk = client.new_disk().await?;
        let random = Bytes::from(vec![b'x'; SIZE]);
        for number in 0..FILES {
            let content = content(&random, SIZE, format!("file {number}"));
            client.data(&Request::upload("PUT", &disk, "/read/", &format!("{number}.txt"), content)).await?;
        }
        let plan = Plan { clients: CLIENTS, warm_up: Duration::ZERO, time: bench.seconds(5) };
        let outcome = drive(server.address, plan, |client| mixed(&disk, &random, client)).await;
        server.stop()?;
        Ok(outcome)
    })?;
    for kind in ["ping", "PUT", "GET", "ls"] {
        let times = outcome.times(Some(kind));
        table.row([kind.to_owned(), times.count().to_string(), number(times.p50()), number(times.p99())]);
    }
    report.text(&format!(
        "{CLIENTS} connections, all opened at once, for 5 s: 4 of 10 requests are ping, 2 store 1 KiB, 2 download 1 KiB, 2 \
         list a directory of {FILES} files. {} requests/s in all.",
        number(outcome.per_second())
    ));
    report.table("Mixed requests", &table);
    for (what, times) in outcome.failures() {
        report.text(&format!("- {what}: {times} times"));
    }
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if limit < OPEN_FILES {
        report.text(&format!("**The limit of open files is {limit} (`ulimit -n`), too few for this.**"));
    }
    report.target("errors", &outcome.failed().to_string(), "0", outcome.failed() == 0);
    Ok(())
}

fn mixed(disk: &str, random: &Bytes, client: usize) -> Source {
    let (disk, random, mut number) = (disk.to_owned(), random.clone(), client);
    Box::new(move || {
        number += 1;
        let file = number % FILES;
        let kind = MIX[number % MIX.len()];
        Some(match kind {
            "PUT" => {
                let name = format!("{client}-{number}.txt");
                let content = content(&random, SIZE, format!("{name} is new"));
                Request::upload(kind, &disk, &format!("/new-{client}/"), &name, content)
            }
            "GET" => Request::get(kind, &format!("/api/v1/disk/{disk}/artifact/download?file_path=/read/{file}.txt")),
            "ls" => Request::get(kind, &format!("/api/v1/disk/{disk}/artifact/ls?path=/read/")),
            _ => Request::get(kind, "/api/v1/ping"),
        })
    })
}
