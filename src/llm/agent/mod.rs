//! The tool loop of all agents. It sends a conversation to the model, executes the tool calls in its response, and appends their
//! results. It repeats this until the model has finished or a limit is reached.
//!
//! Every tool call is answered, because providers reject a conversation with an unanswered call. A mistake of the model does not
//! end the run: the result of the call describes the mistake, so that the model can correct it. The tools of an agent are a
//! [`Toolbox`]. When a run is about to end, its toolbox can continue it with another message.

pub mod arguments;
mod history;
#[cfg(test)]
mod tests;

use std::num::NonZeroU32;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::time::Instant;

use self::arguments::{expected_arguments, parse_arguments, parse_object};
use self::history::History;
use super::{
    AssistantMessage, CallOrigin, ChatMessage, ChatRequest, ChatResponse, Llm, LlmError, StopReason, Tool, ToolCall,
    ToolChoice, ToolResult,
};
use crate::conversation::tokens;
use crate::text_enum::text_enum;

/// The number of consecutive responses with nothing but errors that ends a run. A capable model corrects a mistake in the next
/// response; the third such response shows that the model cannot use the tools.
const MAX_ERROR_RESPONSES: u32 = 3;

/// The maximum number of calls of one response that are executed.
const MAX_CALLS: usize = 128;

const TOO_MANY_CALLS: &str = "This call was not executed, because there are too many tool calls in one response. \
     Send it again in the next response.";
const TRUNCATED_CALL: &str = "This call was not executed, because the response was cut off by the token limit. \
     Send it again, with less text in one call and fewer calls in one response.";
const TRUNCATED_TEXT: &str = "Your last response was cut off by the token limit before it called a tool. \
     Call the tools now, with less text in one response.";
const CUT_OFF_RESPONSE: &str = "[The response was cut off.]";
/// What a message without text and calls is replaced with, because providers reject empty messages.
const EMPTY_RESPONSE: &str = "[The response was empty.]";
const FINISHED: &str = "Finished.";
const NOT_FINISHED: &str = "Not finished, because another call of the same response has failed. Correct that call if it is \
     needed, and then finish.";
/// The text of an empty tool result, which some providers reject.
const EMPTY_RESULT: &str = "[empty]";

/// The tools of an agent, with their state.
pub trait Toolbox: Send {
    fn tools(&self) -> &[Tool];

    /// Parses the arguments of a call as a type with the parameters of the called tool. Unknown arguments are ignored.
    ///
    /// # Errors
    /// Returns a text for the model if the arguments are not valid, or if there is no such tool.
    fn parse<T: DeserializeOwned>(&self, name: &str, arguments: Map<String, Value>) -> Result<T, String> {
        let tool = self.tools().iter().find(|tool| tool.name == name).ok_or("There is no tool of this name.")?;
        parse_arguments(tool, arguments)
    }

    /// Executes a call of one of the [`tools`](Self::tools). The arguments may not match the tool's schema.
    fn call(&mut self, name: &str, arguments: Map<String, Value>) -> impl Future<Output = ToolReply> + Send;

    /// Returns the message with which a run continues that is about to end, or `None` if it ends. The outcome is `Finished`,
    /// `NoToolCalls` or `MaxIterations`; a run with another outcome always ends. By default, every run ends.
    fn next_message(&mut self, outcome: AgentOutcome) -> impl Future<Output = Option<NextMessage>> + Send {
        let _ = outcome;
        std::future::ready(None)
    }
}

/// A message with which a run continues. It is appended to the conversation as a message of the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextMessage {
    pub text: String,
    /// The number of responses by which the limit of the run increases, at least 1.
    pub extra_iterations: NonZeroU32,
}

/// The reply of a tool to a call.
#[derive(Debug, PartialEq, Eq)]
pub enum ToolReply {
    Text(String),
    /// A mistake of the model: what is wrong, and what to do instead.
    Error(String),
    /// The run ends after the other calls of the response, unless the toolbox continues it.
    Finish,
}

/// A run of an agent.
pub struct AgentRequest<'a> {
    /// The instructions for the model.
    pub system: &'a str,
    /// Renders the first message with at most this number of tokens. If the request is too long for the model, the run calls the
    /// function again with a smaller number.
    pub first_message: &'a (dyn Fn(usize) -> String + Send + Sync),
    /// The maximum length of the first message in tokens, as counted by [`tokens::count_text`].
    pub first_message_tokens: usize,
    /// The length in tokens above which old tool results are shortened. It does not include the first message.
    pub history_tokens: usize,
    /// The maximum number of responses, without the extra ones of the messages with which the run continues.
    pub max_iterations: u32,
    /// The maximum length of a response, in tokens.
    pub max_tokens: u32,
    /// The deadline of each request of the run, and therefore of the run.
    pub deadline: Instant,
    pub origin: CallOrigin,
}

text_enum! {
    /// The reason why a run of an agent ended, as a label in logs and metrics: the model called a tool that ends the run
    /// (`finished`), called no tool (`no_tool_calls`), used all iterations (`max_iterations`), or repeatedly made nothing but
    /// mistakes (`only_errors`), or the provider withheld the response (`content_filter`).
    pub enum AgentOutcome {
        Finished = "finished",
        NoToolCalls = "no_tool_calls",
        MaxIterations = "max_iterations",
        OnlyErrors = "only_errors",
        ContentFilter = "content_filter",
    }
}

/// The result of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgentRun {
    pub outcome: AgentOutcome,
    /// The number of responses.
    pub iterations: u32,
}

/// Runs an agent until its model calls a tool that replies with [`ToolReply::Finish`], calls no tool, or reaches a limit, and
/// [`Toolbox::next_message`] returns no message.
///
/// The calls of a response are executed one after another, in their order. If the request is too long for the model, it is sent
/// again with half of the first message, once per run.
///
/// # Errors
/// Returns an error if a request to the model fails. The effects of the earlier tool calls remain in the toolbox.
pub async fn run_agent<T: Toolbox>(
    llm: &dyn Llm,
    request: &AgentRequest<'_>,
    toolbox: &mut T,
) -> Result<AgentRun, LlmError> {
    let mut history = History::new((request.first_message)(request.first_message_tokens), request.history_tokens);
    let (mut is_halved, mut error_responses) = (false, 0);
    let (mut iterations, mut max_iterations) = (0, request.max_iterations);
    let mut accepts_errors = false;
    loop {
        let step = if iterations == max_iterations {
            Step::End(AgentOutcome::MaxIterations)
        } else {
            iterations += 1;
            let response = chat(llm, request, toolbox.tools(), &mut history, &mut is_halved).await?;
            process_response(toolbox, &mut history, response, &mut accepts_errors).await
        };
        let outcome = match step {
            Step::End(outcome) => outcome,
            Step::Success => {
                error_responses = 0;
                continue;
            }
            Step::Errors if error_responses + 1 < MAX_ERROR_RESPONSES => {
                error_responses += 1;
                continue;
            }
            Step::Errors => AgentOutcome::OnlyErrors,
        };
        let next = match outcome {
            AgentOutcome::OnlyErrors | AgentOutcome::ContentFilter => None,
            _ => toolbox.next_message(outcome).await,
        };
        let Some(next) = next else { return Ok(AgentRun { outcome, iterations }) };
        history.push(ChatMessage::User(next.text));
        max_iterations = max_iterations.saturating_add(next.extra_iterations.get());
        (error_responses, accepts_errors) = (0, false);
    }
}

/// The effect of a response on the run.
enum Step {
    /// The run ends with this outcome, unless the toolbox continues it.
    End(AgentOutcome),
    /// At least one call has succeeded.
    Success,
    /// No call has succeeded.
    Errors,
}

/// Executes the calls of a response, and appends the response and their results to the conversation.
///
/// If the response ends the run although another of its calls has failed, the run continues, so that the model can correct the
/// call. `accepts_errors` is set then: the next response that ends the run does so in any case.
async fn process_response<T: Toolbox>(
    toolbox: &mut T,
    history: &mut History,
    response: ChatResponse,
    accepts_errors: &mut bool,
) -> Step {
    let ChatResponse { message, stop_reason, .. } = response;
    if message.tool_calls.is_empty() {
        return match stop_reason {
            StopReason::ContentFilter => Step::End(AgentOutcome::ContentFilter),
            StopReason::MaxTokens => {
                push_text(history, message, CUT_OFF_RESPONSE);
                history.push(ChatMessage::User(TRUNCATED_TEXT.into()));
                Step::Errors
            }
            _ => {
                push_text(history, message, EMPTY_RESPONSE);
                Step::End(AgentOutcome::NoToolCalls)
            }
        };
    }
    let mut results = execute_calls(toolbox, &message.tool_calls, stop_reason == StopReason::MaxTokens).await;
    history.push(ChatMessage::Assistant(replace_invalid_arguments(message)));
    let has_finished = !results.finish_calls.is_empty();
    let must_correct = has_finished && !*accepts_errors && results.results.iter().any(|result| result.is_error);
    if must_correct {
        *accepts_errors = true;
        for index in results.finish_calls {
            results.results[index].text = NOT_FINISHED.into();
        }
    }
    let has_success = results.results.iter().any(|result| !result.is_error);
    history.push(ChatMessage::ToolResults(results.results));
    match (has_finished && !must_correct, has_success) {
        (true, _) => Step::End(AgentOutcome::Finished),
        (false, true) => Step::Success,
        (false, false) => Step::Errors,
    }
}

/// Sends the conversation to the model. If it is too long, halves it and sends it again, unless it was halved before.
async fn chat(
    llm: &dyn Llm,
    request: &AgentRequest<'_>,
    tools: &[Tool],
    history: &mut History,
    is_halved: &mut bool,
) -> Result<ChatResponse, LlmError> {
    history.shorten_old_results();
    match llm.chat(&chat_request(request, tools, history)).await {
        Err(LlmError::ContextTooLong(_)) if !*is_halved => {
            *is_halved = true;
            // The message may be shorter than its limit, so that half of the limit would change nothing.
            let tokens = history.first_message_tokens().min(request.first_message_tokens) / 2;
            history.halve((request.first_message)(tokens));
            llm.chat(&chat_request(request, tools, history)).await
        }
        result => result,
    }
}

fn chat_request<'a>(request: &'a AgentRequest<'_>, tools: &'a [Tool], history: &'a History) -> ChatRequest<'a> {
    ChatRequest {
        system: request.system,
        messages: history.messages(),
        tools,
        tool_choice: ToolChoice::Auto,
        max_tokens: request.max_tokens,
        deadline: request.deadline,
        origin: request.origin,
    }
}

/// The results of all tool calls in a response.
struct CallResults {
    /// One result for each call, in the same order.
    results: Vec<ToolResult>,
    /// The indexes of the calls to which a tool replied with [`ToolReply::Finish`].
    finish_calls: Vec<usize>,
}

/// Executes the tool calls of a response, up to [`MAX_CALLS`]. The last call of a truncated response is not executed, because its arguments may be
/// incomplete although they are valid: some providers leave out the fields that were cut off.
async fn execute_calls<T: Toolbox>(toolbox: &mut T, calls: &[ToolCall], is_truncated: bool) -> CallResults {
    let mut results = CallResults { results: Vec::with_capacity(calls.len()), finish_calls: Vec::new() };
    for (index, call) in calls.iter().enumerate() {
        let reply = if index >= MAX_CALLS {
            ToolReply::Error(TOO_MANY_CALLS.into())
        } else if is_truncated && index + 1 == calls.len() {
            ToolReply::Error(TRUNCATED_CALL.into())
        } else {
            execute_call(toolbox, call).await
        };
        let (mut text, is_error) = match reply {
            ToolReply::Text(text) => (text, false),
            ToolReply::Error(text) => (text, true),
            ToolReply::Finish => {
                results.finish_calls.push(index);
                (FINISHED.into(), false)
            }
        };
        if text.is_empty() {
            text = EMPTY_RESULT.into();
        }
        results.results.push(ToolResult { call_id: call.id.clone(), text, is_error });
    }
    results
}

async fn execute_call<T: Toolbox>(toolbox: &mut T, call: &ToolCall) -> ToolReply {
    let Some(tool) = toolbox.tools().iter().find(|tool| tool.name == call.name) else {
        let names: Vec<_> = toolbox.tools().iter().map(|tool| tool.name).collect();
        return ToolReply::Error(format!("There is no tool of this name. The tools are: {}.", names.join(", ")));
    };
    match parse_object(&call.arguments) {
        Ok(arguments) => toolbox.call(&call.name, arguments).await,
        Err(reason) => ToolReply::Error(format!("The arguments {reason}. {}", expected_arguments(tool))),
    }
}

/// Replaces the arguments of calls that are not a JSON object with `{}`, because providers reject a conversation that contains
/// invalid arguments. The clients of the providers do the same in [`AssistantMessage::raw`].
fn replace_invalid_arguments(mut message: AssistantMessage) -> AssistantMessage {
    for call in &mut message.tool_calls {
        if parse_object(&call.arguments).map_or(true, |arguments| arguments.is_empty()) {
            call.arguments = "{}".into();
        }
    }
    message
}

/// Appends a message of the model without calls. A blank text is replaced, because providers reject empty messages.
fn push_text(history: &mut History, message: AssistantMessage, replacement: &str) {
    let message = if message.text.trim().is_empty() {
        AssistantMessage { text: replacement.into(), ..AssistantMessage::default() }
    } else {
        message
    };
    history.push(ChatMessage::Assistant(message));
}

/// Estimates the number of tokens of a message. The estimate uses the encoding of `OpenAI` for all models.
fn count_tokens(message: &ChatMessage) -> usize {
    match message {
        ChatMessage::User(text) => tokens::count_text(text),
        ChatMessage::Assistant(AssistantMessage { raw: Some(raw), .. }) => tokens::count_text(raw.get()),
        ChatMessage::Assistant(AssistantMessage { text, tool_calls, .. }) => {
            let calls = tool_calls.iter().map(|call| {
                tokens::count_text(&call.id) + tokens::count_text(&call.name) + tokens::count_text(&call.arguments)
            });
            tokens::count_text(text) + calls.sum::<usize>()
        }
        ChatMessage::ToolResults(results) => {
            results.iter().map(|result| tokens::count_text(&result.call_id) + tokens::count_text(&result.text)).sum()
        }
    }
}
