//! The former embedded Postgres of a stopped server, started directly. It listens on a Unix socket and on TCP, and
//! servers use it as an external database.

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

use crate::embedded_postgres::{EmbeddedPostgres, NAME};
use crate::server::{Process, Server};

/// How a client connects to Postgres.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Socket,
    Tcp,
    /// TCP with TLS, which Debian's Postgres offers by default and clients therefore use.
    Tls,
}

impl Transport {
    pub const ALL: [Self; 3] = [Self::Socket, Self::Tcp, Self::Tls];

    pub fn name(self) -> &'static str {
        match self {
            Self::Socket => "Unix socket",
            Self::Tcp => "TCP",
            Self::Tls => "TCP, TLS",
        }
    }

    /// Returns the value for `sslmode` in a URL and for `PGSSLMODE`.
    pub fn ssl_mode(self) -> &'static str {
        match self {
            Self::Socket | Self::Tcp => "disable",
            Self::Tls => "require",
        }
    }
}

/// A Postgres that listens on a Unix socket and on TCP.
pub struct ExternalPostgres {
    process: Process,
    postgres: EmbeddedPostgres,
    port: u16,
    /// The pepper of the server that created the data.
    pepper: String,
}

impl ExternalPostgres {
    /// Stops a server and starts its Postgres with the same settings, except that it also listens on TCP.
    pub async fn replace(server: Server) -> anyhow::Result<Self> {
        let postgres = EmbeddedPostgres::find(&server)?;
        let pepper = fs::read_to_string(server.data.join("pepper"))?;
        server.stop()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        create_certificate(&postgres.data)?;
        let mut command = run_as_owner_of(&postgres.data)?;
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
                Err(err) if self.process.has_ended() => return Err(err).context("Postgres exited during startup"),
                Err(_) if start.elapsed() > Duration::from_mins(1) => bail!("Postgres does not accept connections"),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Returns the host in the format of Postgres' client programs: an address, or the directory of the socket.
    pub fn host(&self, transport: Transport) -> &Path {
        match transport {
            Transport::Socket => &self.postgres.socket_dir,
            Transport::Tcp | Transport::Tls => Path::new("127.0.0.1"),
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn options(&self) -> PgConnectOptions {
        self.postgres.options().port(self.port)
    }

    /// Returns the environment variables for a server that uses this database.
    pub fn settings(&self, transport: Transport) -> [(&'static str, String); 2] {
        let (host, ssl_mode) = (self.host(transport).display(), transport.ssl_mode());
        let url = format!("postgres://{NAME}@localhost:{}/{NAME}?host={host}&sslmode={ssl_mode}", self.port);
        [("DATABASE_URL", url), ("ROOT_SECRET_PEPPER", self.pepper.clone())]
    }

    /// Returns the path of a program in the directory of the Postgres server program, if it exists.
    pub fn program(&self, name: &str) -> Option<std::path::PathBuf> {
        self.postgres.program(name)
    }

    pub fn stop(mut self) -> anyhow::Result<()> {
        self.process.stop(Signal::INT)
    }
}

/// Creates a certificate in the data directory, from which Postgres reads it by default.
fn create_certificate(data: &Path) -> anyhow::Result<()> {
    let mut command = run_as_owner_of(data)?;
    command.args(["openssl", "req", "-new", "-x509", "-days", "30", "-nodes", "-subj", "/CN=localhost"]);
    command.args(["-out", "server.crt", "-keyout", "server.key"]).current_dir(data);
    let output = command.stdin(Stdio::null()).output().context("cannot run openssl")?;
    ensure!(output.status.success(), "openssl failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Returns a command that runs its arguments as the owner of `data` if this process runs as root, because Postgres does
/// not run as root.
pub fn run_as_owner_of(data: &Path) -> anyhow::Result<Command> {
    let metadata = fs::metadata(data)?;
    let mut command = Command::new("setpriv");
    if rustix::process::geteuid().is_root() {
        command.args([
            format!("--reuid={}", metadata.uid()),
            format!("--regid={}", metadata.gid()),
            "--clear-groups".into(),
        ]);
    }
    command.arg("--");
    Ok(command)
}
