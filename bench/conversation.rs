//! Reading the newest messages of a conversation, in each of the four formats.

use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};

use crate::corpus::prose;
use crate::http::{Client, Request};
use crate::load::{Outcome, Plan, Source, run_load, to_f64};
use crate::messages::store_message;
use crate::report::{Report, Table, number};
use crate::server::Server;
use crate::{Bench, block_on};

pub const FORMATS: [&str; 4] = ["openai", "anthropic", "gemini", "acontext"];
const MESSAGES: usize = 200;
/// The size of the text of a message, in bytes.
const SIZE: usize = 2_000;
/// The number of messages that are read, the number of clients, and the target for p50 in milliseconds.
const READS: [(usize, usize, f64); 2] = [(200, 4, 5.0), (20, 16, 3.0)];

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let headings = [
        "messages x clients, format",
        "responses/s",
        "p50 ms",
        "p99 ms",
        "KB/response",
        "server CPU us/response",
        "failed",
    ];
    let mut table = Table::new(&headings);
    block_on(async {
        let server = Server::start(bench, "conversation").await?;
        let mut client = server.client().await?;
        let session = client.new_session(false).await?;
        for number in 0..MESSAGES {
            client.data(&store_message(&session, &openai_message(number, SIZE))).await?;
        }
        for (limit, clients, target) in READS {
            for format in FORMATS {
                let request = page_request(&session, limit, format);
                let size = check_page(&mut client, &request, limit).await?;
                let before = server.process.cpu_time()?;
                let outcome = run_reads(bench, &server, clients, &request, 3).await;
                let cpu = server.process.cpu_time()?.saturating_sub(before);
                let label = format!("{limit} x {clients}, {format}");
                table.add_row(table_row(&label, size, &outcome, cpu));
                let p50 = outcome.times(None).p50();
                let (measured, target_text) = (format!("p50 {} ms", number(p50)), format!("p50 < {target} ms"));
                report.add_target(&label, &measured, &target_text, p50 < target && outcome.failed() == 0);
            }
        }
        server.stop()
    })?;
    report.add_text(&format!(
        "A session of {MESSAGES} messages of {SIZE} bytes, stored in the format `openai`: questions and answers, and \
         every fifth time a tool call and its result. The newest messages are read for 3 s."
    ));
    report.add_table("Conversation", &table);
    Ok(())
}

/// Returns a request for the newest messages.
pub fn page_request(session: &str, limit: usize, format: &str) -> Request {
    Request::get("GET", &format!("/api/v1/session/{session}/messages?limit={limit}&time_desc=true&format={format}"))
}

/// Checks that the response contains different messages, and about `limit` of them: in another format than that of the messages, the
/// messages of a tool turn are joined, and a page ends with a turn. Returns the length of its body in bytes.
async fn check_page(client: &mut Client, request: &Request, limit: usize) -> anyhow::Result<usize> {
    let page = client.data(request).await?;
    let items = page["items"].as_array().map_or(0, Vec::len);
    let ids = page["ids"].as_array().cloned().unwrap_or_default();
    let different: std::collections::HashSet<&str> = ids.iter().filter_map(Value::as_str).collect();
    let is_complete = (limit * 3 / 4..=limit + limit / 4).contains(&items);
    ensure!(is_complete && items == ids.len() && different.len() == items, "{items} messages instead of about {limit}");
    Ok(client.send(request).await?.body.len())
}

/// Sends the request with `clients` concurrent clients for `seconds` seconds.
pub async fn run_reads(bench: &Bench, server: &Server, clients: usize, request: &Request, seconds: u64) -> Outcome {
    let plan =
        Plan { clients, warm_up: Duration::from_millis(bench.full_or_quick(300, 100)), time: bench.seconds(seconds) };
    run_load(server.address, plan, |_| -> Source {
        let request = request.clone();
        Box::new(move || Some(request.clone()))
    })
    .await
}

pub fn table_row(label: &str, size: usize, outcome: &Outcome, cpu: Duration) -> Vec<String> {
    let times = outcome.times(None);
    vec![
        label.to_owned(),
        number(outcome.per_second()),
        number(times.p50()),
        number(times.p99()),
        number(to_f64(size as u64) / 1000.0),
        number(cpu.as_secs_f64() * 1e6 / to_f64(outcome.count())),
        outcome.failed().to_string(),
    ]
}

/// Returns a message in the format `openai`: alternately a question and an answer, and every fifth time a tool call and
/// its result.
pub fn openai_message(number: usize, size: usize) -> Value {
    let (turn, text) = (number / 2, &prose(number as u64, size)[..size]);
    let is_tool = turn.is_multiple_of(5);
    match (is_tool, number.is_multiple_of(2)) {
        (false, true) => json!({"role": "user", "content": text}),
        (false, false) => json!({"role": "assistant", "content": text}),
        (true, true) => {
            let arguments = json!({"text": text, "number": number}).to_string();
            let function = json!({"name": "write_notes", "arguments": arguments});
            let call = json!({"id": format!("call_{turn}"), "type": "function", "function": function});
            json!({"role": "assistant", "content": null, "tool_calls": [call]})
        }
        (true, false) => json!({"role": "tool", "tool_call_id": format!("call_{turn}"), "content": text}),
    }
}
