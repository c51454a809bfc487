//! Storing small messages durably, beside pgbench that inserts a row of the same size each time on the same Postgres, over its
//! Unix socket, over TCP, and over TCP with TLS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use crate::corpus::prose;
use crate::external::{External, Way};
use crate::http::Request;
use crate::load::{Outcome, Plan, Source, drive, median, real};
use crate::pgbench::Pgbench;
use crate::report::{Report, Table, number};
use crate::server::Server;
use crate::{Bench, block_on};

/// Of a message's text, in bytes.
const SIZE: usize = 1 << 10;
const SESSIONS: usize = 64;
const CLIENTS: [usize; 4] = [1, 16, 64, 500];
const ROUNDS: usize = 3;
/// What part of the rate over the Unix socket is to be reached over TCP.
const TCP_SHARE: f64 = 0.8;
/// What part of pgbench's rate is to be reached by so many clients.
const SHARES: [(usize, f64); 2] = [(16, 0.6), (64, 0.9)];
/// Of p99 with 64 clients, in milliseconds.
const SLOWEST: f64 = 10.0;

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    block_on(async {
        let server = Server::start(bench, "messages").await?;
        let mut client = server.client().await?;
        let (mut tracked, mut untracked) = (Vec::new(), Vec::new());
        for _ in 0..SESSIONS {
            tracked.push(client.new_session(true).await?);
            untracked.push(client.new_session(false).await?);
        }
        let run = Run { bench, server, tracked, untracked, count: Arc::default() };
        // The first message loads the tokenizer.
        client.data(&message(&run.tracked[0], 0, &prose(0, SIZE))).await?;
        run.everything(report).await?;
        run.beside_pgbench(report).await
    })
}

struct Run<'a> {
    bench: &'a Bench,
    server: Server,
    tracked: Vec<String>,
    untracked: Vec<String>,
    /// So that each message has a text of its own.
    count: Arc<AtomicUsize>,
}

impl Run<'_> {
    async fn everything(&self, report: &mut Report) -> anyhow::Result<()> {
        let heads = ["clients x sessions", "messages/s", "p50 ms", "p99 ms", "server CPU us/message", "failed"];
        let [mut tracked, mut untracked] = [Table::new(&heads), Table::new(&heads)];
        let (mut failed, mut answered) = (0, 0);
        for (table, sessions) in [(&mut tracked, &self.tracked), (&mut untracked, &self.untracked)] {
            for sessions in [&sessions[..], &sessions[..1]] {
                for clients in CLIENTS {
                    let before = self.server.process.cpu_time()?;
                    let outcome = self.store(clients, sessions, 2).await;
                    let cpu = self.server.process.cpu_time()?.saturating_sub(before);
                    let label = format!("{clients} x {}", sessions.len());
                    table.row(row(&label, &outcome, cpu));
                    for (what, times) in outcome.failures() {
                        report.text(&format!("- {label}: {what}: {times} times"));
                    }
                    if clients == CLIENTS[3] {
                        failed += outcome.failed();
                        answered += outcome.count();
                    }
                }
            }
        }
        report.text(&format!(
            "Each client stores messages of {SIZE} bytes of text, one after the other, each with a text of its own; client \
             after client in another session. A 201 says that the message is on disk."
        ));
        report.table("Sessions whose tasks are tracked", &tracked);
        report.table("Sessions whose tasks are not tracked", &untracked);
        let measured = format!("{failed} of {answered}");
        report.target("errors of 500 clients, all rows", &measured, "0", failed == 0);
        Ok(())
    }

    /// Three servers on one Postgres: one reaches it over its Unix socket, one over TCP, one over TCP with TLS.
    async fn beside_pgbench(self, report: &mut Report) -> anyhow::Result<()> {
        let heads = [
            "connected by",
            "clients",
            "messages/s",
            "p50 ms",
            "p99 ms",
            "pgbench rows/s",
            "pgbench p50 ms",
            "pgbench p99 ms",
            "server/pgbench",
        ];
        let mut table = Table::new(&heads);
        let Self { bench, server, tracked, count, .. } = self;
        let postgres = External::replace(server).await?;
        let pgbench = Pgbench::prepare(bench, &postgres, SIZE).await?;
        let mut servers = Vec::new();
        for way in Way::ALL {
            let name = format!("messages-{}", way.name().replace([' ', ','], "-"));
            servers.push((way, Server::start_with(bench, &name, &postgres.settings(way)).await?));
        }
        for (clients, share) in SHARES {
            let mut ours = Way::ALL.map(|_| Vec::new());
            let mut rows = Way::ALL.map(|_| Vec::new());
            for _ in 0..bench.pick(ROUNDS, 1) {
                for (at, (way, server)) in servers.iter().enumerate() {
                    let outcome = store_messages(bench, server.address, &count, clients, &tracked, 3).await;
                    let times = outcome.times(None);
                    ours[at].push([outcome.per_second(), times.p50(), times.p99()]);
                    if let Some(pgbench) = &pgbench {
                        let reached = pgbench.run(&postgres, *way, clients, bench.seconds(3))?;
                        rows[at].push([reached.per_second, reached.times.p50(), reached.times.p99()]);
                    }
                }
            }
            let ours = ours.map(|runs| middle(&runs));
            let rows = rows.map(|runs| pgbench.is_some().then(|| middle(&runs)));
            compare(report, &mut table, clients, share, ours, rows);
        }
        report.text(&format!(
            "{SESSIONS} sessions whose tasks are tracked, by three servers on one Postgres, beside `pgbench -M prepared -j 2` that \
             inserts a row with an id, {SIZE} bytes and a time, connected in the same way; {ROUNDS} rounds of 3 s by turns, the \
             median of each column."
        ));
        if pgbench.is_none() {
            report.text("**pgbench does not lie beside Postgres' server programs: the right half is missing.**");
        }
        report.table("Beside pgbench", &table);
        for (_, server) in servers {
            server.stop()?;
        }
        postgres.stop()
    }

    async fn store(&self, clients: usize, sessions: &[String], seconds: u64) -> Outcome {
        store_messages(self.bench, self.server.address, &self.count, clients, sessions, seconds).await
    }
}

/// Adds the rows and targets of one number of clients: rate, p50 and p99 of the server and of pgbench, for each way to connect.
fn compare(
    report: &mut Report,
    table: &mut Table,
    clients: usize,
    share: f64,
    ours: [[f64; 3]; 3],
    rows: [Option<[f64; 3]>; 3],
) {
    for ((way, ours), rows) in Way::ALL.into_iter().zip(ours).zip(rows) {
        let beside = rows.map_or_else(Vec::new, |rows| [&rows[..], &[ours[0] / rows[0]]].concat());
        let beside = beside.into_iter().map(number).chain(std::iter::repeat("-".into())).take(4);
        table.row([way.name().into(), clients.to_string()].into_iter().chain(ours.map(number)).chain(beside));
        if let Some(rows) = rows {
            let ratio = ours[0] / rows[0];
            let what = format!("messages by {clients} clients, {}", way.name());
            let measured = format!("{} messages/s, {} of pgbench", number(ours[0]), number(ratio));
            report.target(&what, &measured, &format!(">= {share} of pgbench"), ratio >= share);
        }
        if clients == SHARES[1].0 {
            let what = format!("a message by {clients} clients, {}", way.name());
            report.target(&what, &format!("p99 {} ms", number(ours[2])), "p99 < 10 ms", ours[2] < SLOWEST);
        }
    }
    for (way, other) in Way::ALL.into_iter().zip(ours).skip(1) {
        let ratio = other[0] / ours[0][0];
        let what = format!("messages by {clients} clients, {} beside the socket", way.name());
        report.target(&what, &number(ratio), &format!(">= {TCP_SHARE}"), ratio >= TCP_SHARE);
    }
}

async fn store_messages(
    bench: &Bench,
    address: SocketAddr,
    count: &Arc<AtomicUsize>,
    clients: usize,
    sessions: &[String],
    seconds: u64,
) -> Outcome {
    let text: Arc<str> = prose(1, SIZE).into();
    let warm_up = Duration::from_millis(bench.pick(300, 100));
    let plan = Plan { clients, warm_up, time: bench.seconds(seconds) };
    drive(address, plan, |client| -> Source {
        let (text, count) = (Arc::clone(&text), Arc::clone(count));
        let session = sessions[client % sessions.len()].clone();
        Box::new(move || Some(message(&session, count.fetch_add(1, Ordering::Relaxed), &text)))
    })
    .await
}

/// A request that stores the beginning of a text with a number before it.
pub fn message(session: &str, number: usize, text: &str) -> Request {
    let number = format!("{number:09} ");
    let content = [&number, &text[..SIZE - number.len()]].concat();
    store(session, &json!({"role": "user", "content": content}))
}

/// A request that stores a message in the format `openai`.
pub fn store(session: &str, message: &serde_json::Value) -> Request {
    let body = Bytes::from(json!({"format": "openai", "blob": message}).to_string());
    Request::post_json("POST", &format!("/api/v1/session/{session}/messages"), body)
}

fn row(label: &str, outcome: &Outcome, cpu: Duration) -> Vec<String> {
    let times = outcome.times(None);
    let per_message = cpu.as_secs_f64() * 1e6 / real(outcome.count());
    vec![
        label.to_owned(),
        number(outcome.per_second()),
        number(times.p50()),
        number(times.p99()),
        number(per_message),
        outcome.failed().to_string(),
    ]
}

/// The middle of each column.
fn middle(runs: &[[f64; 3]]) -> [f64; 3] {
    [0, 1, 2].map(|at| median(runs.iter().map(|run| run[at]).collect()))
}
