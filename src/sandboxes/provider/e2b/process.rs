//! Runs the commands of a sandbox: starts a process, reads its events until it ends, and kills it if it takes too long.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::REQUEST_TIMEOUT;
use super::envd::Envd;
use super::stream::{CallError, Decoder, MEDIA_TYPE, Message, encode};
use crate::sandboxes::provider::http::JsonApi;
use crate::sandboxes::provider::output::{Excerpt, TIMED_OUT_EXIT_CODE, append_kill_reason, describe_timeout};
use crate::sandboxes::provider::{CommandEnd, CommandOutput, ProviderError};

/// How often a running process sends an event at least, in seconds, so that no proxy closes the connection.
const KEEPALIVE_PING_SECONDS: &str = "50";
/// The time after its timeout at which the sandbox itself ends a process, if this server has not done so.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(10);

/// A message of the stream of a process.
#[derive(Deserialize)]
struct StreamedEvent {
    #[serde(default)]
    event: Event,
}

/// An event of a process. Has one of the fields, or none if it only keeps the connection open.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Event {
    start: Option<Start>,
    data: Option<Data>,
    end: Option<End>,
}

#[derive(Deserialize)]
struct Start {
    pid: u32,
}

/// Output of a process, in base64.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Data {
    stdout: String,
    stderr: String,
}

/// How a process has ended. A number that is 0 is absent.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct End {
    exit_code: i32,
    /// For a process that was killed, `signal: ` and the name of the signal.
    status: String,
}

impl End {
    /// Returns the exit code of a shell: that of the program, or 128 and the number of the signal that has killed it.
    fn exit_code(&self) -> i32 {
        let signal = self.status.strip_prefix("signal: ").and_then(signal_number);
        signal.map_or(self.exit_code, |number| 128 + number)
    }
}

/// Returns the number of a signal from its name in Go's `syscall`, which the sandbox uses.
fn signal_number(name: &str) -> Option<i32> {
    let name = name.strip_suffix(" (core dumped)").unwrap_or(name);
    let number = match name {
        "hangup" => 1,
        "interrupt" => 2,
        "quit" => 3,
        "illegal instruction" => 4,
        "trace/breakpoint trap" => 5,
        "aborted" => 6,
        "bus error" => 7,
        "floating point exception" => 8,
        "killed" => 9,
        "user defined signal 1" => 10,
        "segmentation fault" => 11,
        "user defined signal 2" => 12,
        "broken pipe" => 13,
        "alarm clock" => 14,
        "terminated" => 15,
        _ => return name.strip_prefix("signal ")?.parse().ok(),
    };
    Some(number)
}

/// The stream of a process.
struct ProcessStream<'a> {
    api: &'a JsonApi,
    body: BoxStream<'static, reqwest::Result<Bytes>>,
    decoder: Decoder,
}

impl ProcessStream<'_> {
    /// Returns the next event, or the error with which the sandbox has ended the stream.
    ///
    /// # Errors
    /// Returns [`ProviderError::Unavailable`] if the stream ends without one of them, and [`ProviderError::BadResponse`] if it does
    /// not follow the protocol.
    async fn next(&mut self) -> Result<Result<Event, CallError>, ProviderError> {
        loop {
            match self.decoder.next().map_err(|what| self.api.bad_response(what, None))? {
                Some(Message::Data(message)) => {
                    let parsed = serde_json::from_value(message).map(|message: StreamedEvent| Ok(message.event));
                    return parsed
                        .map_err(|err| self.api.bad_response("has an event that is not valid", Some(err.into())));
                }
                Some(Message::End(Some(error))) => return Ok(Err(error)),
                Some(Message::End(None)) => return Err(self.broken(None)),
                None => {}
            }
            let chunk = self.body.try_next().await.map_err(|err| self.broken(Some(&err)))?;
            self.decoder.push(&chunk.ok_or_else(|| self.broken(None))?);
        }
    }

    fn broken(&self, err: Option<&reqwest::Error>) -> ProviderError {
        let cause = err.map(|err| anyhow::anyhow!("{err:?}"));
        self.api.unavailable("has closed the connection before the command has ended", cause)
    }

    /// Reads the events until the process ends. Returns `None` if the sandbox has ended it, because it took too long.
    async fn read(&mut self, stdout: &mut Excerpt, stderr: &mut Excerpt) -> Result<Option<End>, ProviderError> {
        loop {
            let event = match self.next().await? {
                Ok(event) => event,
                Err(error) if error.code == "deadline_exceeded" => return Ok(None),
                Err(error) => return Err(call_error(self.api, &error)),
            };
            if let Some(data) = event.data {
                stdout.push(&self.decode(&data.stdout)?);
                stderr.push(&self.decode(&data.stderr)?);
            }
            if event.end.is_some() {
                return Ok(event.end);
            }
        }
    }

    fn decode(&self, text: &str) -> Result<Vec<u8>, ProviderError> {
        STANDARD.decode(text).map_err(|err| self.api.bad_response("has output that is not base64", Some(err.into())))
    }
}

/// Returns the error for a call that the sandbox has answered with an error.
fn call_error(api: &JsonApi, error: &CallError) -> ProviderError {
    let CallError { code, message } = error;
    match code.as_str() {
        // The next call finds out from the service whether the sandbox has ended.
        "unavailable" | "canceled" | "aborted" | "resource_exhausted" | "deadline_exceeded" | "internal"
        | "unknown" => api.unavailable(&format!("cannot run the command: {code}: {message}"), None),
        _ => api.bad_response(&format!("is the error {code}: {message}"), None),
    }
}

impl Envd {
    /// Runs a shell command to its end.
    pub(super) async fn run_command(
        &self,
        command: &str,
        timeout: Duration,
        max_output_bytes: usize,
    ) -> Result<CommandOutput, ProviderError> {
        let (mut stream, pid) = self.api.within(REQUEST_TIMEOUT, self.start(command, timeout)).await?;
        let (mut stdout, mut stderr) = (Excerpt::new(max_output_bytes), Excerpt::new(max_output_bytes));
        let end = tokio::time::timeout(timeout, stream.read(&mut stdout, &mut stderr)).await;
        if end.is_err()
            && let Err(err) = self.kill(pid).await
        {
            tracing::warn!(error = %err, "cannot kill a command that takes too long; the sandbox kills it soon");
        }
        let (stdout, mut stderr) = (stdout.finish(), stderr.finish());
        if let Some(end) = end.unwrap_or(Ok(None))? {
            return Ok(CommandOutput { stdout, stderr, exit_code: end.exit_code(), end: CommandEnd::Exited });
        }
        append_kill_reason(&mut stderr, &describe_timeout(timeout));
        Ok(CommandOutput { stdout, stderr, exit_code: TIMED_OUT_EXIT_CODE, end: CommandEnd::TimedOut })
    }

    /// Starts a shell command. Returns the stream of its events and the id of its process.
    async fn start(&self, command: &str, timeout: Duration) -> Result<(ProcessStream<'_>, u32), ProviderError> {
        let process = json!({"cmd": "/bin/bash", "args": ["-l", "-c", command]});
        let mut request = self
            .rpc("Start", MEDIA_TYPE)
            .header("Connect-Timeout-Ms", (timeout + TIMEOUT_MARGIN).as_millis().to_string())
            .header("Keepalive-Ping-Interval", KEEPALIVE_PING_SECONDS)
            .body(encode(&json!({"process": process, "stdin": false})));
        if let Some(user) = self.user {
            request = request.header(AUTHORIZATION, format!("Basic {}", STANDARD.encode(format!("{user}:"))));
        }
        let response = self.api.send(request).await?;
        if response.status() != StatusCode::OK {
            let (status, body) = self.api.read_json(response).await?;
            return Err(self.api.unexpected_status(status, &body));
        }
        let body = response.bytes_stream().boxed();
        let mut stream = ProcessStream { api: &self.api, body, decoder: Decoder::default() };
        loop {
            match stream.next().await? {
                Ok(Event { start: Some(start), .. }) => return Ok((stream, start.pid)),
                Ok(Event { data: None, end: None, .. }) => {}
                Ok(_) => return Err(self.api.bad_response("does not begin with the start of the process", None)),
                Err(error) => return Err(call_error(&self.api, &error)),
            }
        }
    }

    /// Kills a process. Has no effect if it has already ended.
    async fn kill(&self, pid: u32) -> Result<(), ProviderError> {
        let body: Value = json!({"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"});
        let request = self.rpc("SendSignal", "application/json").body(body.to_string());
        let response = async { self.api.read_json(self.api.send(request).await?).await };
        match self.api.within(REQUEST_TIMEOUT, response).await? {
            (StatusCode::OK | StatusCode::NOT_FOUND, _) => Ok(()),
            (status, body) => Err(self.api.unexpected_status(status, &body)),
        }
    }

    fn rpc(&self, method: &str, media_type: &'static str) -> RequestBuilder {
        let request = self.api.request(Method::POST, &format!("/process.Process/{method}"));
        request.header(CONTENT_TYPE, media_type).header("Connect-Protocol-Version", "1")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_that_of_a_shell() {
        for (end, exit_code) in [
            (json!({}), 0),
            (json!({"exited": true, "status": "exit status 0"}), 0),
            (json!({"exitCode": 3, "exited": true, "status": "exit status 3", "error": "exit status 3"}), 3),
            (json!({"exitCode": -1, "status": "signal: killed", "error": "signal: killed"}), 137),
            (json!({"exitCode": -1, "status": "signal: segmentation fault (core dumped)"}), 139),
            (json!({"exitCode": -1, "status": "signal: signal 31"}), 159),
        ] {
            let parsed: End = serde_json::from_value(end.clone()).unwrap();
            assert_eq!(parsed.exit_code(), exit_code, "{end}");
        }
    }
}
