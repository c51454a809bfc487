//! The port that the server listens on.

use std::io;
use std::net::SocketAddr;

use anyhow::anyhow;
use tokio::net::{TcpListener, TcpSocket};

use crate::config::Config;

/// How many connections may wait to be accepted. With the usual 128, some of many that arrive at once are reset.
const BACKLOG: u32 = 4096;

/// Binds the configured address.
///
/// # Errors
/// The address is in use or does not exist; the message says what to change.
pub fn bind(config: &Config) -> anyhow::Result<TcpListener> {
    let address = config.server.address();
    listen(address).map_err(|err| match err.kind() {
        io::ErrorKind::AddrInUse => anyhow!(
            "API_EXPORT_PORT is {}, but another program listens there: stop it, or choose another port such as {}",
            address.port(),
            address.port().saturating_add(1)
        ),
        io::ErrorKind::AddrNotAvailable => anyhow!(
            "ACONTEXTD_HOST is {}, but this machine has no such address: choose one it has, such as 127.0.0.1",
            address.ip()
        ),
        _ => anyhow!(err).context(format!("cannot listen on {address}")),
    })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
