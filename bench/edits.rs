//! Reading the newest messages of a conversation with edit strategies, in each of the four formats.

use anyhow::ensure;
use serde_json::{Value, json};

use crate::conversation::{FORMATS, openai_message, page_request, run_reads, table_row};
use crate::http::{Client, Request, percent_encode};
use crate::load::to_f64;
use crate::messages::store_message;
use crate::report::{Report, Table, number};
use crate::server::Server;
use crate::{Bench, block_on};

const MESSAGES: usize = 200;
/// The size of the text of a message, in bytes. All messages together have about 100 000 tokens.
const SIZE: usize = 2_150;
const CLIENTS: [usize; 2] = [1, 4];
/// The target for p50 with the fewest clients, in milliseconds.
const MAX_P50_MS: f64 = 5.0;
/// The limit of `token_limit`, and of `middle_out` alone.
const TOKEN_LIMIT: u64 = 50_000;
/// The limit of `middle_out` if `token_limit` follows it.
const MIDDLE_OUT_LIMIT: u64 = 75_000;

pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let total = block_on(async {
        let server = Server::start(bench, "edits").await?;
        let mut client = server.client().await?;
        let session = client.new_session(false).await?;
        for number in 0..MESSAGES {
            client.data(&store_message(&session, &openai_message(number, SIZE))).await?;
        }
        let total = client.data(&page_request(&session, MESSAGES, "openai")).await?;
        let total = total["this_time_tokens"].as_u64().unwrap_or_default();
        for clients in CLIENTS {
            measure_strategies(bench, report, &server, &session, total, clients).await?;
        }
        server.stop()?;
        Ok(total)
    })?;
    report.add_text(&format!(
        "A session of {MESSAGES} messages of {SIZE} bytes with {total} tokens in total, stored in the format `openai`: \
         questions and answers, and every fifth time a tool call and its result. All messages are read for 2 s. The \
         limit of `token_limit` and `middle_out` is {TOKEN_LIMIT} tokens. In the row *all*, the limit of `middle_out` \
         is {MIDDLE_OUT_LIMIT} tokens, and `token_limit` follows it."
    ));
    Ok(())
}

/// Measures each strategy in each format.
async fn measure_strategies(
    bench: &Bench,
    report: &mut Report,
    server: &Server,
    session: &str,
    total: u64,
    clients: usize,
) -> anyhow::Result<()> {
    let mut table = Table::new(&[
        "strategy, format",
        "responses/s",
        "p50 ms",
        "p99 ms",
        "KB/response",
        "server CPU us/response",
        "failed",
        "tokens",
    ]);
    let mut client = server.client().await?;
    for strategies in [vec![]].into_iter().chain(strategy_lists()) {
        let name = strategies_name(&strategies);
        // The p50 and the name of the slowest format.
        let mut slowest: (f64, &str) = (0.0, "");
        let mut failed = 0;
        for format in FORMATS {
            let request = edited_page_request(session, format, &strategies);
            let (size, tokens) = check_page(&mut client, &request, &strategies, total).await?;
            let before = server.process.cpu_time()?;
            let outcome = run_reads(bench, server, clients, &request, 2).await;
            let cpu = server.process.cpu_time()?.saturating_sub(before);
            table.add_row(
                [table_row(&format!("{name}, {format}"), size, &outcome, cpu), vec![tokens.to_string()]].concat(),
            );
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
            report.add_target(&what, &measured, &format!("p50 < {MAX_P50_MS} ms"), p50 < MAX_P50_MS && failed == 0);
        }
    }
    report.add_table(&format!("Clients: {clients}"), &table);
    Ok(())
}

/// Returns lists of strategies: each strategy alone, and all of them.
fn strategy_lists() -> [Vec<Value>; 5] {
    let one = |name: &str, params: Value| json!({"type": name, "params": params});
    let limit = one("token_limit", json!({"limit_tokens": TOKEN_LIMIT}));
    let results = one("remove_tool_result", json!({}));
    let arguments = one("remove_tool_call_params", json!({}));
    let middle = |tokens: u64| one("middle_out", json!({"token_reduce_to": tokens}));
    let all = vec![limit.clone(), middle(MIDDLE_OUT_LIMIT), results.clone(), arguments.clone()];
    [vec![limit], vec![results], vec![arguments], vec![middle(TOKEN_LIMIT)], all]
}

fn strategies_name(strategies: &[Value]) -> &str {
    match strategies {
        [] => "none",
        [one] => one["type"].as_str().unwrap_or_default(),
        _ => "all",
    }
}

/// Returns a request for the newest messages with edit strategies.
fn edited_page_request(session: &str, format: &str, strategies: &[Value]) -> Request {
    let strategies = percent_encode(&json!(strategies).to_string());
    let path = format!(
        "/api/v1/session/{session}/messages?limit={MESSAGES}&time_desc=true&format={format}&edit_strategies={strategies}"
    );
    Request::get("GET", &path)
}

/// Checks that the response was shortened as requested. Returns the length of its body in bytes, and its number of
/// tokens.
async fn check_page(
    client: &mut Client,
    request: &Request,
    strategies: &[Value],
    total: u64,
) -> anyhow::Result<(usize, u64)> {
    let page = client.data(request).await?;
    let tokens = page["this_time_tokens"].as_u64().unwrap_or_default();
    let count = |key: &str| page[key].as_array().map_or(0, Vec::len);
    let (items, name) = (count("items"), strategies_name(strategies));
    ensure!(
        items == count("ids") && items == count("metas"),
        "{name}: the number of ids or metas differs from {items}"
    );
    if strategies.is_empty() {
        ensure!(tokens == total && items == MESSAGES, "{items} messages with {tokens} tokens instead of {total}");
    } else {
        ensure!(tokens > 0 && tokens < total, "{name} shortened {total} tokens to {tokens}");
    }
    match name {
        "token_limit" | "middle_out" | "all" => {
            ensure!(tokens <= TOKEN_LIMIT && items < MESSAGES, "{name} left {items} messages with {tokens} tokens");
            // One more message, with its tool call or result, would have exceeded the limit.
            ensure!(to_f64(tokens) > 0.9 * to_f64(TOKEN_LIMIT), "{name} left only {tokens} tokens");
        }
        _ => ensure!(items == MESSAGES, "{name} left {items} messages"),
    }
    Ok((client.send(request).await?.body.len(), tokens))
}
