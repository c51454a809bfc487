//! Reading the newest messages of a conversation with edit strategies, in each of the four formats.

use anyhow::ensure;
use serde_json::{Value, json};

use crate::conversation::{FORMATS, page, read, row, said};
use crate::http::{Client, Request, percent_encode};
use crate::load::real;
use crate::messages::store;
use crate::report::{Report, Table, number};
use crate::server::Server;
use crate::{Bench, block_on};

const MESSAGES: usize = 200;
/// Of a message's text, in bytes. All of them together are about 100 000 tokens.
const SIZE: usize = 2_150;
const CLIENTS: [usize; 2] = [1, 4];
/// Of p50 with the fewest clients, in milliseconds.
const TARGET: f64 = 5.0;
/// What `token_limit` leaves, and `middle_out` before it where both work.
const LIMIT: u64 = 50_000;
const MIDDLE: u64 = 75_000;

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let total = block_on(async {
        let server = Server::start(bench, "edits").await?;
        let mut client = server.client().await?;
        let session = client.new_session(false).await?;
        for number in 0..MESSAGES {
            client.data(&store(&session, &said(number, SIZE))).await?;
        }
        let total = client.data(&page(&session, MESSAGES, "openai")).await?;
        let total = total["this_time_tokens"].as_u64().unwrap_or_default();
        for clients in CLIENTS {
            by(bench, report, &server, &session, total, clients).await?;
        }
        server.stop()?;
        Ok(total)
    })?;
    report.text(&format!(
        "A session of {MESSAGES} messages of {SIZE} bytes, {total} tokens in all, stored in the format `openai`: questions and \
         answers by turns, and every fifth time a call of a tool and its result. All of them are read for 2 s; `token_limit` \
         and `middle_out` leave {LIMIT} tokens. In the row *all*, `middle_out` leaves {MIDDLE} for `token_limit`."
    ));
    Ok(())
}

/// Measures each strategy in each format.
async fn by(
    bench: &Bench,
    report: &mut Report,
    server: &Server,
    session: &str,
    total: u64,
    clients: usize,
) -> anyhow::Result<()> {
    let mut table = Table::new(&[
        "strategy, format",
        "answers/s",
        "p50 ms",
        "p99 ms",
        "KB an answer",
        "server CPU us/answer",
        "failed",
        "tokens",
    ]);
    let mut client = server.client().await?;
    for strategies in [vec![]].into_iter().chain(strategies()) {
        let name = name(&strategies);
        // Which format was slowest.
        let mut slowest: (f64, &str) = (0.0, "");
        let mut failed = 0;
        for format in FORMATS {
            let request = edited(session, format, &strategies);
            let (size, tokens) = check(&mut client, &request, &strategies, total).await?;
            let before = server.process.cpu_time()?;
            let outcome = read(bench, server, clients, &request, 2).await;
            let cpu = server.process.cpu_time()?.saturating_sub(before);
            table.row([row(&format!("{name}, {format}"), size, &outcome, cpu), vec![tokens.to_string()]].concat());
            let p50 = outcome.times(None).p50();
            if p50 > slowest.0 {
                slowest = (p50, format);
            }
            failed += outcome.failed();
        }
        if clients == CLIENTS[0] && !strategies.is_empty() {
            let (p50, format) = slowest;
            let what = format!("{name}, slowest format ({format}), {clients} client");
            let measured = format!("p50 {} ms", number(p50));
            report.target(&what, &measured, &format!("p50 < {TARGET} ms"), p50 < TARGET && failed == 0);
        }
    }
    report.table(&format!("Clients: {clients}"), &table);
    Ok(())
}

/// Each alone, and all of them.
fn strategies() -> [Vec<Value>; 5] {
    let one = |name: &str, params: Value| json!({"type": name, "params": params});
    let limit = one("token_limit", json!({"limit_tokens": LIMIT}));
    let results = one("remove_tool_result", json!({}));
    let arguments = one("remove_tool_call_params", json!({}));
    let middle = |tokens: u64| one("middle_out", json!({"token_reduce_to": tokens}));
    let all = vec![limit.clone(), middle(MIDDLE), results.clone(), arguments.clone()];
    [vec![limit], vec![results], vec![arguments], vec![middle(LIMIT)], all]
}

fn name(strategies: &[Value]) -> &str {
    match strategies {
        [] => "none",
        [one] => one["type"].as_str().unwrap_or_default(),
        _ => "all",
    }
}

/// Reads the newest messages, made shorter.
fn edited(session: &str, format: &str, strategies: &[Value]) -> Request {
    let strategies = percent_encode(&json!(strategies).to_string());
    let path = format!(
        "/api/v1/session/{session}/messages?limit={MESSAGES}&time_desc=true&format={format}&edit_strategies={strategies}"
    );
    Request::get("GET", &path)
}

/// How long an answer is, in bytes, and how many tokens it has; it must have been made shorter as it was asked for.
async fn check(
    client: &mut Client,
    request: &Request,
    strategies: &[Value],
    total: u64,
) -> anyhow::Result<(usize, u64)> {
    let page = client.data(request).await?;
    let tokens = page["this_time_tokens"].as_u64().unwrap_or_default();
    let count = |key: &str| page[key].as_array().map_or(0, Vec::len);
    let (items, name) = (count("items"), name(strategies));
    ensure!(items == count("ids") && items == count("metas"), "{name}: {items} messages have another number of ids");
    if strategies.is_empty() {
        ensure!(tokens == total && items == MESSAGES, "{items} messages with {tokens} tokens instead of {total}");
    } else {
        ensure!(tokens > 0 && tokens < total, "{name} made {tokens} of {total} tokens");
    }
    match name {
        "token_limit" | "middle_out" | "all" => {
            ensure!(tokens <= LIMIT && items < MESSAGES, "{name} left {items} messages with {tokens} tokens");
            // Nobody asked for less: the next message, with its call or result, would have been too much.
            ensure!(real(tokens) > 0.9 * real(LIMIT), "{name} left no more than {tokens} tokens");
        }
        _ => ensure!(items == MESSAGES, "{name} left {items} messages"),
    }
    Ok((client.send(request).await?.body.len(), tokens))
}
