//! A `PgBouncer` in front of the Postgres of the tests.

use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use sqlx::postgres::PgConnectOptions;
use tempfile::TempDir;
use tokio::net::TcpStream;

use super::wait_until;

pub struct PgBouncer {
    child: Child,
    dir: TempDir,
    backend: PgConnectOptions,
    port: u16,
}

impl PgBouncer {
    /// Starts `PgBouncer` in front of a database. The mode is `session`, `transaction` or `statement`.
    pub async fn start(backend: &PgConnectOptions, mode: &str, settings: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("acontextd-pgbouncer-").tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        write_config(&dir, port, backend, mode, settings);
        let mut command = Command::new(find_program());
        // `PgBouncer` does not run as root.
        if rustix::process::geteuid().is_root() {
            command.args(["-u", "postgres"]);
            let owner = std::fs::metadata(backend.get_socket().unwrap()).unwrap();
            chown(dir.path().join("log"), Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        let child = command
            .arg(dir.path().join("config.ini"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let bouncer = Self { child, dir, backend: backend.clone(), port };
        wait_until("PgBouncer listens", async || TcpStream::connect(("127.0.0.1", port)).await.is_ok()).await;
        bouncer
    }

    /// Writes a configuration with another mode and reloads it.
    pub fn set_mode(&self, mode: &str, settings: &str) {
        write_config(&self.dir, self.port, &self.backend, mode, settings);
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

fn find_program() -> PathBuf {
    ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer", "/usr/local/bin/pgbouncer"]
        .into_iter()
        .map(PathBuf::from)
        .find(|program| program.exists())
        .expect("pgbouncer is installed by scripts/setup test")
}

fn write_config(dir: &TempDir, port: u16, backend: &PgConnectOptions, mode: &str, settings: &str) {
    let log = dir.path().join("log");
    let config = format!(
        "[databases]\n* = host={socket} port={backend_port} user=acontext\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
         pool_mode = {mode}\nignore_startup_parameters = extra_float_digits\ndefault_pool_size = 100\n\
         max_client_conn = 200\nlogfile = {log}\n\
         {settings}\n",
        socket = backend.get_socket().unwrap().display(),
        backend_port = backend.get_port(),
        log = log.display(),
    );
    if !log.exists() {
        std::fs::write(&log, "").unwrap();
    }
    std::fs::write(dir.path().join("config.ini"), config).unwrap();
}
