//! The memory of the server process while JSON of very many small values is stored and read, by a single request and by
//! 64 concurrent requests.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;
use tokio::task::JoinSet;

use crate::http::{Client, Request};
use crate::memory::mib;
use crate::report::{Report, Table, number};
use crate::server::{Memory, Server};
use crate::{Bench, block_on};

const CLIENTS: usize = 64;
/// The length of most bodies in bytes, which is just below the limit for a message.
const LENGTH: usize = 31 << 20;
/// The server's limit for the number of values in a body.
const MAX_VALUES: usize = 250_000;
/// The target for the growth of the memory by a single request, in MiB.
const MAX_GROWTH_ALONE_MIB: f64 = 300.0;
/// The target for the growth of the memory by 64 concurrent requests, in MiB.
const MAX_GROWTH_TOGETHER_MIB: f64 = 1024.0;
/// How long a server is idle before its memory is measured, in seconds.
const IDLE_SECS: u64 = 10;

/// A request and its name.
struct Case {
    name: &'static str,
    request: Request,
}

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let headings = [
        "request",
        "body MiB",
        "status, 1 request",
        "ms, 1 request",
        "MiB, 1 request",
        "status, 64 concurrent",
        "s, 64 concurrent",
        "MiB, 64 concurrent",
    ];
    let mut table = Table::new(&headings);
    let (mut alone, mut together): (f64, f64) = (0.0, 0.0);
    block_on(async {
        // The first startup hashes the key of the default project, which takes memory that later startups do not need.
        Server::start(bench, "json-memory").await?.stop()?;
        let names: Vec<&str> = cases(bench, "").iter().map(|case| case.name).collect();
        for (index, name) in names.into_iter().enumerate() {
            let [single, concurrent] = [1, CLIENTS].map(|clients| measure(bench, index, clients));
            let (single, concurrent) = (single.await?, concurrent.await?);
            alone = alone.max(single.growth);
            together = together.max(concurrent.growth);
            table.add_row([
                name.into(),
                number(mib((single.length / 1024) as u64)),
                single.statuses,
                number(single.seconds * 1000.0),
                number(single.growth),
                concurrent.statuses,
                number(concurrent.seconds),
                number(concurrent.growth),
            ]);
        }
        anyhow::Ok(())
    })?;
    report.add_text(&format!(
        "Each row was measured on two servers that were started for it and then idle for {IDLE_SECS} s: one receives \
         one request, the other {CLIENTS} concurrent requests. *MiB* is the growth: the peak of the resident memory \
         (`VmHWM`) minus the resident memory before. Small objects are `{{\"a\":1}}`."
    ));
    report.add_table("JSON of many values", &table);
    report.add_target(
        "growth by one request",
        &format!("{} MiB", number(alone)),
        "< 300 MiB",
        alone < MAX_GROWTH_ALONE_MIB,
    );
    report.add_target(
        "growth by 64 requests",
        &format!("{} MiB", number(together)),
        "< 1024 MiB",
        together < MAX_GROWTH_TOGETHER_MIB,
    );
    Ok(())
}

struct Measurement {
    growth: f64,
    seconds: f64,
    statuses: String,
    length: usize,
}

async fn measure(bench: &Bench, case: usize, clients: usize) -> anyhow::Result<Measurement> {
    let server = Server::start(bench, "json-memory").await?;
    let session = server.client().await?.new_session(false).await?;
    for request in fixture_messages(bench, &session) {
        server.client().await?.send(&request).await?;
    }
    // The memory for storing these messages is released first.
    tokio::time::sleep(bench.seconds(IDLE_SECS)).await;
    let Case { request, .. } = cases(bench, &session).swap_remove(case);
    let idle = server.process.memory()?.resident;
    Memory::reset_peak(&server.process)?;
    let start = Instant::now();
    let mut sending = JoinSet::new();
    for _ in 0..clients {
        sending.spawn(send(server.address, request.clone()));
    }
    let mut statuses = BTreeMap::new();
    for status in sending.join_all().await {
        *statuses.entry(status).or_insert(0) += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    let growth = mib(server.process.memory()?.peak.saturating_sub(idle));
    server.stop()?;
    let statuses = statuses.into_iter().map(|(status, count)| format!("{count} x {status}"));
    Ok(Measurement { growth, seconds, statuses: statuses.collect::<Vec<_>>().join(", "), length: request.length() })
}

/// Sends the request and returns the status of the response, or `no response`.
async fn send(address: SocketAddr, request: Request) -> String {
    let status = async {
        let mut client = Client::connect(address).await?;
        anyhow::Ok(client.send(&request).await?.status.to_string())
    };
    status.await.unwrap_or_else(|_| "no response".into())
}

/// Returns requests that store the messages that are read later: a tool call whose arguments are a text of small
/// objects, and messages of unknown blocks.
fn fixture_messages(bench: &Bench, session: &str) -> Vec<Request> {
    let arguments = small_objects(bench.full_or_quick(8 << 20, 1 << 20)).replace('"', "\\\"");
    let call = format!(
        r#"{{"role":"assistant","tool_calls":[{{"id":"call_1","type":"function","function":{{"name":"f","arguments":"{{\"a\":{arguments}}}"}}}}]}}"#
    );
    let mut messages = vec![store_message(session, "openai", &call)];
    let block = small_objects((MAX_VALUES / 2 - 100) * 8);
    let unknown = format!(r#"{{"role":"user","content":[{{"type":"unknown","data":{block}}}]}}"#);
    messages.extend((0..12).map(|_| store_message(session, "anthropic", &unknown)));
    messages
}

fn cases(bench: &Bench, session: &str) -> Vec<Case> {
    let length = bench.full_or_quick(LENGTH, LENGTH / 16);
    let (dense, numbers) = (small_objects(length), format!("[{}1]", "1,".repeat(length / 2)));
    let text = "a long text, ".repeat(length / 13);
    let max_values = small_objects((MAX_VALUES / 2 - 100) * 8);
    let query = &text[..text.len() - max_values.len().min(text.len())];
    // Escaping makes the text a quarter longer.
    let arguments = small_objects(length / 5 * 4).replace('"', "\\\"");
    let openai = |content: &str| store_message(session, "openai", &format!(r#"{{"role":"user","content":{content}}}"#));
    let case = |name, request| Case { name, request };
    vec![
        case("message of small objects", openai(&dense)),
        case("message of numbers", openai(&numbers)),
        case("message of one text", openai(&format!("\"{text}\""))),
        case(
            "message of as many values as allowed, and text",
            store_message(
                session,
                "anthropic",
                &format!(
                    r#"{{"role":"assistant","content":[{{"type":"text","text":"{query}"}},{{"type":"tool_use","id":"a","name":"f","input":{{"a":{max_values}}}}}]}}"#
                ),
            ),
        ),
        case(
            "message of unknown blocks of as many values as allowed",
            store_message(
                session,
                "anthropic",
                &format!(r#"{{"role":"assistant","content":[{{"type":"unknown","data":{max_values}}}]}}"#),
            ),
        ),
        case(
            "message of arguments with small objects, as text",
            store_message(
                session,
                "openai",
                &format!(
                    r#"{{"role":"assistant","tool_calls":[{{"id":"a","type":"function","function":{{"name":"f","arguments":"{arguments}"}}}}]}}"#
                ),
            ),
        ),
        case("session with settings of small objects", create_session(&dense)),
        case("session with settings of small objects, 4 MiB", create_session(&small_objects((4 << 20) - 100))),
        case("session with settings of small objects, 900 KiB", create_session(&small_objects(900 << 10))),
        case("event of small objects, 4 MiB", record_event(session, &small_objects((4 << 20) - 100))),
        case("read 13 messages in another format", read_messages(session, "gemini", "")),
        case(
            "read 13 messages with an edit strategy",
            read_messages(
                session,
                "openai",
                "&edit_strategies=[%7B%22type%22:%22remove_tool_result%22,%22params%22:%7B%7D%7D]",
            ),
        ),
    ]
}

/// Returns a list of small objects that is `length` bytes long or a little shorter.
fn small_objects(length: usize) -> String {
    format!("[{}{{\"a\":1}}]", "{\"a\":1},".repeat((length / 8).saturating_sub(1)))
}

fn store_message(session: &str, format: &str, blob: &str) -> Request {
    let body = format!(r#"{{"format":"{format}","blob":{blob}}}"#);
    Request::post_json("POST", &format!("/api/v1/session/{session}/messages"), Bytes::from(body))
}

fn create_session(list: &str) -> Request {
    Request::post_json("POST", "/api/v1/session", Bytes::from(format!(r#"{{"configs":{{"a":{list}}}}}"#)))
}

fn record_event(session: &str, list: &str) -> Request {
    let body = format!(r#"{{"type":"a","data":{{"a":{list}}}}}"#);
    Request::post_json("POST", &format!("/api/v1/session/{session}/events"), Bytes::from(body))
}

fn read_messages(session: &str, format: &str, query: &str) -> Request {
    Request::get("GET", &format!("/api/v1/session/{session}/messages?format={format}{query}"))
}
