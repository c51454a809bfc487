//! Requests to an encrypted and to an unencrypted (*plain*) project on the same server, which are measured alternately:
//! pages of messages, grep, and storing messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;
use serde_json::Value;

use crate::Bench;
use crate::conversation::{openai_message, page_request, run_reads};
use crate::corpus::{create_texts, prose, upload};
use crate::http::{Client, Request, percent_encode};
use crate::load::{Outcome, Plan, Source, Times, median, run_load, to_f64};
use crate::messages::{store_message, store_numbered};
use crate::project::Project;
use crate::report::{Report, Table, number};
use crate::search::QUERIES;
use crate::server::Server;

/// The number of messages in the session that is read, and the size of the text of a message in bytes.
const MESSAGES: usize = 200;
const SIZE: usize = 2_000;
/// The number of messages that are read, and the format: the stored format, or one to which the messages are converted.
const PAGES: [(usize, &str); 4] = [(20, "openai"), (20, "anthropic"), (200, "openai"), (200, "anthropic")];
/// The number of requests of one client that are counted, and of those before that are not counted.
const REQUESTS: usize = 400;
const WARM_UP_REQUESTS: usize = 50;
const GREP_REQUESTS: usize = 7;
/// The number and the duration of the rounds with [`CLIENTS`] clients.
const ROUNDS: usize = 10;
const SECONDS: u64 = 1;
const CLIENTS: usize = 16;
/// The number of sessions in which messages are stored.
const SESSIONS: usize = 64;
/// The targets for the ratio of p50 between the encrypted and the plain project.
const MAX_PAGE_RATIO: f64 = 1.3;
const MAX_GREP_RATIO: f64 = 2.0;

/// A server with a plain project and an encrypted one.
struct ProjectPair<'a> {
    bench: &'a Bench,
    server: Server,
    client: Client,
    projects: [Project; 2],
}

pub async fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let server = Server::start(bench, "encrypted-workload").await?;
    let mut client = server.client().await?;
    let projects = [Project::create(&mut client).await?, Project::create(&mut client).await?];
    projects[1].convert(&mut client, true, 0).await?;
    let mut pair = ProjectPair { bench, server, client, projects };
    let mut single_client = Table::new(&[
        "one client",
        "plain p50 ms",
        "plain p99 ms",
        "encrypted p50 ms",
        "encrypted p99 ms",
        "ratio of p50",
    ]);
    let mut many_clients = Table::new(&[
        "16 clients",
        "plain requests/s",
        "plain p50 ms",
        "plain CPU us",
        "encrypted requests/s",
        "encrypted p50 ms",
        "encrypted CPU us",
        "ratio of p50",
        "ratio of CPU",
    ]);
    pair.measure_pages(report, &mut single_client, &mut many_clients).await?;
    pair.measure_greps(report, &mut single_client).await?;
    pair.measure_posts(&mut many_clients).await?;
    pair.server.stop()?;
    report.add_text(&format!(
        "A plain project and an encrypted one on one server, with the same content. Pages contain the newest messages \
         of a session of {MESSAGES} messages of {SIZE} bytes, stored in the format `openai`. The disk that is searched \
         has the files of `grep`. The messages that are stored have 1 KiB. *One client* sends its requests alternately \
         to both projects: {REQUESTS} for each page, {GREP_REQUESTS} for each search. *{CLIENTS} clients* send their \
         requests to both projects alternately in {ROUNDS} rounds of {SECONDS} s. The numbers are medians of the \
         rounds, the ratios are medians of the ratios of each round, and *CPU us* is the server's CPU time per \
         request."
    ));
    report.add_table("Encrypted and plain, one client", &single_client);
    report.add_table("Encrypted and plain, 16 clients", &many_clients);
    Ok(())
}

impl ProjectPair<'_> {
    async fn measure_pages(
        &mut self,
        report: &mut Report,
        single_client: &mut Table,
        many_clients: &mut Table,
    ) -> anyhow::Result<()> {
        let mut sessions = Vec::new();
        for project in &self.projects {
            let session = project.new_session(&mut self.client, false).await?;
            for number in 0..MESSAGES {
                self.client.data(&project.with_key(store_message(&session, &openai_message(number, SIZE)))).await?;
            }
            sessions.push(session);
        }
        for (limit, format) in PAGES {
            let requests =
                [0, 1].map(|index| self.projects[index].with_key(page_request(&sessions[index], limit, format)));
            let items = |page: &Value| page["items"].clone();
            let name = format!("page of {limit}, {format}");
            let ratio = self.alternate(&name, &requests, [WARM_UP_REQUESTS, REQUESTS], items, single_client).await?;
            let measured = format!("{} times", number(ratio));
            report.add_target(&format!("{name}, one client"), &measured, "<= 1.3 times plain", ratio <= MAX_PAGE_RATIO);
            let (bench, server) = (self.bench, &self.server);
            let ratio = self
                .run_rounds(
                    &name,
                    async |index| run_reads(bench, server, CLIENTS, &requests[index], SECONDS).await,
                    many_clients,
                )
                .await?;
            let measured = format!("{} times", number(ratio));
            report.add_target(&format!("{name}, 16 clients"), &measured, "<= 1.3 times plain", ratio <= MAX_PAGE_RATIO);
        }
        Ok(())
    }

    async fn measure_greps(&mut self, report: &mut Report, single_client: &mut Table) -> anyhow::Result<()> {
        let (texts, mut disks) = (create_texts(self.bench), Vec::new());
        for project in &self.projects {
            let (disk, key) = (project.new_disk(&mut self.client).await?, project.key.clone());
            upload(&self.server, &disk, texts.clone(), move |request| request.with_key(&key)).await?;
            disks.push(disk);
        }
        for (name, pattern, expected) in QUERIES {
            let requests = [0, 1].map(|index| {
                let query = percent_encode(pattern);
                let path = format!("/api/v1/disk/{}/artifact/grep?limit=200&query={query}", disks[index]);
                self.projects[index].with_key(Request::get("grep", &path))
            });
            let files = |found: &Value| found.as_array().map_or(0, Vec::len);
            let found = files(&self.client.data(&requests[1]).await?);
            ensure!(found == expected, "{name}: {found} files instead of {expected}");
            let ratio =
                self.alternate(&format!("grep, {name}"), &requests, [1, GREP_REQUESTS], files, single_client).await?;
            let measured = format!("{} times", number(ratio));
            report.add_target(&format!("grep, {name}"), &measured, "<= 2 times plain", ratio <= MAX_GREP_RATIO);
        }
        Ok(())
    }

    async fn measure_posts(&mut self, many_clients: &mut Table) -> anyhow::Result<()> {
        let (text, count): (Arc<str>, _) = (prose(1, 1 << 10).into(), Arc::new(AtomicUsize::new(0)));
        let mut sessions = [Vec::new(), Vec::new()];
        for (project, sessions) in self.projects.iter().zip(&mut sessions) {
            for _ in 0..SESSIONS {
                sessions.push(project.new_session(&mut self.client, true).await?);
            }
        }
        let plan = Plan {
            clients: CLIENTS,
            warm_up: Duration::from_millis(self.bench.full_or_quick(300, 100)),
            time: self.bench.seconds(SECONDS),
        };
        let post = async |index: usize| {
            run_load(self.server.address, plan, |client| -> Source {
                let (text, count, key) = (Arc::clone(&text), Arc::clone(&count), self.projects[index].key.clone());
                let session = sessions[index][client % SESSIONS].clone();
                Box::new(move || {
                    Some(store_numbered(&session, count.fetch_add(1, Ordering::Relaxed), &text).with_key(&key))
                })
            })
            .await
        };
        self.run_rounds("POST of a message", post, many_clients).await.map(drop)
    }

    /// Sends the requests alternately to both projects and does not count the first `warm_up` of them. Checks that the
    /// values that `extract` returns for both responses are equal. Returns the ratio of p50.
    async fn alternate<T: PartialEq>(
        &mut self,
        name: &str,
        requests: &[Request; 2],
        [warm_up, count]: [usize; 2],
        extract: impl Fn(&Value) -> T,
        table: &mut Table,
    ) -> anyhow::Result<f64> {
        let [plain, encrypted] = requests;
        let mut times = [Vec::new(), Vec::new()];
        for number in 0..self.bench.full_or_quick(warm_up + count, warm_up.min(2) + 5) {
            let one = self.client.timed(plain).await?;
            let other = self.client.timed(encrypted).await?;
            ensure!(extract(&one.0) == extract(&other.0), "{name}: the responses of the projects differ");
            if number >= self.bench.full_or_quick(warm_up, warm_up.min(2)) {
                times[0].push(one.1);
                times[1].push(other.1);
            }
        }
        let times = times.map(Times::from_iter);
        let ratio = times[1].p50() / times[0].p50();
        let cells = times.iter().flat_map(|times| [times.p50(), times.p99()]).chain([ratio]).map(number);
        table.add_row([name.to_owned()].into_iter().chain(cells));
        Ok(ratio)
    }

    /// Runs the load alternately against both projects. Returns the ratio of p50.
    async fn run_rounds(
        &self,
        name: &str,
        send: impl AsyncFn(usize) -> Outcome,
        table: &mut Table,
    ) -> anyhow::Result<f64> {
        let mut samples = [const { [const { Vec::new() }; 3] }; 2];
        for _ in 0..self.bench.full_or_quick(ROUNDS, 1) {
            for (index, samples) in samples.iter_mut().enumerate() {
                let before = self.server.process.cpu_time()?;
                let outcome = send(index).await;
                let cpu = self.server.process.cpu_time()?.saturating_sub(before);
                ensure!(outcome.failed() == 0, "{name}: {:?}", outcome.failures());
                let cpu_per_request = cpu.as_secs_f64() * 1e6 / to_f64(outcome.count());
                for (samples, number) in
                    samples.iter_mut().zip([outcome.per_second(), outcome.times(None).p50(), cpu_per_request])
                {
                    samples.push(number);
                }
            }
        }
        // The ratios of adjacent rounds, which ran under the same load of the machine.
        let ratio = |index: usize| {
            median(samples[0][index].iter().zip(&samples[1][index]).map(|(one, other)| other / one).collect())
        };
        let ratios = [1, 2].map(ratio);
        let [plain, encrypted] = samples.map(|samples| samples.map(median));
        let cells = plain.into_iter().chain(encrypted).chain(ratios).map(number);
        table.add_row([name.to_owned()].into_iter().chain(cells));
        Ok(ratios[0])
    }
}
