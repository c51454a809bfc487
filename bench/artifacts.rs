//! Storing and reading files of three sizes by 1, 4 and 16 clients, beside the disk's own rate.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rand::RngCore;

use crate::http::{Request, percent_encode};
use crate::load::{Outcome, Plan, Source, drive, real};
use crate::report::{Report, Table, number};
use crate::server::{Server, new_folder};
use crate::{Bench, block_on, disk};

const SIZES: [(&str, usize); 3] = [("1 KiB", 1 << 10), ("1 MiB", 1 << 20), ("16 MiB", 16 << 20)];
const CLIENTS: [usize; 3] = [1, 4, 16];
/// How many files are read in turns.
const READ: usize = 16;
const HEADS: [&str; 9] = [
    "size x clients",
    "server files/s",
    "server MiB/s",
    "p50 ms",
    "p99 ms",
    "disk files/s",
    "disk MiB/s",
    "disk p50 ms",
    "server/disk",
];

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let mut stored = Table::new(&HEADS);
    let mut read = Table::new(&HEADS);
    block_on(async {
        let server = Server::start(bench, "artifacts").await?;
        let disk = server.client().await?.new_disk().await?;
        let run = Run { bench, server, disk, random: random() };
        for (name, size) in SIZES {
            run.size(name, size, &mut stored, &mut read).await?;
        }
        run.server.stop()
    })?;
    report.text(
        "Left the server (each file with a content of its own over HTTP, except where it says equal), right the disk: as \
         many threads that write a file, fsync it, rename it and fsync its folder.",
    );
    report.table("PUT", &stored);
    report.text(
        "Left `download` of the server, right as many threads that read files; both in turns the same few files, which the \
         page cache holds.",
    );
    report.table("GET", &read);
    Ok(())
}

/// Bytes that do not compress.
fn random() -> Bytes {
    let mut bytes = vec![0; 16 << 20];
    rand::rng().fill_bytes(&mut bytes);
    bytes.into()
}

struct Run<'a> {
    bench: &'a Bench,
    server: Server,
    disk: String,
    random: Bytes,
}

impl Run<'_> {
    async fn size(&self, name: &str, size: usize, stored: &mut Table, read: &mut Table) -> anyhow::Result<()> {
        let folder = new_folder(&self.bench.folder, "disk")?;
        for clients in CLIENTS {
            let (plan, label) = (self.plan(clients), format!("{name} x {clients}"));
            let ours = self.store(plan, size, false).await;
            let disk = disk::write_files(&folder, plan, size)?;
            stored.row(row(&label, size, &ours, &disk));
            if size == 1 << 20 && clients == 4 {
                let ours = self.store(plan, size, true).await;
                stored.row(row(&format!("{label}, equal"), size, &ours, &disk));
            }
            new_folder(&self.bench.folder, "disk")?;
            self.settle().await;
        }
        let files = self.files_to_read(size).await?;
        for clients in CLIENTS {
            let plan = self.plan(clients);
            let ours = self.download(plan, size).await;
            let disk = disk::read_files(&files, plan)?;
            read.row(row(&format!("{name} x {clients}"), size, &ours, &disk));
        }
        Ok(())
    }

    /// Lets the disk be done with what was removed.
    async fn settle(&self) {
        rustix::fs::sync();
        tokio::time::sleep(self.bench.seconds(1)).await;
    }

    fn plan(&self, clients: usize) -> Plan {
        Plan { clients, warm_up: Duration::from_millis(self.bench.pick(500, 100)), time: self.bench.seconds(4) }
    }

    /// Uploads new files.
    async fn store(&self, plan: Plan, size: usize, equal: bool) -> Outcome {
        let count = Arc::new(AtomicUsize::new(0));
        let directory = format!("/{size}-{}-{equal}/", plan.clients);
        drive(self.server.address, plan, |_| {
            let (disk, random, count, directory) =
                (self.disk.clone(), self.random.clone(), Arc::clone(&count), directory.clone());
            Box::new(move || {
                let number = count.fetch_add(1, Ordering::Relaxed);
                let content = content(
                    &random,
                    size,
                    if equal { format!("{size} equal") } else { format!("{directory}{number}") },
                );
                Some(Request::upload("PUT", &disk, &directory, &format!("{number}.bin"), content))
            })
        })
        .await
    }

    /// The same files on the server and in a folder.
    async fn files_to_read(&self, size: usize) -> anyhow::Result<Vec<PathBuf>> {
        let folder = new_folder(&self.bench.folder, "disk")?;
        let mut client = self.server.client().await?;
        let mut files = Vec::new();
        for number in 0..READ {
            let content = content(&self.random, size, format!("read {size} {number}"));
            let file = folder.join(number.to_string());
            std::fs::write(&file, content.concat())?;
            files.push(file);
            let name = format!("{number}.bin");
            client.data(&Request::upload("PUT", &self.disk, &format!("/read-{size}/"), &name, content)).await?;
        }
        Ok(files)
    }

    async fn download(&self, plan: Plan, size: usize) -> Outcome {
        let path = |number: usize| {
            let file = percent_encode(&format!("/read-{size}/{number}.bin"));
            format!("/api/v1/disk/{}/artifact/download?file_path={file}", self.disk)
        };
        let requests: Vec<Request> = (0..READ).map(|number| Request::get("GET", &path(number))).collect();
        drive(self.server.address, plan, |client| -> Source {
            let mut next = requests.clone().into_iter().cycle().skip(client);
            Box::new(move || next.next())
        })
        .await
    }
}

/// A content of that size that begins with `name`.
pub fn content(random: &Bytes, size: usize, name: String) -> [Bytes; 2] {
    let name = Bytes::from(name);
    let rest = random.slice(name.len()..size);
    [name, rest]
}

fn row(label: &str, size: usize, ours: &Outcome, disk: &Outcome) -> Vec<String> {
    let mib = |files: f64| files * real(size as u64) / 1_048_576.0;
    let (our_times, disk_times) = (ours.times(None), disk.times(None));
    let failed = ours.failed();
    let label = if failed > 0 { format!("{label} ({failed} failed)") } else { label.to_owned() };
    vec![
        label,
        number(ours.per_second()),
        number(mib(ours.per_second())),
        number(our_times.p50()),
        number(our_times.p99()),
        number(disk.per_second()),
        number(mib(disk.per_second())),
        number(disk_times.p50()),
        number(ours.per_second() / disk.per_second()),
    ]
}
