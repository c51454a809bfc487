//! grep beside ripgrep on the same bytes, and glob and ls, over ten thousand files.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::corpus::{self, Corpus};
use crate::http::{Client, Request, percent_encode};
use crate::load::{Times, median, real};
use crate::report::{Report, Table, number};
use crate::{Bench, block_on};

/// How often each is asked.
const GREPS: usize = 5;
const LISTS: usize = 200;
/// How much slower than ripgrep a grep may be.
const RATIO: f64 = 3.0;
/// What glob and ls may take, in milliseconds.
const LIST: f64 = 20.0;

pub const QUERIES: [(&str, &str, usize); 3] = [
    ("a word that is nowhere", corpus::NOWHERE, 0),
    ("a word in 5 files", corpus::SOMEWHERE, corpus::WITH_WORD),
    ("a regular expression, in 7 files", corpus::NUMBERED, corpus::WITH_NUMBERED),
];

pub fn grep(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(&["query", "pattern", "server files", "rg files", "server ms", "rg ms", "server/rg"]);
    let with_rg = ripgrep(Path::new("."), corpus::NOWHERE).is_ok();
    block_on(async {
        let corpus = Corpus::make(bench).await?;
        report.text(&format!(
            "{} files, {} MB in all. The median of {GREPS} runs, by turns, after one that does not count: the request of \
             one client, and `rg -i -l` from its start to its end on the same files in a folder.",
            corpus.files,
            number(real(corpus.bytes) / 1e6),
        ));
        if !with_rg {
            report.text("**ripgrep is not installed (`apt-get install ripgrep`): the right half is missing.**");
        }
        let mut client = corpus.server.client().await?;
        for (name, pattern, expected) in QUERIES {
            let one = query(&mut client, &corpus, pattern, with_rg).await?;
            ensure!(one.server_files == expected, "{name}: {} files instead of {expected}", one.server_files);
            let rg = |text: String| if with_rg { text } else { "-".into() };
            table.row([
                name.to_owned(),
                format!("`{}`", pattern.replace('|', "\\|")),
                one.server_files.to_string(),
                rg(one.rg_files.to_string()),
                number(one.server),
                rg(number(one.rg)),
                rg(number(one.server / one.rg)),
            ]);
            if with_rg {
                let ratio = one.server / one.rg;
                report.target(
                    &format!("grep: {name}"),
                    &format!("{} x rg", number(ratio)),
                    "<= 3 x rg",
                    ratio <= RATIO,
                );
            }
        }
        corpus.server.stop()
    })?;
    report.table("grep", &table);
    Ok(())
}

/// How many files, and the median in milliseconds.
struct Compared {
    server_files: usize,
    rg_files: usize,
    server: f64,
    rg: f64,
}

async fn query(client: &mut Client, corpus: &Corpus, pattern: &str, with_rg: bool) -> anyhow::Result<Compared> {
    let path = format!("/api/v1/disk/{}/artifact/grep?limit=200&query={}", corpus.disk, percent_encode(pattern));
    let request = Request::get("grep", &path);
    let (mut server, mut rg) = (Vec::new(), Vec::new());
    let (mut server_files, mut rg_files) = (0, 0);
    for _ in 0..=GREPS {
        let (found, time) = client.timed(&request).await?;
        server.push(time);
        server_files = found.as_array().map_or(0, Vec::len);
        if with_rg {
            let start = Instant::now();
            rg_files = ripgrep(&corpus.folder, pattern)?;
            rg.push(start.elapsed());
        }
    }
    let middle = |times: Vec<Duration>| median(times.iter().skip(1).map(|time| time.as_secs_f64() * 1000.0).collect());
    Ok(Compared { server_files, rg_files, server: middle(server), rg: middle(rg) })
}

/// How many files ripgrep finds.
fn ripgrep(folder: &Path, pattern: &str) -> anyhow::Result<usize> {
    let mut command = Command::new("rg");
    command.args(["--no-config", "--no-ignore", "--hidden", "-i", "-l", "-e", pattern]).arg(folder);
    let done = command.stdin(Stdio::null()).output().context("rg cannot be run")?;
    Ok(String::from_utf8_lossy(&done.stdout).lines().count())
}

pub fn names(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(&["request", "answers", "p50 ms", "p99 ms"]);
    block_on(async {
        let corpus = Corpus::make(bench).await?;
        let mut client = corpus.server.client().await?;
        report.text(&format!(
            "{} files in 100 directories; {LISTS} requests of one client, one after the other. Answers are files and \
             directories.",
            corpus.files
        ));
        let of = |what: &str| format!("/api/v1/disk/{}/artifact/{what}", corpus.disk);
        for (name, path) in [
            ("glob `*.md`, limit 100", of("glob?limit=100&query=*.md")),
            ("glob `*needle*`, which is nowhere", of("glob?limit=100&query=*needle*")),
            ("glob `/dir42/*`, limit 100", of("glob?limit=100&query=/dir42/*")),
            ("ls `/`", of("ls?path=/")),
            ("ls `/dir42/`", of("ls?path=/dir42/")),
        ] {
            let request = Request::get("list", &path);
            let (mut times, mut answers) = (Vec::new(), 0);
            for _ in 0..bench.pick(LISTS, 20) {
                let (answer, time) = client.timed(&request).await?;
                times.push(time);
                let lists = [&answer, &answer["artifacts"], &answer["directories"]];
                answers = lists.iter().filter_map(|list| list.as_array()).map(Vec::len).sum();
            }
            let times: Times = times.into_iter().collect();
            table.row([name.to_owned(), answers.to_string(), number(times.p50()), number(times.p99())]);
            report.target(name, &format!("p50 {} ms", number(times.p50())), "p50 < 20 ms", times.p50() < LIST);
        }
        corpus.server.stop()
    })?;
    report.table("glob and ls", &table);
    Ok(())
}
