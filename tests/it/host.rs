//! With the published quickstart key, only requests for this machine and from its own pages are answered.

use axum::body::Body;
use axum::http::{Request, Version, header};

use crate::support::client::Answer;
use crate::support::{Setup, TestApp, run, run_with};

/// Sends `GET /health` with these headers.
async fn ask(app: &TestApp, uri: &str, version: Version, headers: &[(header::HeaderName, &str)]) -> Answer {
    let mut request = Request::builder().uri(uri).version(version);
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    app.client().send(request.body(Body::empty()).unwrap()).await
}

async fn ask_host(app: &TestApp, host: &str) -> Answer {
    ask(app, "/health", Version::HTTP_11, &[(header::HOST, host)]).await
}

async fn ask_origin(app: &TestApp, origin: &str) -> Answer {
    ask(app, "/health", Version::HTTP_11, &[(header::HOST, "localhost"), (header::ORIGIN, origin)]).await
}

#[tokio::test]
async fn other_hosts_are_misdirected() {
    run_with(Setup::default().with("APP_EXTERNALURL", "https://agents.example:8443/base"), async |app| {
        for host in [
            "localhost",
            "localhost:8029",
            "LOCALHOST:1",
            "127.0.0.1:8029",
            "[::1]:8029",
            "host.docker.internal:8029",
            "agents.example",
            "Agents.Example:443",
        ] {
            ask_host(&app, host).await.assert_status(200);
        }
        for host in ["evil.example", "evil.example:8029", "localhost.evil.example", "0.0.0.0:8029", "10.1.2.3", "x@y z"]
        {
            let answer = ask_host(&app, host).await;
            answer.assert_refused(421, "ROOT_API_BEARER_TOKEN");
            assert!(answer.text().contains("APP_EXTERNALURL"), "{host}");
        }
        let key = "sk-ac-your-root-api-bearer-token";
        let with_key = [(header::HOST, "evil.example"), (header::AUTHORIZATION, &format!("Bearer {key}"))];
        ask(&app, "/api/v1/ping", Version::HTTP_11, &with_key).await.assert_refused(421, "ROOT_API_BEARER_TOKEN");
    })
    .await;
}

#[tokio::test]
async fn a_host_in_the_request_line_counts_and_one_must_be_told() {
    run(async |app| {
        let local = [(header::HOST, "localhost")];
        ask(&app, "http://localhost:8029/health", Version::HTTP_11, &local).await.assert_status(200);
        ask(&app, "http://evil.example/health", Version::HTTP_11, &local).await.assert_refused(421, "localhost");
        ask(&app, "http://evil.example/health", Version::HTTP_10, &[]).await.assert_refused(421, "localhost");
        ask(&app, "/health", Version::HTTP_10, &[]).await.assert_status(200);
        ask(&app, "/health", Version::HTTP_11, &[]).await.assert_refused(400, "Host");
        let two = [(header::HOST, "localhost"), (header::HOST, "evil.example")];
        ask(&app, "/health", Version::HTTP_11, &two).await.assert_refused(400, "Host");
    })
    .await;
}

#[tokio::test]
async fn pages_of_other_hosts_are_refused() {
    run_with(Setup::default().with("APP_EXTERNALURL", "https://agents.example"), async |app| {
        for origin in ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:80", "https://agents.example:1"] {
            ask_origin(&app, origin).await.assert_status(200);
        }
        for origin in [
            "https://evil.example",
            "null",
            "file://",
            "chrome-extension://abc",
            "localhost",
            "http://localhost.evil.example",
        ] {
            ask_origin(&app, origin).await.assert_refused(403, "web pages");
        }
    })
    .await;
}

#[tokio::test]
async fn with_a_key_of_ones_own_any_host_is_answered() {
    run_with(Setup::default().with("ROOT_API_BEARER_TOKEN", "a-token-of-my-own"), async |app| {
        ask_host(&app, "agents.example").await.assert_status(200);
        ask_origin(&app, "https://pages.example").await.assert_status(200);
        ask(&app, "/health", Version::HTTP_11, &[]).await.assert_status(200);
    })
    .await;
}
