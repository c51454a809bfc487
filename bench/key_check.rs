//! The longest time of a ping by 200 clients with the same key: directly after startup, when the key is not cached, and over 75
//! seconds, in which the cached key is checked again.

use std::time::Duration;

use crate::http::Request;
use crate::load::{Outcome, Plan, Source, run_load};
use crate::report::{Report, Table, number};
use crate::server::Server;
use crate::{Bench, block_on};

const CLIENTS: usize = 200;
/// More than the maximum age of a cached key, which is a minute.
const SECONDS: u64 = 75;
/// The target for the longest time, in relation to that of requests without a key.
const MAX_RATIO: f64 = 2.0;

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(&["requests", "responses", "p50 ms", "p99 ms", "longest ms"]);
    block_on(async {
        Server::start(bench, "key-check").await?.stop()?;
        let server = Server::start(bench, "key-check").await?;
        let load = async |path: &'static str, seconds| {
            let plan = Plan { clients: CLIENTS, warm_up: Duration::ZERO, time: bench.seconds(seconds) };
            run_load(server.address, plan, |_| ping_requests(path)).await
        };
        let cold = load("/api/v1/ping", 3).await;
        let with_key = load("/api/v1/ping", SECONDS).await;
        let without_key = load("/health", 10).await;
        for (name, outcome) in [
            ("with a key, directly after startup, 3 s", &cold),
            ("with a key, 75 s", &with_key),
            ("without a key, 10 s", &without_key),
        ] {
            let times = outcome.times(None);
            let columns = [times.p50(), times.p99(), times.max()].map(number);
            table.add_row([name.to_owned(), times.count().to_string()].into_iter().chain(columns));
        }
        let longest = |outcome: &Outcome| outcome.times(None).max();
        let (with_key, without_key) = (longest(&with_key), longest(&without_key));
        report.add_target(
            "longest request with a key",
            &format!("{} ms", number(with_key)),
            "at most twice that without a key",
            with_key <= MAX_RATIO * without_key,
        );
        server.stop()
    })?;
    report.add_text(&format!(
        "{CLIENTS} clients, each with its own connection. The key is verified with Argon2. The baseline is the same load on a \
         route that requires no key."
    ));
    report.add_table("Ping", &table);
    Ok(())
}

fn ping_requests(path: &'static str) -> Source {
    Box::new(move || Some(Request::get("ping", path)))
}
