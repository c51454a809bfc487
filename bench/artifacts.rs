//! Storing and reading files of three sizes by 1, 4 and 16 clients, compared with the rate of the disk itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rand::RngCore;

use crate::http::{Request, percent_encode};
use crate::load::{Outcome, Plan, Source, run_load, to_f64};
use crate::report::{Report, Table, number};
use crate::server::{Server, new_dir};
use crate::{Bench, block_on, disk};

const SIZES: [(&str, usize); 3] = [("1 KiB", 1 << 10), ("1 MiB", 1 << 20), ("16 MiB", 16 << 20)];
const CLIENTS: [usize; 3] = [1, 4, 16];
/// The number of files that the clients read in turn.
const FILES_TO_READ: usize = 16;
const HEADINGS: [&str; 9] = [
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
    let mut stored = Table::new(&HEADINGS);
    let mut read = Table::new(&HEADINGS);
    block_on(async {
        let server = Server::start(bench, "artifacts").await?;
        let disk = server.client().await?.new_disk().await?;
        let run = Run { bench, server, disk, random: random_bytes() };
        for (name, size) in SIZES {
            run.measure_size(name, size, &mut stored, &mut read).await?;
        }
        run.server.stop()
    })?;
    report.add_text(
        "Left: uploads to the server over HTTP. Each file has a different content, except in the row *equal*. Right: \
         the same number of threads, which write a file, fsync it, rename it and fsync its directory.",
    );
    report.add_table("PUT", &stored);
    report.add_text(
        "Left: the route `download` of the server. Right: the same number of threads, which read files. Both read the \
         same few files in turn, which are in the page cache.",
    );
    report.add_table("GET", &read);
    Ok(())
}

/// Returns bytes that do not compress.
fn random_bytes() -> Bytes {
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
    async fn measure_size(&self, name: &str, size: usize, stored: &mut Table, read: &mut Table) -> anyhow::Result<()> {
        let dir = new_dir(&self.bench.dir, "disk")?;
        for clients in CLIENTS {
            let (plan, label) = (self.plan(clients), format!("{name} x {clients}"));
            let server = self.store(plan, size, false).await;
            let disk = disk::write_files(&dir, plan, size)?;
            stored.add_row(row(&label, size, &server, &disk));
            if size == 1 << 20 && clients == 4 {
                let server = self.store(plan, size, true).await;
                stored.add_row(row(&format!("{label}, equal"), size, &server, &disk));
            }
            new_dir(&self.bench.dir, "disk")?;
            self.wait_for_disk_idle().await;
        }
        let files = self.create_files(size).await?;
        for clients in CLIENTS {
            let plan = self.plan(clients);
            let server = self.download(plan, size).await;
            let disk = disk::read_files(&files, plan)?;
            read.add_row(row(&format!("{name} x {clients}"), size, &server, &disk));
        }
        Ok(())
    }

    /// Waits until the disk has processed the deletions.
    async fn wait_for_disk_idle(&self) {
        rustix::fs::sync();
        tokio::time::sleep(self.bench.seconds(1)).await;
    }

    fn plan(&self, clients: usize) -> Plan {
        Plan {
            clients,
            warm_up: Duration::from_millis(self.bench.full_or_quick(500, 100)),
            time: self.bench.seconds(4),
        }
    }

    /// Uploads new files.
    async fn store(&self, plan: Plan, size: usize, equal: bool) -> Outcome {
        let count = Arc::new(AtomicUsize::new(0));
        let directory = format!("/{size}-{}-{equal}/", plan.clients);
        run_load(self.server.address, plan, |_| {
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

    /// Creates the same files on the server and in a local directory. Returns the local paths.
    async fn create_files(&self, size: usize) -> anyhow::Result<Vec<PathBuf>> {
        let dir = new_dir(&self.bench.dir, "disk")?;
        let mut client = self.server.client().await?;
        let mut files = Vec::new();
        for number in 0..FILES_TO_READ {
            let content = content(&self.random, size, format!("read {size} {number}"));
            let file = dir.join(number.to_string());
            std::fs::write(&file, content.concat())?;
            files.push(file);
            let name = format!("{number}.bin");
            client.data(&Request::upload("PUT", &self.disk, &format!("/read-{size}/"), &name, content)).await?;
        }
        Ok(files)
    }

    /// Downloads the files that [`Run::create_files`] has created.
    async fn download(&self, plan: Plan, size: usize) -> Outcome {
        let path = |number: usize| {
            let file = percent_encode(&format!("/read-{size}/{number}.bin"));
            format!("/api/v1/disk/{}/artifact/download?file_path={file}", self.disk)
        };
        let requests: Vec<Request> = (0..FILES_TO_READ).map(|number| Request::get("GET", &path(number))).collect();
        run_load(self.server.address, plan, |client| -> Source {
            let mut next = requests.clone().into_iter().cycle().skip(client);
            Box::new(move || next.next())
        })
        .await
    }
}

/// Returns a content of the given size that begins with `name`.
pub fn content(random: &Bytes, size: usize, name: String) -> [Bytes; 2] {
    let name = Bytes::from(name);
    let rest = random.slice(name.len()..size);
    [name, rest]
}

fn row(label: &str, size: usize, server: &Outcome, disk: &Outcome) -> Vec<String> {
    let mib = |files: f64| files * to_f64(size as u64) / 1_048_576.0;
    let (server_times, disk_times) = (server.times(None), disk.times(None));
    let failed = server.failed();
    let label = if failed > 0 { format!("{label} ({failed} failed)") } else { label.to_owned() };
    vec![
        label,
        number(server.per_second()),
        number(mib(server.per_second())),
        number(server_times.p50()),
        number(server_times.p99()),
        number(disk.per_second()),
        number(mib(disk.per_second())),
        number(disk_times.p50()),
        number(server.per_second() / disk.per_second()),
    ]
}
