//! Five hundred concurrent clients, each with its own connection, which send a mix of requests.

use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Resource, getrlimit};

use crate::artifacts::content;
use crate::http::Request;
use crate::load::{Plan, Source, run_load};
use crate::report::{Report, Table, number};
use crate::server::Server;
use crate::{Bench, block_on};

const CLIENTS: usize = 500;
const SIZE: usize = 1 << 10;
/// The number of files that are downloaded and listed.
const FILES: usize = 20;
/// The required limit of open files: the connections at both ends, and some files.
const OPEN_FILES: u64 = 1_200;
/// The sequence of requests. The clients start at different positions in it.
const MIX: [&str; 10] = ["ping", "PUT", "GET", "ping", "ls", "ping", "PUT", "GET", "ping", "ls"];

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(&["request", "responses", "p50 ms", "p99 ms"]);
    let outcome = block_on(async {
        let server = Server::start(bench, "connections").await?;
        let mut client = server.client().await?;
        let disk = client.new_disk().await?;
        let random = Bytes::from(vec![b'x'; SIZE]);
        for number in 0..FILES {
            let content = content(&random, SIZE, format!("file {number}"));
            client.data(&Request::upload("PUT", &disk, "/read/", &format!("{number}.txt"), content)).await?;
        }
        let plan = Plan { clients: CLIENTS, warm_up: Duration::ZERO, time: bench.seconds(5) };
        let outcome = run_load(server.address, plan, |client| mixed_requests(&disk, &random, client)).await;
        server.stop()?;
        Ok(outcome)
    })?;
    for kind in ["ping", "PUT", "GET", "ls"] {
        let times = outcome.times(Some(kind));
        table.add_row([kind.to_owned(), times.count().to_string(), number(times.p50()), number(times.p99())]);
    }
    report.add_text(&format!(
        "{CLIENTS} connections, all opened at the same time, for 5 s. Of 10 requests, 4 are ping, 2 store 1 KiB, 2 \
         download 1 KiB, and 2 list a directory of {FILES} files. The total rate was {} requests/s.",
        number(outcome.per_second())
    ));
    report.add_table("Mixed requests", &table);
    for (what, times) in outcome.failures() {
        report.add_text(&format!("- {what}: {times} times"));
    }
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if limit < OPEN_FILES {
        report.add_text(&format!(
            "**The limit of open files (`ulimit -n`) is {limit}, which is too low for this benchmark.**"
        ));
    }
    report.add_target("errors", &outcome.failed().to_string(), "0", outcome.failed() == 0);
    Ok(())
}

/// Returns the requests of one client.
fn mixed_requests(disk: &str, random: &Bytes, client: usize) -> Source {
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
