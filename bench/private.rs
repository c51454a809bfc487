//! A server's private Postgres from outside: found by its process, reached over its socket.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use sqlx::postgres::PgConnectOptions;

use crate::server::Server;

/// Database and user.
pub const NAME: &str = "acontext";

/// A running private Postgres.
pub struct Private {
    /// What the server started it with, as found in the list of processes.
    pub command: Vec<String>,
    pub data: PathBuf,
    pub socket_folder: PathBuf,
}

impl Private {
    pub fn of(server: &Server) -> anyhow::Result<Self> {
        let data = server.data.join("postgres/data");
        let pid = fs::read_to_string(data.join("postmaster.pid"))?;
        let pid = pid.lines().next().context("the private Postgres has no process number")?;
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
        let command: Vec<String> = command.split_terminator('\0').map(ToOwned::to_owned).collect();
        let socket_folder = command.iter().find_map(|word| word.strip_prefix("unix_socket_directories="));
        let socket_folder = PathBuf::from(socket_folder.context("the private Postgres has no socket")?);
        Ok(Self { command, data, socket_folder })
    }

    pub fn options(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass().socket(&self.socket_folder).username(NAME).database(NAME)
    }

    /// A program that lies beside the one of the server, if it is there.
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        let folder = Path::new(self.command.first()?).parent()?;
        Some(folder.join(name)).filter(|program| program.is_file())
    }
}
