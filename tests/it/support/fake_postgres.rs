//! A server that accepts Postgres connections and rejects them with an error.

use std::io;

use sqlx::postgres::PgConnectOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// The body length and the code of the message by which a client asks for TLS.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

pub struct FakePostgres {
    port: u16,
    _server: JoinSet<()>,
}

impl FakePostgres {
    /// Starts a server that rejects every connection with this SQLSTATE, or never responds if it is `None`.
    pub async fn start(code: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                connections.spawn(async move {
                    // The client may close the connection at any time.
                    let _ = reject(client, code).await;
                });
            }
        });
        Self { port, _server: server }
    }

    /// Returns the options to connect to the server, with an `sslmode`.
    pub fn options(&self, sslmode: &str) -> PgConnectOptions {
        format!("postgres://user:password@127.0.0.1:{}/name?sslmode={sslmode}", self.port).parse().unwrap()
    }
}

async fn reject(mut client: TcpStream, code: Option<&str>) -> io::Result<()> {
    let mut message = [0; 1024];
    let mut length = client.read(&mut message).await?;
    let Some(code) = code else {
        // Keeps the connection open until the client closes it.
        while client.read(&mut message).await? > 0 {}
        return Ok(());
    };
    if message[..length] == SSL_REQUEST {
        client.write_all(b"N").await?;
        length = client.read(&mut message).await?;
    }
    if length > 0 {
        let fields = format!("SFATAL\0VFATAL\0C{code}\0Mrejected by a test\0\0");
        let size = u32::try_from(fields.len() + 4).unwrap();
        client.write_all(&[b"E".as_slice(), &size.to_be_bytes(), fields.as_bytes()].concat()).await?;
    }
    Ok(())
}
