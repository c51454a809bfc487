//! The Postgres of a server that has stopped, started by hand: it listens on a socket and on TCP, and servers use it as an
//! external database.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::Signal;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};

use crate::private::{NAME, Private};
use crate::server::{Process, Server};

/// How a client connects to it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Socket,
    Tcp,
    /// TCP with TLS, which Debian's Postgres offers by default and clients then use.
    Tls,
}

impl Way {
    pub const ALL: [Self; 3] = [Self::Socket, Self::Tcp, Self::Tls];

    pub fn name(self) -> &'static str {
        match self {
            Self::Socket => "Unix socket",
            Self::Tcp => "TCP",
            Self::Tls => "TCP, TLS",
        }
    }

    /// As `sslmode` of a URL and in `PGSSLMODE`.
    pub fn ssl_mode(self) -> &'static str {
        match self {
            Self::Socket | Self::Tcp => "disable",
            Self::Tls => "require",
        }
    }
}

pub struct External {
    process: Process,
    postgres: Private,
    port: u16,
    /// The pepper that the data was set up with.
    pepper: String,
}

impl External {
    /// Stops a server and starts its Postgres, with the same settings but for where it listens.
    pub async fn replace(server: Server) -> anyhow::Result<Self> {
        let postgres = Private::of(&server)?;
        let pepper = fs::read_to_string(server.data.join("pepper"))?;
        server.stop()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        make_certificate(&postgres.data)?;
        let mut command = as_owner_of(&postgres.data)?;
        command.args(&postgres.command).args(["-c", "listen_addresses=127.0.0.1", "-c", "ssl=on"]);
        command.args(["-c", &format!("port={port}")]);
        command.current_dir("/").env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").env("TZ", "UTC");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = Process::spawn(&mut command)?;
        let mut external = Self { process, postgres, port, pepper: pepper.trim().to_owned() };
        external.wait_until_ready().await?;
        Ok(external)
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            match self.options().connect().await {
                Ok(connection) => return Ok(connection.close().await?),
                Err(error) if self.process.has_ended() => return Err(error).context("Postgres does not start by hand"),
                Err(_) if start.elapsed() > Duration::from_mins(1) => bail!("Postgres started by hand does not answer"),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// The host as Postgres' own programs take it: a name, or the folder of the socket.
    pub fn host(&self, way: Way) -> &Path {
        match way {
            Way::Socket => &self.postgres.socket_folder,
            Way::Tcp | Way::Tls => Path::new("127.0.0.1"),
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn options(&self) -> PgConnectOptions {
        self.postgres.options().port(self.port)
    }

    /// The environment of a server that uses it.
    pub fn settings(&self, way: Way) -> [(&'static str, String); 2] {
        let (host, ssl_mode) = (self.host(way).display(), way.ssl_mode());
        let url = format!("postgres://{NAME}@localhost:{}/{NAME}?host={host}&sslmode={ssl_mode}", self.port);
        [("DATABASE_URL", url), ("ROOT_SECRET_PEPPER", self.pepper.clone())]
    }

    /// A program that lies beside the one of the server, if it is there.
    pub fn program(&self, name: &str) -> Option<std::path::PathBuf> {
        self.postgres.program(name)
    }

    pub fn stop(mut self) -> anyhow::Result<()> {
        self.process.stop(Signal::INT)
    }
}

/// Makes a certificate where Postgres looks for it, in its data directory.
fn make_certificate(data: &Path) -> anyhow::Result<()> {
    let mut command = as_owner_of(data)?;
    command.args(["openssl", "req", "-new", "-x509", "-days", "30", "-nodes", "-subj", "/CN=localhost"]);
    command.args(["-out", "server.crt", "-keyout", "server.key"]).current_dir(data);
    let made = command.stdin(Stdio::null()).output().context("openssl cannot be run")?;
    ensure!(made.status.success(), "openssl made no certificate: {}", String::from_utf8_lossy(&made.stderr));
    Ok(())
}

/// Postgres refuses to run as root, so root lets it run as the owner of its data.
pub fn as_owner_of(data: &Path) -> anyhow::Result<Command> {
    let owner = fs::metadata(data)?;
    let mut command = Command::new("setpriv");
    if rustix::process::geteuid().is_root() {
        command.args([format!("--reuid={}", owner.uid()), format!("--regid={}", owner.gid()), "--clear-groups".into()]);
    }
    command.arg("--");
    Ok(command)
}
