//! grep over ten thousand files, compared with ripgrep on the same files; and glob and ls over these files.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::corpus::{self, Corpus};
use crate::http::{Client, Request, percent_encode};
use crate::load::{Times, median, to_f64};
use crate::report::{Report, Table, number};
use crate::{Bench, block_on};

/// The number of counted rounds of each search, and of requests of each list.
const GREP_ROUNDS: usize = 5;
const LIST_REQUESTS: usize = 200;
/// The target for the ratio of the times of grep and ripgrep.
const MAX_RATIO: f64 = 3.0;
/// The target for p50 of glob and ls, in milliseconds.
const MAX_LIST_MS: f64 = 20.0;

/// The name of each query, its pattern, and the number of files that match.
pub const QUERIES: [(&str, &str, usize); 3] = [
    ("a word in no file", corpus::ABSENT_WORD, 0),
    ("a word in 5 files", corpus::RARE_WORD, corpus::FILES_WITH_WORD),
    ("a regular expression, in 7 files", corpus::NUMBERED_REGEX, corpus::FILES_WITH_NUMBERED),
];

pub fn grep(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(&["query", "pattern", "server files", "rg files", "server ms", "rg ms", "server/rg"]);
    let with_rg = run_ripgrep(Path::new("."), corpus::ABSENT_WORD).is_ok();
    block_on(async {
        let corpus = Corpus::create(bench).await?;
        report.add_text(&format!(
            "{} files of {} MB in total. The times are medians of {GREP_ROUNDS} runs after one that is not counted. \
             The server and ripgrep run alternately: a request of one client, and `rg -i -l` from its start to its end \
             on the same files in a local directory.",
            corpus.files,
            number(to_f64(corpus.bytes) / 1e6),
        ));
        if !with_rg {
            report.add_text("**ripgrep is not installed (`apt-get install ripgrep`): its columns are empty.**");
        }
        let mut client = corpus.server.client().await?;
        for (name, pattern, expected) in QUERIES {
            let comparison = compare(&mut client, &corpus, pattern, with_rg).await?;
            ensure!(
                comparison.server_files == expected,
                "{name}: {} files instead of {expected}",
                comparison.server_files
            );
            let rg = |text: String| if with_rg { text } else { "-".into() };
            table.add_row([
                name.to_owned(),
                format!("`{}`", pattern.replace('|', "\\|")),
                comparison.server_files.to_string(),
                rg(comparison.rg_files.to_string()),
                number(comparison.server),
                rg(number(comparison.rg)),
                rg(number(comparison.server / comparison.rg)),
            ]);
            if with_rg {
                let ratio = comparison.server / comparison.rg;
                report.add_target(
                    &format!("grep: {name}"),
                    &format!("{} x rg", number(ratio)),
                    "<= 3 x rg",
                    ratio <= MAX_RATIO,
                );
            }
        }
        corpus.server.stop()
    })?;
    report.add_table("grep", &table);
    Ok(())
}

/// The numbers of files found, and the median times in milliseconds.
struct Comparison {
    server_files: usize,
    rg_files: usize,
    server: f64,
    rg: f64,
}

async fn compare(client: &mut Client, corpus: &Corpus, pattern: &str, with_rg: bool) -> anyhow::Result<Comparison> {
    let path = format!("/api/v1/disk/{}/artifact/grep?limit=200&query={}", corpus.disk, percent_encode(pattern));
    let request = Request::get("grep", &path);
    let (mut server, mut rg) = (Vec::new(), Vec::new());
    let (mut server_files, mut rg_files) = (0, 0);
    for _ in 0..=GREP_ROUNDS {
        let (found, time) = client.timed(&request).await?;
        server.push(time);
        server_files = found.as_array().map_or(0, Vec::len);
        if with_rg {
            let start = Instant::now();
            rg_files = run_ripgrep(&corpus.dir, pattern)?;
            rg.push(start.elapsed());
        }
    }
    let median_ms =
        |times: Vec<Duration>| median(times.iter().skip(1).map(|time| time.as_secs_f64() * 1000.0).collect());
    Ok(Comparison { server_files, rg_files, server: median_ms(server), rg: median_ms(rg) })
}

/// Runs ripgrep and returns the number of files that it finds.
fn run_ripgrep(dir: &Path, pattern: &str) -> anyhow::Result<usize> {
    let mut command = Command::new("rg");
    command.args(["--no-config", "--no-ignore", "--hidden", "-i", "-l", "-e", pattern]).arg(dir);
    let output = command.stdin(Stdio::null()).output().context("cannot run rg")?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().count())
}

pub fn names(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(&["request", "entries", "p50 ms", "p99 ms"]);
    block_on(async {
        let corpus = Corpus::create(bench).await?;
        let mut client = corpus.server.client().await?;
        report.add_text(&format!(
            "{} files in 100 directories. One client sends {LIST_REQUESTS} requests, one after the other. *entries* is \
             the number of files and directories in the response.",
            corpus.files
        ));
        let url = |what: &str| format!("/api/v1/disk/{}/artifact/{what}", corpus.disk);
        for (name, path) in [
            ("glob `*.md`, limit 100", url("glob?limit=100&query=*.md")),
            ("glob `*needle*`, which matches nothing", url("glob?limit=100&query=*needle*")),
            ("glob `/dir42/*`, limit 100", url("glob?limit=100&query=/dir42/*")),
            ("ls `/`", url("ls?path=/")),
            ("ls `/dir42/`", url("ls?path=/dir42/")),
        ] {
            let request = Request::get("list", &path);
            let (mut times, mut entries) = (Vec::new(), 0);
            for _ in 0..bench.full_or_quick(LIST_REQUESTS, 20) {
                let (response, time) = client.timed(&request).await?;
                times.push(time);
                let lists = [&response, &response["artifacts"], &response["directories"]];
                entries = lists.iter().filter_map(|list| list.as_array()).map(Vec::len).sum();
            }
            let times: Times = times.into_iter().collect();
            table.add_row([name.to_owned(), entries.to_string(), number(times.p50()), number(times.p99())]);
            report.add_target(
                name,
                &format!("p50 {} ms", number(times.p50())),
                "p50 < 20 ms",
                times.p50() < MAX_LIST_MS,
            );
        }
        corpus.server.stop()
    })?;
    report.add_table("glob and ls", &table);
    Ok(())
}
