//! A `PgBouncer` in front of the Postgres of the tests.

use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use sqlx::postgres::PgConnectOptions;
use tempfile::TempDir;
use tokio::net::TcpStream;

use super::eventually;

pub struct PgBouncer {
    child: Child,
    folder: TempDir,
    backend: PgConnectOptions,
    port: u16,
}

impl PgBouncer {
    /// Starts one that lends sessions of the database in `mode`: `session`, `transaction` or `statement`.
    pub async fn start(backend: &PgConnectOptions, mode: &str, settings: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("acontextd-pgbouncer-").tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        write_config(&folder, port, backend, mode, settings);
        let mut command = Command::new(program());
        // It refuses to run as root.
        if rustix::process::geteuid().is_root() {
            command.args(["-u", "postgres"]);
            let owner = std::fs::metadata(backend.get_socket().unwrap()).unwrap();
            chown(folder.path().join("log"), Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        let child = command
            .arg(folder.path().join("config.ini"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let bouncer = Self { child, folder, backend: backend.clone(), port };
        eventually("PgBouncer listens", async || TcpStream::connect(("127.0.0.1", port)).await.is_ok()).await;
        bouncer
    }

    /// Reloads its configuration with another mode.
    pub fn set_mode(&self, mode: &str, settings: &str) {
        write_config(&self.folder, self.port, &self.backend, mode, settings);
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, Signal::HUP).unwrap();
    }

    pub fn url(&self) -> String {
        format!("postgres://acontext@127.0.0.1:{}/{}", self.port, self.backend.get_database().unwrap())
    }

    pub fn options(&self) -> PgConnectOptions {
        self.url().parse().unwrap()
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> PathBuf {
    ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer", "/usr/local/bin/pgbouncer"]
        .into_iter()
        .map(PathBuf::from)
        .find(|program| program.exists())
        .expect("pgbouncer is installed by scripts/setup test")
}

fn write_config(folder: &TempDir, port: u16, backend: &PgConnectOptions, mode: &str, settings: &str) {
    let log = folder.path().join("log");
    let config = format!(
        "[databases]\n* = host={socket} port={backend_port} user=acontext\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = {mode}\n\
         ignore_startup_parameters = extra_float_digits\ndefault_pool_size = 100\nmax_client_conn = 200\nlogfile = {log}\n\
         {settings}\n",
        socket = backend.get_socket().unwrap().display(),
        backend_port = backend.get_port(),
        log = log.display(),
    );
    if !log.exists() {
        std::fs::write(&log, "").unwrap();
    }
    std::fs::write(folder.path().join("config.ini"), config).unwrap();
}
