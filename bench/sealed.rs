//! Working in an encrypted project and in a plain one on the same server, by turns: pages of messages, grep, storing messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;
use serde_json::Value;

use crate::Bench;
use crate::conversation::{page, read, said};
use crate::corpus::{prose, texts, upload};
use crate::http::{Client, Request, percent_encode};
use crate::load::{Outcome, Plan, Source, Times, drive, median, real};
use crate::messages::{message, store};
use crate::project::Project;
use crate::report::{Report, Table, number};
use crate::search::QUERIES;
use crate::server::Server;

/// Of a session that is read, and of the text of a message, in bytes.
const MESSAGES: usize = 200;
const SIZE: usize = 2_000;
/// How many of the newest messages are read, and in which format: it is passed on as it is, or written anew.
const PAGES: [(usize, &str); 4] = [(20, "openai"), (20, "anthropic"), (200, "openai"), (200, "anthropic")];
/// How often one client asks; the first ones do not count.
const ASKED: usize = 400;
const FIRST: usize = 50;
const GREPS: usize = 7;
/// Rounds of so many seconds by so many clients.
const ROUNDS: usize = 10;
const SECONDS: u64 = 1;
const CLIENTS: usize = 16;
/// Those that messages are stored in.
const SESSIONS: usize = 64;
/// Of p50, encrypted to plain.
const PAGE_RATIO: f64 = 1.3;
const GREP_RATIO: f64 = 2.0;

/// A plain project and an encrypted one.
struct Pair<'a> {
    bench: &'a Bench,
    server: Server,
    client: Client,
    projects: [Project; 2],
}

pub async fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let server = Server::start(bench, "sealed").await?;
    let mut client = server.client().await?;
    let projects = [Project::make(&mut client).await?, Project::make(&mut client).await?];
    projects[1].convert(&mut client, true, 0).await?;
    let mut pair = Pair { bench, server, client, projects };
    let mut by_one = Table::new(&[
        "one client",
        "plain p50 ms",
        "plain p99 ms",
        "encrypted p50 ms",
        "encrypted p99 ms",
        "ratio of p50",
    ]);
    let mut by_many = Table::new(&[
        "16 clients",
        "plain a second",
        "plain p50 ms",
        "plain CPU us",
        "encrypted a second",
        "encrypted p50 ms",
        "encrypted CPU us",
        "ratio of p50",
        "ratio of CPU",
    ]);
    pair.pages(report, &mut by_one, &mut by_many).await?;
    pair.greps(report, &mut by_one).await?;
    pair.posts(&mut by_many).await?;
    pair.server.stop()?;
    report.text(&format!(
        "A plain project and an encrypted one on one server, with the same content. Pages are of the newest messages of a \
         session of {MESSAGES}, of {SIZE} bytes each, stored in the format `openai`; the disk that is searched has the \
         files of `grep`; the messages that are stored have 1 KiB. One client asks both by turns, request by request: \
         {ASKED} times for a page, {GREPS} times for a search. {CLIENTS} clients ask both by turns for {ROUNDS} rounds of \
         {SECONDS} s: the median of the rounds, and of the ratios of each two; with the server's CPU time for an answer."
    ));
    report.table("Encrypted and plain, one client", &by_one);
    report.table("Encrypted and plain, 16 clients", &by_many);
    Ok(())
}

impl Pair<'_> {
    async fn pages(&mut self, report: &mut Report, by_one: &mut Table, by_many: &mut Table) -> anyhow::Result<()> {
        let mut sessions = Vec::new();
        for project in &self.projects {
            let session = project.new_session(&mut self.client, false).await?;
            for number in 0..MESSAGES {
                self.client.data(&project.asks(store(&session, &said(number, SIZE)))).await?;
            }
            sessions.push(session);
        }
        for (limit, format) in PAGES {
            let requests = [0, 1].map(|at| self.projects[at].asks(page(&sessions[at], limit, format)));
            let items = |page: &Value| page["items"].clone();
            let name = format!("page of {limit}, {format}");
            let ratio = self.alternate(&name, &requests, [FIRST, ASKED], items, by_one).await?;
            let measured = format!("{} times", number(ratio));
            report.target(&format!("{name}, one client"), &measured, "<= 1.3 times plain", ratio <= PAGE_RATIO);
            let (bench, server) = (self.bench, &self.server);
            let ratio = self
                .rounds(&name, async |at| read(bench, server, CLIENTS, &requests[at], SECONDS).await, by_many)
                .await?;
            let measured = format!("{} times", number(ratio));
            report.target(&format!("{name}, 16 clients"), &measured, "<= 1.3 times plain", ratio <= PAGE_RATIO);
        }
        Ok(())
    }

    async fn greps(&mut self, report: &mut Report, by_one: &mut Table) -> anyhow::Result<()> {
        let (texts, mut disks) = (texts(self.bench), Vec::new());
        for project in &self.projects {
            let (disk, key) = (project.new_disk(&mut self.client).await?, project.key.clone());
            upload(&self.server, &disk, texts.clone(), move |request| request.with_key(&key)).await?;
            disks.push(disk);
        }
        for (name, pattern, expected) in QUERIES {
            let requests = [0, 1].map(|at| {
                let query = percent_encode(pattern);
                let path = format!("/api/v1/disk/{}/artifact/grep?limit=200&query={query}", disks[at]);
                self.projects[at].asks(Request::get("grep", &path))
            });
            let files = |found: &Value| found.as_array().map_or(0, Vec::len);
            let found = files(&self.client.data(&requests[1]).await?);
            ensure!(found == expected, "{name}: {found} files instead of {expected}");
            let ratio = self.alternate(&format!("grep, {name}"), &requests, [1, GREPS], files, by_one).await?;
            let measured = format!("{} times", number(ratio));
            report.target(&format!("grep, {name}"), &measured, "<= 2 times plain", ratio <= GREP_RATIO);
        }
        Ok(())
    }

    async fn posts(&mut self, by_many: &mut Table) -> anyhow::Result<()> {
        let (text, count): (Arc<str>, _) = (prose(1, 1 << 10).into(), Arc::new(AtomicUsize::new(0)));
        let mut sessions = [Vec::new(), Vec::new()];
        for (project, sessions) in self.projects.iter().zip(&mut sessions) {
            for _ in 0..SESSIONS {
                sessions.push(project.new_session(&mut self.client, true).await?);
            }
        }
        let plan = Plan {
            clients: CLIENTS,
            warm_up: Duration::from_millis(self.bench.pick(300, 100)),
            time: self.bench.seconds(SECONDS),
        };
        let post = async |at: usize| {
            drive(self.server.address, plan, |client| -> Source {
                let (text, count, key) = (Arc::clone(&text), Arc::clone(&count), self.projects[at].key.clone());
                let session = sessions[at][client % SESSIONS].clone();
                Box::new(move || Some(message(&session, count.fetch_add(1, Ordering::Relaxed), &text).with_key(&key)))
            })
            .await
        };
        self.rounds("POST of a message", post, by_many).await.map(drop)
    }

    /// Asks both by turns, the first ones uncounted; what they answer must be the same. Answers with the ratio of p50.
    async fn alternate<T: PartialEq>(
        &mut self,
        name: &str,
        requests: &[Request; 2],
        [first, asked]: [usize; 2],
        answer: impl Fn(&Value) -> T,
        table: &mut Table,
    ) -> anyhow::Result<f64> {
        let [plain, encrypted] = requests;
        let mut times = [Vec::new(), Vec::new()];
        for number in 0..self.bench.pick(first + asked, first.min(2) + 5) {
            let one = self.client.timed(plain).await?;
            let other = self.client.timed(encrypted).await?;
            ensure!(answer(&one.0) == answer(&other.0), "{name}: the projects answer differently");
            if number >= self.bench.pick(first, first.min(2)) {
                times[0].push(one.1);
                times[1].push(other.1);
            }
        }
        let times = times.map(Times::from_iter);
        let ratio = times[1].p50() / times[0].p50();
        let cells = times.iter().flat_map(|times| [times.p50(), times.p99()]).chain([ratio]).map(number);
        table.row([name.to_owned()].into_iter().chain(cells));
        Ok(ratio)
    }

    /// Lets many clients ask both by turns. Answers with the ratio of p50.
    async fn rounds(&self, name: &str, ask: impl AsyncFn(usize) -> Outcome, table: &mut Table) -> anyhow::Result<f64> {
        let mut seen = [const { [const { Vec::new() }; 3] }; 2];
        for _ in 0..self.bench.pick(ROUNDS, 1) {
            for (at, seen) in seen.iter_mut().enumerate() {
                let before = self.server.process.cpu_time()?;
                let outcome = ask(at).await;
                let cpu = self.server.process.cpu_time()?.saturating_sub(before);
                ensure!(outcome.failed() == 0, "{name}: {:?}", outcome.failures());
                let each = cpu.as_secs_f64() * 1e6 / real(outcome.count());
                for (seen, number) in seen.iter_mut().zip([outcome.per_second(), outcome.times(None).p50(), each]) {
                    seen.push(number);
                }
            }
        }
        // Of neighbours, which had the same company.
        let ratio = |at: usize| median(seen[0][at].iter().zip(&seen[1][at]).map(|(one, other)| other / one).collect());
        let ratios = [1, 2].map(ratio);
        let [plain, encrypted] = seen.map(|seen| seen.map(median));
        let cells = plain.into_iter().chain(encrypted).chain(ratios).map(number);
        table.row([name.to_owned()].into_iter().chain(cells));
        Ok(ratios[0])
    }
}
