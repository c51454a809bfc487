//! Access to the embedded Postgres of a server: its process, its socket and its programs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use sqlx::postgres::PgConnectOptions;

use crate::server::Server;

/// The name of the database and of its user.
pub const NAME: &str = "acontext";

/// The embedded Postgres of a running server.
pub struct EmbeddedPostgres {
    /// The command line with which the server started it.
    pub command: Vec<String>,
    pub data: PathBuf,
    pub socket_dir: PathBuf,
}

impl EmbeddedPostgres {
    /// Finds the embedded Postgres of the server.
    pub fn find(server: &Server) -> anyhow::Result<Self> {
        let data = server.data.join("postgres/data");
        let pid = fs::read_to_string(data.join("postmaster.pid"))?;
        let pid = pid.lines().next().context("the pid file of the embedded Postgres is empty")?;
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
        let command: Vec<String> = command.split_terminator('\0').map(ToOwned::to_owned).collect();
        let socket_dir = command.iter().find_map(|word| word.strip_prefix("unix_socket_directories="));
        let socket_dir = PathBuf::from(socket_dir.context("the embedded Postgres has no socket")?);
        Ok(Self { command, data, socket_dir })
    }

    pub fn options(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass().socket(&self.socket_dir).username(NAME).database(NAME)
    }

    /// Returns the path of a program in the directory of the Postgres server program, if it exists.
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        let dir = Path::new(self.command.first()?).parent()?;
        Some(dir.join(name)).filter(|program| program.is_file())
    }
}
