//! The memory of the server process while JSON of very many small values comes in and goes out, one request alone and 64 at once.

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
/// How long most bodies are, in bytes: just below what a message may have.
const LENGTH: usize = 31 << 20;
/// How many values a body may have.
const MAX_VALUES: usize = 250_000;
/// By how much one request may make the memory grow, in MiB.
const ALONE: f64 = 300.0;
/// By how much 64 requests at once may make it grow, in MiB.
const TOGETHER: f64 = 1024.0;
/// How long a server is left alone, in seconds.
const PAUSE: u64 = 10;

/// A kind of request, and a name for it.
struct Case {
    name: &'static str,
    request: Request,
}

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let heads = [
        "request",
        "body MiB",
        "answers alone",
        "ms alone",
        "MiB alone",
        "answers of 64",
        "s of 64",
        "MiB of 64 at once",
    ];
    let mut table = Table::new(&heads);
    let (mut alone, mut together): (f64, f64) = (0.0, 0.0);
    block_on(async {
        // The first start makes a key's hash, which takes memory that a later one does not.
        Server::start(bench, "json-memory").await?.stop()?;
        let names: Vec<&str> = cases(bench, "").iter().map(|case| case.name).collect();
        for (at, name) in names.into_iter().enumerate() {
            let [one, many] = [1, CLIENTS].map(|clients| measure(bench, at, clients));
            let (one, many) = (one.await?, many.await?);
            alone = alone.max(one.growth);
            together = together.max(many.growth);
            table.row([
                name.into(),
                number(mib((one.length / 1024) as u64)),
                one.answers,
                number(one.seconds * 1000.0),
                number(one.growth),
                many.answers,
                number(many.seconds),
                number(many.growth),
            ]);
        }
        anyhow::Ok(())
    })?;
    report.text(&format!(
        "Each row has two servers that were just started and alone for {PAUSE} s: one gets one request, the other {CLIENTS} at once. \
         Growth is the peak of the resident memory (`VmHWM`) above what was resident before. Small objects are `{{\"a\":1}}`."
    ));
    report.table("JSON of many values", &table);
    report.target("growth by one request", &format!("{} MiB", number(alone)), "< 300 MiB", alone < ALONE);
    report.target("growth by 64 requests", &format!("{} MiB", number(together)), "< 1024 MiB", together < TOGETHER);
    Ok(())
}

struct Measured {
    growth: f64,
    seconds: f64,
    answers: String,
    length: usize,
}

async fn measure(bench: &Bench, case: usize, clients: usize) -> anyhow::Result<Measured> {
    let server = Server::start(bench, "json-memory").await?;
    let session = server.client().await?.new_session(false).await?;
    for request in stored(bench, &session) {
        server.client().await?.send(&request).await?;
    }
    // What storing these took is given back first.
    tokio::time::sleep(bench.seconds(PAUSE)).await;
    let Case { request, .. } = cases(bench, &session).swap_remove(case);
    let idle = server.process.memory()?.resident;
    Memory::forget_peak(&server.process)?;
    let start = Instant::now();
    let mut sending = JoinSet::new();
    for _ in 0..clients {
        sending.spawn(send(server.address, request.clone()));
    }
    let mut answers = BTreeMap::new();
    for status in sending.join_all().await {
        *answers.entry(status).or_insert(0) += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    let growth = mib(server.process.memory()?.peak.saturating_sub(idle));
    server.stop()?;
    let answers = answers.into_iter().map(|(status, count)| format!("{count} x {status}"));
    Ok(Measured { growth, seconds, answers: answers.collect::<Vec<_>>().join(", "), length: request.length() })
}

/// The status of the answer, or that there was none.
async fn send(address: SocketAddr, request: Request) -> String {
    let answer = async {
        let mut client = Client::connect(address).await?;
        anyhow::Ok(client.send(&request).await?.status.to_string())
    };
    answer.await.unwrap_or_else(|_| "hung up".into())
}

/// Messages that the requests which read find in their session: tool calls whose arguments are a text of small objects, and
/// messages of unknown blocks.
fn stored(bench: &Bench, session: &str) -> Vec<Request> {
    let arguments = objects(bench.pick(8 << 20, 1 << 20)).replace('"', "\\\"");
    let call = format!(
        r#"{{"role":"assistant","tool_calls":[{{"id":"call_1","type":"function","function":{{"name":"f","arguments":"{{\"a\":{arguments}}}"}}}}]}}"#
    );
    let mut messages = vec![message(session, "openai", &call)];
    let block = objects((MAX_VALUES / 2 - 100) * 8);
    let unknown = format!(r#"{{"role":"user","content":[{{"type":"unknown","data":{block}}}]}}"#);
    messages.extend((0..12).map(|_| message(session, "anthropic", &unknown)));
    messages
}

fn cases(bench: &Bench, session: &str) -> Vec<Case> {
    let length = bench.pick(LENGTH, LENGTH / 16);
    let (dense, numbers) = (objects(length), format!("[{}1]", "1,".repeat(length / 2)));
    let text = "a long text, ".repeat(length / 13);
    let most = objects((MAX_VALUES / 2 - 100) * 8);
    let rest = &text[..text.len() - most.len().min(text.len())];
    // Escapes make it a quarter longer.
    let arguments = objects(length / 5 * 4).replace('"', "\\\"");
    let openai = |content: &str| message(session, "openai", &format!(r#"{{"role":"user","content":{content}}}"#));
    let case = |name, request| Case { name, request };
    vec![
        case("message of small objects", openai(&dense)),
        case("message of numbers", openai(&numbers)),
        case("message of one text", openai(&format!("\"{text}\""))),
        case(
            "message of as many values as allowed, and text",
            message(
                session,
                "anthropic",
                &format!(
                    r#"{{"role":"assistant","content":[{{"type":"text","text":"{rest}"}},{{"type":"tool_use","id":"a","name":"f","input":{{"a":{most}}}}}]}}"#
                ),
            ),
        ),
        case(
            "message of unknown blocks of as many values as allowed",
            message(
                session,
                "anthropic",
                &format!(r#"{{"role":"assistant","content":[{{"type":"unknown","data":{most}}}]}}"#),
            ),
        ),
        case(
            "message of arguments with small objects, as text",
            message(
                session,
                "openai",
                &format!(
                    r#"{{"role":"assistant","tool_calls":[{{"id":"a","type":"function","function":{{"name":"f","arguments":"{arguments}"}}}}]}}"#
                ),
            ),
        ),
        case("session with settings of small objects", settings(&dense)),
        case("session with settings of small objects, 4 MiB", settings(&objects((4 << 20) - 100))),
        case("session with settings of small objects, 900 KiB", settings(&objects(900 << 10))),
        case("event of small objects, 4 MiB", event(session, &objects((4 << 20) - 100))),
        case("read 13 messages in another format", read(session, "gemini", "")),
        case(
            "read 13 messages that are edited",
            read(session, "openai", "&edit_strategies=[%7B%22type%22:%22remove_tool_result%22,%22params%22:%7B%7D%7D]"),
        ),
    ]
}

/// A list of small objects, `length` bytes long or a little less.
fn objects(length: usize) -> String {
    format!("[{}{{\"a\":1}}]", "{\"a\":1},".repeat((length / 8).saturating_sub(1)))
}

fn message(session: &str, format: &str, blob: &str) -> Request {
    let body = format!(r#"{{"format":"{format}","blob":{blob}}}"#);
    Request::post_json("POST", &format!("/api/v1/session/{session}/messages"), Bytes::from(body))
}

fn settings(list: &str) -> Request {
    Request::post_json("POST", "/api/v1/session", Bytes::from(format!(r#"{{"configs":{{"a":{list}}}}}"#)))
}

fn event(session: &str, list: &str) -> Request {
    let body = format!(r#"{{"type":"a","data":{{"a":{list}}}}}"#);
    Request::post_json("POST", &format!("/api/v1/session/{session}/events"), Bytes::from(body))
}

fn read(session: &str, format: &str, rest: &str) -> Request {
    Request::get("GET", &format!("/api/v1/session/{session}/messages?format={format}{rest}"))
}
