//! A TCP proxy in front of the Postgres of the tests, which can lose connections silently.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::postgres::PgConnectOptions;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub struct TcpProxy {
    backend: PgConnectOptions,
    port: u16,
    /// The connections that were lost last.
    losses: watch::Sender<Loss>,
    _server: JoinSet<()>,
}

#[derive(Clone, Copy)]
enum Loss {
    All,
    Listeners,
}

impl TcpProxy {
    pub async fn start(backend: &PgConnectOptions) -> Self {
        Self::start_with_version(backend, None).await
    }

    /// Starts a proxy that replaces the major version that Postgres reports.
    pub async fn start_with_version(backend: &PgConnectOptions, version: Option<&'static [u8; 2]>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let socket = backend.get_socket().unwrap().join(format!(".s.PGSQL.{}", backend.get_port()));
        let (losses, loss_rx) = watch::channel(Loss::All);
        let mut server = JoinSet::new();
        server.spawn(accept(listener, socket, loss_rx, version));
        Self { backend: backend.clone(), port, losses, _server: server }
    }

    /// Returns the options to connect through the proxy.
    pub fn options(&self) -> PgConnectOptions {
        let database = self.backend.get_database().unwrap();
        format!("postgres://acontext@127.0.0.1:{}/{database}", self.port).parse().unwrap()
    }

    /// Stops forwarding on every open connection that has executed `LISTEN`. The connections stay open.
    pub fn lose_listeners(&self) {
        self.losses.send_replace(Loss::Listeners);
    }

    /// Stops forwarding on every open connection. The connections stay open.
    pub fn lose_connections(&self) {
        self.losses.send_replace(Loss::All);
    }
}

async fn accept(
    listener: TcpListener,
    socket: PathBuf,
    losses: watch::Receiver<Loss>,
    version: Option<&'static [u8; 2]>,
) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        connections.spawn(forward(client, socket.clone(), losses.clone(), version));
    }
}

async fn forward(
    client: TcpStream,
    socket: PathBuf,
    mut losses: watch::Receiver<Loss>,
    version: Option<&'static [u8; 2]>,
) {
    let Ok(server) = UnixStream::connect(socket).await else { return };
    let (mut client_rx, mut client_tx) = client.into_split();
    let (mut server_rx, mut server_tx) = server.into_split();
    let is_listener = AtomicBool::new(false);
    losses.mark_unchanged();
    let lost = async {
        loop {
            losses.changed().await.unwrap();
            let loss = *losses.borrow_and_update();
            if matches!(loss, Loss::All) || is_listener.load(Ordering::SeqCst) {
                return;
            }
        }
    };
    tokio::select! {
        () = copy(&mut client_rx, &mut server_tx, Some(&is_listener), None) => {}
        () = copy(&mut server_rx, &mut client_tx, None, version) => {}
        // Keeps both connections open.
        () = lost => std::future::pending().await,
    }
}

/// Copies bytes until one side is closed. Sets `is_listener` if they contain a `LISTEN` statement. Replaces the major version of
/// Postgres in them with `version`.
async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    is_listener: Option<&AtomicBool>,
    version: Option<&[u8; 2]>,
) {
    const VERSION_PARAMETER: &[u8] = b"server_version\0";
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if let Some(is_listener) = is_listener
            && buffer[..length].windows(6).any(|window| window == b"LISTEN")
        {
            is_listener.store(true, Ordering::SeqCst);
        }
        let parameter =
            buffer[..length].windows(VERSION_PARAMETER.len()).position(|window| window == VERSION_PARAMETER);
        if let (Some(version), Some(offset)) = (version, parameter) {
            buffer[offset + VERSION_PARAMETER.len()..][..2].copy_from_slice(version);
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
