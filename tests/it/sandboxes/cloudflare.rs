//! What the provider Cloudflare sends to its worker, and how it reads the responses.

use std::time::Duration;

use acontextd::ids::SandboxId;
use acontextd::platform::build_http_client;
use acontextd::sandboxes::provider::cloudflare::{Cloudflare, CloudflareSettings};
use acontextd::sandboxes::provider::{FileToWrite, ProviderError, ProviderName, SandboxProvider};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use super::KEEPALIVE;
use crate::support::mock_http::MockServer;

struct Worker {
    server: MockServer,
    provider: Cloudflare,
}

impl Worker {
    async fn start() -> Self {
        let server = MockServer::start().await;
        let settings = CloudflareSettings {
            worker_url: server.url.clone(),
            auth_token: Some("worker token".to_owned().into()),
            command_timeout: Duration::from_secs(2),
            max_output_bytes: 20,
            keepalive: KEEPALIVE,
        };
        let provider = Cloudflare::new(settings, build_http_client().unwrap()).unwrap();
        Self { server, provider }
    }

    /// Returns the paths and bodies of the requests since the last call, after a check of what all have in common.
    fn requests(&self) -> Vec<(String, Value)> {
        let requests = self.server.take_requests().into_iter();
        let check = |request: crate::support::mock_http::RecordedRequest| {
            assert_eq!(
                (request.method.as_str(), &request.headers["authorization"]),
                ("POST", &"Bearer worker token".parse().unwrap())
            );
            let mut body: Value = serde_json::from_slice(&request.body).unwrap();
            assert_eq!(body.as_object_mut().unwrap().remove("keepalive_seconds"), Some(json!(600)));
            (request.uri.path().to_owned(), body)
        };
        requests.map(check).collect()
    }
}

fn file(path: &str, content: &'static [u8], is_executable: bool) -> FileToWrite {
    let size = content.len() as u64;
    let content = stream::once(async move { Ok(Bytes::from_static(content)) }).boxed();
    FileToWrite { path: path.to_owned(), size, is_executable, content }
}

#[tokio::test]
async fn a_sandbox_is_created_used_and_killed() {
    let worker = Worker::start().await;
    assert_eq!(worker.provider.name(), ProviderName::Cloudflare);
    let sandbox: SandboxId = "01234567-89ab-4def-8123-456789abcdef".parse().unwrap();
    worker.server.set_response(200, &json!({"sandbox_id": "sandbox-0123456789ab4def", "sandbox_status": "running"}));
    assert_eq!(worker.provider.create(sandbox, KEEPALIVE).await.unwrap(), "sandbox-0123456789ab4def");
    assert_eq!(worker.requests(), [("/sandbox/create".into(), json!({"sandbox_id": "sandbox-0123456789ab4def"}))]);
    worker.server.set_response(200, &json!({"stdout": "0123456789 and more than that", "stderr": "e", "exit_code": 3}));
    let output = worker.provider.run_command("sandbox-1", "ls", KEEPALIVE).await.unwrap();
    assert_eq!((output.exit_code, output.stderr.text.as_str()), (3, "e"));
    assert_eq!(
        (output.stdout.text.as_str(), output.stdout.omitted_bytes),
        ("0123456789\n[… 9 bytes omitted …]\n than that", 9)
    );
    assert_eq!(worker.requests(), [("/sandbox/sandbox-1/exec".into(), json!({"command": "ls"}))]);
    worker.server.set_response(200, &json!({"success": true}));
    worker.provider.end("sandbox-1").await.unwrap();
    assert_eq!(worker.requests(), [("/sandbox/sandbox-1/kill".into(), json!({}))]);
}

#[tokio::test]
async fn files_are_sent_and_received_in_base64() {
    let worker = Worker::start().await;
    worker.server.set_response(200, &json!({"success": true, "stdout": "", "stderr": "", "exit_code": 0}));
    worker.provider.write_file("s", "/workspace/", file("a'b", b"\x00\xff", true)).await.unwrap();
    worker.provider.write_file("s", "/new", file("empty", b"", false)).await.unwrap();
    assert_eq!(
        worker.requests(),
        [
            (
                "/sandbox/s/upload".into(),
                json!({"file_path": "/workspace/a'b", "content": "AP8=", "encoding": "base64"})
            ),
            ("/sandbox/s/exec".into(), json!({"command": r"chmod 755 -- '/workspace/a'\''b'"})),
            ("/sandbox/s/exec".into(), json!({"command": "mkdir -p -- '/new' && : > '/new/empty'"})),
        ]
    );
    worker.server.set_response(
        200,
        &json!({"stdout": "755 2\n", "stderr": "", "exit_code": 0, "content": "AP8=", "encoding": "base64"}),
    );
    let read = worker.provider.read_file("s", "/workspace/x", 2).await.unwrap();
    assert_eq!((read.content.bytes().await.unwrap().as_ref(), read.is_executable), (&b"\x00\xff"[..], true));
    assert_eq!(
        worker.requests()[1],
        ("/sandbox/s/download".into(), json!({"file_path": "/workspace/x", "encoding": "base64"}))
    );
    let too_large = worker.provider.read_file("s", "/workspace/x", 1).await;
    assert!(matches!(too_large, Err(ProviderError::FileTooLarge(1))));
    worker.server.set_response(200, &json!({"stdout": "", "stderr": "", "exit_code": 66}));
    assert!(matches!(worker.provider.read_file("s", "/none", 9).await, Err(ProviderError::FileNotFound(_))));
}

#[tokio::test]
async fn a_directory_is_written_under_a_temporary_name() {
    let worker = Worker::start().await;
    worker.server.set_response(200, &json!({"success": true, "stdout": "", "stderr": "", "exit_code": 0}));
    let files = vec![file("SKILL.md", b"text", false), file("scripts/run.sh", b"run", true)];
    worker.provider.write_dir("s", "/skills", "one", files).await.unwrap();
    let requests = worker.requests();
    let paths: Vec<&str> = requests.iter().map(|(path, _)| path.rsplit('/').next().unwrap()).collect();
    assert_eq!(paths, ["exec", "upload", "upload", "exec", "exec"]);
    assert_eq!(requests[0].1["command"], "if [ -e '/skills/one' ]; then exit 73; fi");
    let incoming = requests[1].1["file_path"].as_str().unwrap().strip_suffix("/SKILL.md").unwrap();
    assert!(incoming.starts_with("/skills/.incoming-"), "{incoming}");
    assert_eq!(requests[2].1["file_path"], format!("{incoming}/scripts/run.sh"));
    assert_eq!(requests[4].1["command"], format!("mv -T -- '{incoming}' '/skills/one'"));
    worker.server.set_response(200, &json!({"stdout": "", "stderr": "", "exit_code": 73}));
    let again = worker.provider.write_dir("s", "/skills", "one", vec![file("SKILL.md", b"text", false)]).await;
    assert!(matches!(again, Err(ProviderError::AlreadyExists)));
    assert_eq!(worker.requests().len(), 1);
}

#[tokio::test]
async fn errors_of_the_worker_are_readable() {
    let worker = Worker::start().await;
    let error = async || worker.provider.run_command("s", "ls", KEEPALIVE).await.unwrap_err();
    worker.server.set_response(401, &json!({"error": "Unauthorized"}));
    assert_eq!(error().await.to_string(), "the Cloudflare worker rejects the key; check CLOUDFLARE_WORKER_AUTH_TOKEN");
    worker.server.set_response(500, &json!({"error": "no container"}));
    assert_eq!(error().await.to_string(), "the Cloudflare worker responds with status 500: no container");
    worker.server.set_response(400, &json!({"error": "command"}));
    let err = error().await;
    assert_eq!(err.to_string(), "the response of the Cloudflare worker has the unexpected status 400: command");
    assert!(matches!(err, ProviderError::BadResponse { .. }));
    worker.server.set_response(200, &json!({"stdout": "", "stderr": ""}));
    assert_eq!(error().await.to_string(), "the response of the Cloudflare worker has no number `exit_code`");
    worker.server.set_text_response(200, "<html>");
    assert_eq!(error().await.to_string(), "the response of the Cloudflare worker is not JSON");
    worker.server.set_response(404, &json!({"error": "not found"}));
    assert!(matches!(error().await, ProviderError::Ended));
    let blocked = worker.server.block();
    assert_eq!(error().await.to_string(), "the Cloudflare worker does not respond within 2 s");
    blocked.notify_waiters();
    drop(worker.server);
    let unreachable = Cloudflare::new(
        CloudflareSettings {
            worker_url: "http://127.0.0.1:1".into(),
            auth_token: None,
            command_timeout: Duration::from_secs(2),
            max_output_bytes: 20,
            keepalive: KEEPALIVE,
        },
        build_http_client().unwrap(),
    );
    let err = unreachable.unwrap().run_command("s", "ls", KEEPALIVE).await.unwrap_err();
    assert_eq!(err.to_string(), "the Cloudflare worker cannot be reached");
}
