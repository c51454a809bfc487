//! The steps of a script: responses, errors and hooks.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::Value;
use tokio::sync::watch;

use super::ModelRequest;
use super::wire::Answer;

/// A step of a script: the server executes it for one request.
pub struct Step {
    action: Action,
    latch: Option<Latch>,
    header: Option<(&'static str, String)>,
}

enum Action {
    Answer(Answer),
    /// A body with a status, in the format of the wire if it is a message.
    Status(u16, String),
    /// The beginning of an answer, after which the connection is closed.
    Reset,
    /// No response, until the client closes the connection.
    Hang,
    /// A text with status 200 that is no valid answer.
    Body(String),
    /// An answer that is changed before it is sent.
    Edit(Answer, Box<dyn FnOnce(&mut Value) + Send>),
    Hook(Box<dyn FnOnce(&ModelRequest) -> Step + Send>),
}

impl Step {
    fn new(action: Action) -> Self {
        Self { action, latch: None, header: None }
    }

    /// An answer with a text and no tool call.
    pub fn text(text: &str) -> Self {
        Self::new(Action::Answer(Answer { text: text.into(), ..Answer::default() }))
    }

    /// An answer with one tool call. A string in place of the arguments is invalid: `OpenAI` sends the string itself, such as `""`
    /// for a tool without arguments, and Anthropic `null`.
    pub fn call(name: &str, arguments: Value) -> Self {
        Self::text("").and_call(name, arguments)
    }

    /// Adds a tool call to an answer.
    pub fn and_call(self, name: &str, arguments: Value) -> Self {
        self.with(|answer| answer.calls.push((name.into(), arguments)))
    }

    /// Sets the text of an answer with tool calls.
    pub fn with_text(self, text: &str) -> Self {
        self.with(|answer| answer.text = text.into())
    }

    /// Sets the token counts: of the request, how many of these are cached, and of the response.
    pub fn with_usage(self, input: u32, cached: u32, output: u32) -> Self {
        self.with(|answer| answer.usage = Some((input, cached, output)))
    }

    /// Removes the token counts.
    pub fn without_usage(self) -> Self {
        self.with(|answer| answer.usage = None)
    }

    /// Gives all tool calls of the answer the same id.
    pub fn with_call_id(self, id: &str) -> Self {
        self.with(|answer| answer.call_id = Some(id.into()))
    }

    /// Sets the reason why the answer ends: `finish_reason` of `OpenAI`, `stop_reason` of Anthropic.
    pub fn with_stop_reason(self, reason: &str) -> Self {
        self.with(|answer| answer.stop_reason = Some(reason.into()))
    }

    /// An answer that the token limit has cut off in the arguments of a tool call. Anthropic then sends no arguments.
    pub fn truncated(name: &str, arguments: &str) -> Self {
        Self::new(Action::Hook({
            let (name, arguments) = (name.to_owned(), arguments.to_owned());
            Box::new(move |request| {
                let (arguments, reason) = request.wire.truncated(&arguments);
                Self::call(&name, arguments).with_stop_reason(reason)
            })
        }))
    }

    /// An answer with which the model declines the request.
    pub fn refusal(text: &str) -> Self {
        Self::text(text).with(|answer| answer.is_refusal = true)
    }

    /// An error with a status, with the body of the provider.
    pub fn status(status: u16) -> Self {
        Self::error(status, "the scripted error")
    }

    /// An error with a status and a message.
    pub fn error(status: u16, message: &str) -> Self {
        Self::new(Action::Status(status, message.into()))
    }

    /// Adds the header `Retry-After` to an error.
    pub fn retry_after(self, value: &str) -> Self {
        self.with_header("retry-after", value)
    }

    /// Adds a header to an error.
    pub fn with_header(mut self, name: &'static str, value: &str) -> Self {
        self.header = Some((name, value.into()));
        self
    }

    /// No response, until the client closes the connection.
    pub fn hang() -> Self {
        Self::new(Action::Hang)
    }

    /// Half a response, after which the connection is closed.
    pub fn reset() -> Self {
        Self::new(Action::Reset)
    }

    /// A response with status 200 that is not JSON.
    pub fn invalid_json() -> Self {
        Self::body("<html>Bad gateway</html>")
    }

    /// A response with status 200 and this body.
    pub fn body(body: &str) -> Self {
        Self::new(Action::Body(body.into()))
    }

    /// Changes the body of an answer before it is sent.
    pub fn edit(self, edit: impl FnOnce(&mut Value) + Send + 'static) -> Self {
        let Action::Answer(answer) = self.action else { panic!("only an answer can be edited") };
        Self { action: Action::Edit(answer, Box::new(edit)), ..self }
    }

    /// A step that is chosen when the request arrives.
    pub fn hook(hook: impl FnOnce(&ModelRequest) -> Step + Send + 'static) -> Self {
        Self::new(Action::Hook(Box::new(hook)))
    }

    /// Delays the response until the latch is released.
    pub fn after(mut self, latch: &Latch) -> Self {
        self.latch = Some(latch.clone());
        self
    }

    fn with(mut self, change: impl FnOnce(&mut Answer)) -> Self {
        let Action::Answer(answer) = &mut self.action else { panic!("the step is not an answer") };
        change(answer);
        self
    }

    /// Executes the step for a request.
    pub(super) async fn respond(self, request: &ModelRequest) -> Response {
        let mut step = self;
        loop {
            if let Some(latch) = step.latch.take() {
                latch.pass().await;
            }
            match step.action {
                Action::Hook(hook) => step = hook(request),
                action => return action.respond(request, step.header).await,
            }
        }
    }
}

impl Action {
    async fn respond(self, request: &ModelRequest, header: Option<(&str, String)>) -> Response {
        let wire = request.wire;
        let to_body = |answer: &Answer| wire.answer_body(answer, &request.body);
        match self {
            Self::Answer(answer) => json_response(to_body(&answer).to_string()),
            Self::Edit(answer, edit) => {
                let mut body = to_body(&answer);
                edit(&mut body);
                json_response(body.to_string())
            }
            Self::Body(body) => json_response(body),
            Self::Status(status, message) => {
                let mut response = wire.error_response(status, &message).into_response();
                let header = header.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
                response.headers_mut().extend(header.map(|(name, value)| (Some(name), value)));
                response
            }
            Self::Reset => {
                let body = to_body(&Answer::default()).to_string();
                let half = Bytes::from(body[..body.len() / 2].to_owned());
                let chunks = [Ok(half), Err(std::io::Error::other("the scripted reset"))];
                Response::new(Body::from_stream(stream::iter(chunks)))
            }
            Self::Hang => std::future::pending().await,
            Self::Hook(_) => unreachable!("executed by Step::respond"),
        }
    }
}

fn json_response(body: String) -> Response {
    ([("content-type", "application/json")], body).into_response()
}

/// Blocks steps until the test releases it, and tells the test that a request has arrived.
#[derive(Clone)]
pub struct Latch {
    arrivals: watch::Sender<usize>,
    is_released: watch::Sender<bool>,
}

impl Latch {
    pub fn new() -> Self {
        Self { arrivals: watch::Sender::new(0), is_released: watch::Sender::new(false) }
    }

    /// Waits until `count` requests have arrived at this latch. Panics after 30 seconds.
    pub async fn wait_for_requests(&self, count: usize) {
        let mut arrivals = self.arrivals.subscribe();
        let arrived = tokio::time::timeout(Duration::from_secs(30), arrivals.wait_for(|arrived| *arrived >= count));
        arrived.await.expect("no request has arrived at the latch").unwrap();
    }

    /// Lets all requests pass, also later ones.
    pub fn release(&self) {
        self.is_released.send_replace(true);
    }

    async fn pass(&self) {
        self.arrivals.send_modify(|arrived| *arrived += 1);
        self.is_released.subscribe().wait_for(|released| *released).await.unwrap();
    }
}
