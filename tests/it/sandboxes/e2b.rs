//! What the provider E2B sends to its API and to sandboxes, and how it reads the responses.

use std::time::Duration;

use acontextd::blob::spool::SpoolDir;
use acontextd::ids::SandboxId;
use acontextd::platform::build_http_client;
use acontextd::sandboxes::provider::e2b::{E2b, E2bSettings};
use acontextd::sandboxes::provider::{
    CommandEnd, CommandOutput, FileToWrite, ProviderError, ProviderName, SandboxProvider,
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::KEEPALIVE;
use crate::support::mock_e2b::{Ending, MockE2b, PID, Process, Request, end, end_of_stream, event, output};

struct Service {
    mock: MockE2b,
    provider: E2b,
    dir: TempDir,
}

impl Service {
    async fn start() -> Self {
        let (mock, dir) = (MockE2b::start().await, tempfile::tempdir().unwrap());
        let provider = new_provider(&mock.url, &dir);
        Self { mock, provider, dir }
    }

    /// Runs a command whose process has these messages after its start.
    async fn run(&self, messages: &[Vec<u8>]) -> Result<CommandOutput, ProviderError> {
        self.run_process(Process::new(messages)).await
    }

    async fn run_process(&self, process: Process) -> Result<CommandOutput, ProviderError> {
        self.mock.set_commands(move |_| process.clone());
        self.provider.run_command("i1", "make", KEEPALIVE).await
    }

    /// Returns the requests since the last call, after a check of what all have in common.
    fn requests(&self) -> Vec<Request> {
        let requests = self.mock.take_requests();
        for request in &requests {
            let names = ["x-api-key", "x-access-token", "e2b-sandbox-id", "e2b-sandbox-port"];
            let headers = names.map(|name| request.header(name));
            let is_api = request.target.split(' ').nth(1).unwrap().starts_with("/sandboxes");
            let expected = if is_api { ["the key", "-", "-", "-"] } else { ["-", "token of i1", "i1", "49983"] };
            assert_eq!(headers, expected, "{}", request.target);
        }
        requests
    }

    /// Returns the targets of the requests since the last call. Instead of that of a command, the command.
    fn targets(&self) -> Vec<String> {
        let target = |request: Request| match request.target.as_str() {
            "POST /process.Process/Start" => request.rpc_message()["process"]["args"][2].as_str().unwrap().to_owned(),
            target => target.to_owned(),
        };
        self.requests().into_iter().map(target).collect()
    }
}

fn new_provider(url: &str, dir: &TempDir) -> E2b {
    let settings = E2bSettings {
        api_url: url.to_owned(),
        sandbox_url: Some(url.to_owned()),
        domain: "e2b.invalid".into(),
        api_key: "the key".to_owned().into(),
        template: "base".into(),
        command_timeout: Duration::from_secs(1),
        max_output_bytes: 20,
        keepalive: KEEPALIVE,
    };
    E2b::new(settings, build_http_client().unwrap(), SpoolDir::open(dir.path()).unwrap()).unwrap()
}

fn file(path: &str, content: &[u8], is_executable: bool) -> FileToWrite {
    let content = Bytes::copy_from_slice(content);
    let size = content.len() as u64;
    // In several chunks, as files are read from the object store.
    let chunks: Vec<_> = content.chunks(100).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
    FileToWrite { path: path.to_owned(), size, is_executable, content: stream::iter(chunks).boxed() }
}

fn body(request: &Request) -> Value {
    serde_json::from_slice(&request.body).unwrap()
}

#[tokio::test]
async fn a_sandbox_is_created_used_and_killed() {
    let service = Service::start().await;
    assert_eq!(service.provider.name(), ProviderName::E2b);
    assert_eq!(service.provider.create(SandboxId::new(), KEEPALIVE).await.unwrap(), "i1");
    let create = &service.requests()[0];
    assert_eq!((create.target.as_str(), create.header("content-type")), ("POST /sandboxes", "application/json"));
    assert_eq!(body(create), json!({"templateID": "base", "timeout": 600, "metadata": {}, "secure": true}));

    service.mock.set_commands(|_| Process::with_output("a\n", 0));
    let output = service.provider.run_command("i1", "echo a", KEEPALIVE).await.unwrap();
    assert_eq!((output.exit_code, output.end, output.stdout.text.as_str()), (0, CommandEnd::Exited, "a\n"));
    let [connect, start] = &service.requests()[..] else { panic!("two requests") };
    assert_eq!(connect.target, "POST /sandboxes/i1/connect");
    assert_eq!(start.target, "POST /process.Process/Start");
    let process = json!({"cmd": "/bin/bash", "args": ["-l", "-c", "echo a"]});
    assert_eq!(start.rpc_message(), json!({"process": process, "stdin": false}));
    let names =
        ["content-type", "connect-protocol-version", "keepalive-ping-interval", "connect-timeout-ms", "authorization"];
    assert_eq!(names.map(|name| start.header(name)), ["application/connect+json", "1", "50", "11000", "-"]);

    service.provider.end("i1").await.unwrap();
    assert_eq!(service.targets(), ["DELETE /sandboxes/i1"]);
}

#[tokio::test]
async fn each_call_extends_the_life_of_the_sandbox() {
    let service = Service::start().await;
    service.mock.set_commands(|command| Process::with_output("644 1\n", i32::from(command.starts_with("chmod"))));
    service.mock.set_file("/a", "a".into());
    let timeouts = || {
        let requests = service.requests();
        let connects = requests.iter().filter(|request| request.target == "POST /sandboxes/i1/connect");
        connects.map(|request| body(request)["timeout"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    service.provider.run_command("i1", "make", KEEPALIVE).await.unwrap();
    assert_eq!(timeouts(), [601]);
    service.provider.read_file("i1", "/a", 1).await.unwrap();
    assert_eq!(timeouts(), [601, 900]);
    service.provider.write_file("i1", "/", file("b", b"b", false)).await.unwrap();
    assert_eq!(timeouts(), [900]);
}

#[tokio::test]
async fn old_sandboxes_get_the_name_of_the_user() {
    let service = Service::start().await;
    service.mock.set_envd_version("0.3.5");
    service.provider.run_command("i1", "make", KEEPALIVE).await.unwrap();
    service.provider.write_file("i1", "/", file("b", b"b", false)).await.unwrap();
    let requests = service.requests();
    // "user:" in base64.
    assert_eq!(requests[1].header("authorization"), "Basic dXNlcjo=");
    assert_eq!(requests[3].target, "POST /files?path=%2Fb&username=user");
}

#[tokio::test]
async fn outputs_do_not_depend_on_how_they_arrive() {
    let service = Service::start().await;
    let (first, last) = "ä€".as_bytes().split_at(3);
    let process = Process::new(&[
        event(&json!({"keepalive": {}})),
        output("stdout", first),
        output("stderr", b"e1 "),
        output("stdout", last),
        output("stderr", b"e2"),
        output("stdout", b"\xff"),
        end(3),
        end_of_stream(&json!({})),
    ]);
    for length in [1, 3, 7, 64, 4096] {
        let output = service.run_process(process.clone().in_chunks_of(length)).await.unwrap();
        assert_eq!((output.stdout.text.as_str(), output.stdout.total_bytes), ("ä€\u{fffd}", 6), "{length}");
        assert_eq!((output.stderr.text.as_str(), output.exit_code), ("e1 e2", 3), "{length}");
    }
    let long = [output("stdout", b"0123456789 and"), output("stdout", b" more than that"), end(0)];
    let output = service.run(&long).await.unwrap();
    assert_eq!(output.stdout.text, "0123456789\n[… 9 bytes omitted …]\n than that");
}

#[tokio::test]
async fn a_signal_is_the_exit_code_of_a_shell() {
    let service = Service::start().await;
    let end = json!({"exitCode": -1, "status": "signal: terminated", "error": "signal: terminated"});
    let output = service.run(&[event(&json!({"end": end}))]).await.unwrap();
    assert_eq!((output.exit_code, output.end), (143, CommandEnd::Exited));
}

#[tokio::test]
async fn a_command_that_takes_too_long_is_killed() {
    let service = Service::start().await;
    let process = Process::new(&[output("stdout", b"begun"), output("stderr", b"err")]).ending(Ending::Open);
    let output = service.run_process(process).await.unwrap();
    assert_eq!((output.exit_code, output.end, output.stdout.text.as_str()), (124, CommandEnd::TimedOut, "begun"));
    assert_eq!(output.stderr.text, "err\nThe command was killed: it took longer than 1 s.\n");
    let requests = service.requests();
    let kill = requests.last().unwrap();
    assert_eq!(kill.target, "POST /process.Process/SendSignal");
    assert_eq!((kill.header("content-type"), kill.header("connect-protocol-version")), ("application/json", "1"));
    assert_eq!(body(kill), json!({"process": {"pid": PID}, "signal": "SIGNAL_SIGKILL"}));
    // The sandbox enforces the same timeout.
    let exceeded = json!({"error": {"code": "deadline_exceeded", "message": "context deadline exceeded"}});
    let output = service.run(&[end_of_stream(&exceeded)]).await.unwrap();
    assert_eq!((output.exit_code, output.end), (124, CommandEnd::TimedOut));
    assert_eq!(output.stderr.text, "The command was killed: it took longer than 1 s.\n");
}

#[tokio::test]
async fn a_stream_that_breaks_is_not_the_end_of_the_command() {
    let service = Service::start().await;
    let process = Process::new(&[output("stdout", b"begun")]);
    let without_end = Process::new(&[output("stdout", b"begun"), end_of_stream(&json!({}))]);
    for process in [process.clone().ending(Ending::Broken), process, without_end] {
        let err = service.run_process(process).await.unwrap_err();
        assert_eq!(err.to_string(), "the E2B sandbox has closed the connection before the command has ended");
        assert!(matches!(err, ProviderError::Unavailable { .. }));
    }
    // After the end, the connection is not needed.
    service.run_process(Process::new(&[end(0)]).ending(Ending::Broken)).await.unwrap();
}

#[tokio::test]
async fn the_errors_of_calls_are_readable() {
    let service = Service::start().await;
    for (code, is_unavailable, expected) in [
        ("unavailable", true, "the E2B sandbox cannot run the command: unavailable: why"),
        ("resource_exhausted", true, "the E2B sandbox cannot run the command: resource_exhausted: why"),
        ("unauthenticated", false, "the response of the E2B sandbox is the error unauthenticated: why"),
        ("not_found", false, "the response of the E2B sandbox is the error not_found: why"),
    ] {
        let error = end_of_stream(&json!({"error": {"code": code, "message": "why"}}));
        let late = Process::new(&[output("stdout", b"begun"), error.clone()]);
        let early = Process { chunks: vec![error.into()], ..late.clone() };
        for process in [early, late] {
            let err = service.run_process(process).await.unwrap_err();
            assert_eq!(
                (err.to_string().as_str(), matches!(err, ProviderError::Unavailable { .. })),
                (expected, is_unavailable)
            );
        }
    }
    let early = Process { chunks: vec![output("stdout", b"a").into()], ..Process::new(&[]) };
    let err = service.run_process(early).await.unwrap_err();
    assert_eq!(err.to_string(), "the response of the E2B sandbox does not begin with the start of the process");
    service.mock.set_response("POST /process.Process/Start", 502, r#"{"code": 502, "message": "not found"}"#);
    let err = service.provider.run_command("i1", "make", KEEPALIVE).await.unwrap_err();
    assert_eq!(err.to_string(), "the E2B sandbox responds with status 502: not found");
    assert!(matches!(err, ProviderError::Unavailable { .. }));
}

#[tokio::test]
async fn errors_of_the_api_are_readable() {
    let service = Service::start().await;
    let body = r#"{"code": 0, "message": "why"}"#;
    for (status, expected) in [
        (401, "E2B rejects the key; check E2B_API_KEY"),
        (403, "E2B rejects the key; check E2B_API_KEY"),
        (429, "E2B responds with status 429: why"),
        (500, "E2B responds with status 500: why"),
        (400, "the response of E2B has the unexpected status 400: why"),
    ] {
        for target in ["POST /sandboxes", "POST /sandboxes/i1/connect", "DELETE /sandboxes/i1"] {
            service.mock.set_response(target, status, body);
        }
        let created = service.provider.create(SandboxId::new(), KEEPALIVE).await.unwrap_err();
        let used = service.provider.run_command("i1", "make", KEEPALIVE).await.unwrap_err();
        let ended = service.provider.end("i1").await.unwrap_err();
        for err in [created, used, ended] {
            assert_eq!(err.to_string(), expected);
            assert_eq!(matches!(err, ProviderError::Unavailable { .. }), status != 400);
        }
    }
    service.mock.set_response("POST /sandboxes", 201, r#"{"sandboxID": "../i1"}"#);
    let err = service.provider.create(SandboxId::new(), KEEPALIVE).await.unwrap_err();
    assert_eq!(err.to_string(), "the response of E2B has no valid `sandboxID`");
    let unreachable = new_provider("http://127.0.0.1:1", &service.dir);
    let err = unreachable.run_command("i1", "make", KEEPALIVE).await.unwrap_err();
    assert_eq!(err.to_string(), "E2B cannot be reached");
}

#[tokio::test]
async fn a_sandbox_that_has_ended_is_recognized() {
    let service = Service::start().await;
    for target in ["POST /sandboxes/i1/connect", "DELETE /sandboxes/i1"] {
        service.mock.set_response(target, 404, r#"{"code": 404, "message": "not found"}"#);
    }
    let provider = &service.provider;
    assert!(matches!(provider.run_command("i1", "ls", KEEPALIVE).await, Err(ProviderError::Ended)));
    assert!(matches!(provider.read_file("i1", "/a", 1).await, Err(ProviderError::Ended)));
    assert!(matches!(provider.write_file("i1", "/", file("a", b"a", false)).await, Err(ProviderError::Ended)));
    let written = provider.write_dir("i1", "/", "d", vec![file("a", b"a", false)]).await;
    assert!(matches!(written, Err(ProviderError::Ended)));
    provider.end("i1").await.unwrap();
}

#[tokio::test]
async fn a_restart_loses_no_sandbox() {
    let service = Service::start().await;
    let id = service.provider.create(SandboxId::new(), KEEPALIVE).await.unwrap();
    let restarted = new_provider(&service.mock.url, &service.dir);
    restarted.run_command(&id, "make", KEEPALIVE).await.unwrap();
    // `targets` checks the token.
    assert_eq!(service.targets(), ["POST /sandboxes", "POST /sandboxes/i1/connect", "make"]);
}

#[tokio::test]
async fn files_are_copied_byte_by_byte() {
    let service = Service::start().await;
    // More than what is buffered in memory.
    let content: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    service.provider.write_file("i1", "/work dir/", file("a'b", &content, true)).await.unwrap();
    assert_eq!(service.mock.file("/work dir/a'b").unwrap(), content);
    assert_eq!(
        service.targets(),
        [
            "POST /sandboxes/i1/connect",
            "POST /files?path=%2Fwork+dir%2Fa%27b",
            "POST /sandboxes/i1/connect",
            r"chmod 755 -- '/work dir/a'\''b'",
        ]
    );
    service.provider.write_file("i1", "/", file("empty", b"", false)).await.unwrap();
    assert_eq!(service.mock.file("/empty").unwrap(), "");
    assert_eq!(service.targets().len(), 2);

    for (path, mode) in [("/work dir/a'b", "755"), ("/empty", "644")] {
        let content = service.mock.file(path).unwrap();
        let line = format!("{mode} {}\n", content.len());
        service.mock.set_commands(move |_| Process::with_output(&line, 0));
        let read = service.provider.read_file("i1", path, content.len() as u64).await.unwrap();
        assert_eq!((read.content.bytes().await.unwrap(), read.is_executable), (content, mode == "755"));
    }
    assert_eq!(service.targets().last().unwrap(), "GET /files?path=%2Fempty");
}

#[tokio::test]
async fn files_that_cannot_be_read_are_errors() {
    let service = Service::start().await;
    service.mock.set_file("/large", vec![b'a'; 11].into());
    // The file grows after its size was read.
    service.mock.set_commands(|_| Process::with_output("644 5\n", 0));
    let read = async |path, max_bytes| service.provider.read_file("i1", path, max_bytes).await.map(drop);
    assert!(matches!(read("/large", 10).await, Err(ProviderError::FileTooLarge(10))));
    read("/large", 11).await.unwrap();
    assert!(matches!(read("/none", 10).await, Err(ProviderError::FileNotFound(path)) if path == "/none"));
    service.requests();
    assert!(matches!(read("/large", 4).await, Err(ProviderError::FileTooLarge(4))));
    assert_eq!(service.targets().len(), 2, "a file that is known to be too large is not read");
    service.mock.set_commands(|_| Process::with_output("", 66));
    assert!(matches!(read("/none", 10).await, Err(ProviderError::FileNotFound(_))));
}

#[tokio::test]
async fn files_that_cannot_be_written_are_errors() {
    let service = Service::start().await;
    let write = async |file| service.provider.write_file("i1", "/", file).await.unwrap_err();
    for status in [400, 500, 507] {
        service.mock.set_response("POST /files", status, r#"{"code": 500, "message": "path is a file: /a"}"#);
        let err = write(file("a/b", b"b", false)).await;
        assert!(matches!(err, ProviderError::FileRejected(_)));
        assert_eq!(err.to_string(), "the sandbox does not accept the path /a/b: path is a file: /a");
    }
    // Not from the service in the sandbox.
    service.mock.set_response("POST /files", 500, "<html>");
    let err = write(file("a", b"b", false)).await;
    assert_eq!(err.to_string(), "the E2B sandbox responds with status 500");
    let chunks = [Ok(Bytes::from_static(b"a")), Err(std::io::Error::other("no object"))];
    let broken = FileToWrite { content: stream::iter(chunks).boxed(), ..file("a", b"ab", false) };
    assert!(matches!(write(broken).await, ProviderError::Content(err) if err.to_string() == "no object"));
}

#[tokio::test]
async fn a_directory_is_written_under_a_temporary_name() {
    let service = Service::start().await;
    let files = || vec![file("SKILL.md", b"text", false), file("scripts/run.sh", b"run", true)];
    service.provider.write_dir("i1", "/skills", "one", files()).await.unwrap();
    let targets: Vec<String> = service.targets().into_iter().filter(|target| !target.ends_with("/connect")).collect();
    let [begin, first, second, chmod, rename] = &targets[..] else { panic!("{targets:?}") };
    assert_eq!(begin, "if [ -e '/skills/one' ]; then exit 73; fi");
    let incoming = first.strip_prefix("POST /files?path=").unwrap().strip_suffix("%2FSKILL.md").unwrap();
    assert_eq!(*second, format!("POST /files?path={incoming}%2Fscripts%2Frun.sh"));
    let incoming = incoming.replace("%2F", "/");
    assert!(incoming.starts_with("/skills/.incoming-"), "{incoming}");
    assert_eq!(*chmod, format!("chmod 755 -- '{incoming}/scripts/run.sh'"));
    assert_eq!(*rename, format!("mv -T -- '{incoming}' '/skills/one'"));
    service.mock.set_commands(|_| Process::with_output("", 73));
    let again = service.provider.write_dir("i1", "/skills", "one", files()).await;
    assert!(matches!(again, Err(ProviderError::AlreadyExists)));
}

#[tokio::test]
async fn a_command_that_is_too_long_for_an_argument_is_written_to_a_file() {
    let service = Service::start().await;
    let longest = "a".repeat(128 * 1024 - 1);
    service.provider.run_command("i1", &longest, KEEPALIVE).await.unwrap();
    assert_eq!(service.targets(), ["POST /sandboxes/i1/connect", &longest]);
    let command = format!("{longest}a");
    service.provider.run_command("i1", &command, KEEPALIVE).await.unwrap();
    let targets = service.targets();
    let path = targets[1].strip_prefix("POST /files?path=").unwrap().replace("%2F", "/");
    assert_eq!(service.mock.file(&path).unwrap(), command);
    assert_eq!(targets[2], format!(r#"eval -- "$(cat -- {path}; rm -f -- {path})""#));
}
