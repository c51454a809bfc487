//! The listening socket.

use std::io;
use std::net::SocketAddr;

use anyhow::anyhow;
use tokio::net::{TcpListener, TcpSocket};

use crate::config::Config;

/// The maximum number of connections that wait to be accepted. With a limit of 128, connections are reset when many clients
/// connect at the same time.
const BACKLOG: u32 = 4096;

/// Listens on the configured address.
///
/// # Errors
/// Returns an error with a remedy if the address is in use or not available.
pub fn bind(config: &Config) -> anyhow::Result<TcpListener> {
    let address = config.server.address();
    listen(address).map_err(|err| match err.kind() {
        io::ErrorKind::AddrInUse => anyhow!(
            "API_EXPORT_PORT is {}, but another program listens on that port: stop it, or \
             choose another port, such as {}",
            address.port(),
            address.port().saturating_add(1)
        ),
        io::ErrorKind::AddrNotAvailable => anyhow!(
            "ACONTEXTD_HOST is {}, but this machine has no such address: choose another one, such as 127.0.0.1",
            address.ip()
        ),
        _ => anyhow!(err).context(format!("cannot listen on {address}: check ACONTEXTD_HOST and API_EXPORT_PORT")),
    })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
