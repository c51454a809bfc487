//! With the published quickstart key, the server accepts only requests to local hosts and from their web pages.

use axum::body::Body;
use axum::http::{Request, Version, header};

use crate::support::client::TestResponse;
use crate::support::{TestApp, TestConfig, run, run_with};

/// Sends a GET request with these headers.
async fn send_request(
    app: &TestApp,
    uri: &str,
    version: Version,
    headers: &[(header::HeaderName, &str)],
) -> TestResponse {
    let mut request = Request::builder().uri(uri).version(version);
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    app.client().send(request.body(Body::empty()).unwrap()).await
}

async fn send_with_host(app: &TestApp, host: &str) -> TestResponse {
    send_request(app, "/health", Version::HTTP_11, &[(header::HOST, host)]).await
}

async fn send_with_origin(app: &TestApp, origin: &str) -> TestResponse {
    send_request(app, "/health", Version::HTTP_11, &[(header::HOST, "localhost"), (header::ORIGIN, origin)]).await
}

#[tokio::test]
async fn requests_to_other_hosts_are_misdirected() {
    run_with(TestConfig::default().with("APP_EXTERNALURL", "https://agents.example:8443/base"), async |app| {
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
            send_with_host(&app, host).await.assert_status(200);
        }
        for host in ["evil.example", "evil.example:8029", "localhost.evil.example", "0.0.0.0:8029", "10.1.2.3", "x@y z"]
        {
            let response = send_with_host(&app, host).await;
            response.assert_error(421, "ROOT_API_BEARER_TOKEN");
            assert!(response.text().contains("APP_EXTERNALURL"), "{host}");
        }
        let key = "sk-ac-your-root-api-bearer-token";
        let with_key = [(header::HOST, "evil.example"), (header::AUTHORIZATION, &format!("Bearer {key}"))];
        send_request(&app, "/api/v1/ping", Version::HTTP_11, &with_key)
            .await
            .assert_error(421, "ROOT_API_BEARER_TOKEN");
    })
    .await;
}

#[tokio::test]
async fn the_host_of_the_request_line_counts_and_a_host_is_required() {
    run(async |app| {
        let local = [(header::HOST, "localhost")];
        send_request(&app, "http://localhost:8029/health", Version::HTTP_11, &local).await.assert_status(200);
        send_request(&app, "http://evil.example/health", Version::HTTP_11, &local).await.assert_error(421, "localhost");
        send_request(&app, "http://evil.example/health", Version::HTTP_10, &[]).await.assert_error(421, "localhost");
        send_request(&app, "/health", Version::HTTP_10, &[]).await.assert_status(200);
        send_request(&app, "/health", Version::HTTP_11, &[]).await.assert_error(400, "Host");
        let two_hosts = [(header::HOST, "localhost"), (header::HOST, "evil.example")];
        send_request(&app, "/health", Version::HTTP_11, &two_hosts).await.assert_error(400, "Host");
    })
    .await;
}

#[tokio::test]
async fn pages_of_other_hosts_are_rejected() {
    run_with(TestConfig::default().with("APP_EXTERNALURL", "https://agents.example"), async |app| {
        for origin in ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:80", "https://agents.example:1"] {
            send_with_origin(&app, origin).await.assert_status(200);
        }
        for origin in [
            "https://evil.example",
            "null",
            "file://",
            "chrome-extension://abc",
            "localhost",
            "http://localhost.evil.example",
        ] {
            send_with_origin(&app, origin).await.assert_error(403, "web pages");
        }
    })
    .await;
}

#[tokio::test]
async fn with_another_root_token_every_host_is_accepted() {
    run_with(TestConfig::default().with("ROOT_API_BEARER_TOKEN", "a-token-of-my-own"), async |app| {
        send_with_host(&app, "agents.example").await.assert_status(200);
        send_with_origin(&app, "https://pages.example").await.assert_status(200);
        send_request(&app, "/health", Version::HTTP_11, &[]).await.assert_status(200);
    })
    .await;
}
