//! Laws for histories that are stored and read through the routes of the server.
//!
//! The ids of calls that a client of another format reads depend on the message if the call was stored without an id. So here
//! only calls with an id are answered in another format.

use acontextd::conversation::format::Format;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use serde_json::Value;

use super::model::{PROVIDERS, Turn, any_format, one_format, turns};
use super::repair::{interrupted_turns, write_interrupted};
use super::{History, check, check_stored, messages, new_runner, remove_new_ids, seeds, write};
use crate::support::client::Client;
use crate::support::{TestApp, run};

/// The time that a history takes here, as a multiple of the time that it takes in memory.
const COST: u64 = 5;

/// Checks a law with the histories of some seeds. Their messages have one format, or different ones in a quarter of the histories.
#[expect(clippy::print_stdout, reason = "the test runner shows the seed if the law fails")]
async fn hold<T: std::fmt::Debug>(
    generate: impl Fn(&BoxedStrategy<Format>) -> BoxedStrategy<T>,
    app: &TestApp,
    law: impl AsyncFn(&Client, Option<Format>, T),
) {
    let client = app.project().await;
    for seed in seeds(COST) {
        let format = usize::try_from(seed % 4).ok().and_then(|index| PROVIDERS.get(index).copied());
        let strategy = generate(&format.map_or_else(any_format, one_format));
        let input = strategy.new_tree(&mut new_runner(seed)).unwrap().current();
        println!("HISTORY_SEED={seed} HISTORY_CASES=1 repeats this");
        law(&client, format, input).await;
    }
}

/// Gives each Gemini call an id.
fn with_call_ids(turns: &[Turn]) -> Vec<Turn> {
    let mut turns = turns.to_vec();
    for call in turns.iter_mut().flat_map(|turn| &mut turn.steps).flat_map(|step| &mut step.calls) {
        if call.id_style.is_multiple_of(4) {
            call.id_style = 2;
        }
    }
    turns
}

/// Stores a history in a new session, and returns its id.
async fn store(client: &Client, history: &History) -> String {
    let session = client.new_session().await;
    for (format, message) in history {
        client.store_message(&session, format.as_str(), message.clone()).await.assert_status(201);
    }
    session
}

async fn items(client: &Client, session: &str, query: &str) -> Vec<Value> {
    client.messages(session, query).await["items"].as_array().unwrap().clone()
}

/// Reads all pages, each with up to `limit` messages or a turn.
async fn pages(client: &Client, session: &str, query: &str) -> Vec<Vec<Value>> {
    let mut pages = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = client.messages(session, &format!("{query}&cursor={cursor}")).await;
        pages.push(page["items"].as_array().unwrap().clone());
        match page["next_cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => return pages,
        }
    }
}

async fn check_history(client: &Client, format: Option<Format>, turns: &[Turn]) {
    let turns = if format.is_none() { with_call_ids(turns) } else { turns.to_vec() };
    let history = write(&turns).history;
    let session = store(client, &history).await;
    for target in PROVIDERS {
        let query = format!("format={}", target.as_str());
        let whole = items(client, &session, &query).await;
        let checked = if format.is_some_and(|format| format != target) {
            check(target, &whole)
        } else {
            check_stored(target, &whole)
        };
        checked.unwrap();
        if format == Some(target) {
            let mut own = whole.clone();
            let sent = messages(&history);
            own.iter_mut().zip(&sent).for_each(|(item, sent)| remove_new_ids(item, sent));
            assert_eq!(own, sent);
        }
        let limit = history.len() % 3 + 1;
        let oldest_first = pages(client, &session, &format!("{query}&limit={limit}")).await;
        assert_eq!(oldest_first.concat(), whole, "{query}, limit {limit}");
        let mut newest_first = pages(client, &session, &format!("{query}&limit={limit}&time_desc=true")).await;
        newest_first.reverse();
        assert_eq!(newest_first.concat(), whole, "{query}, limit {limit}, newest first");
    }
}

#[tokio::test]
async fn served_histories_are_accepted_in_every_format() {
    run(async |app| {
        let generate = |format: &_| turns(format, true);
        hold(generate, &app, async |client, format, turns: Vec<Turn>| check_history(client, format, &turns).await)
            .await;
    })
    .await;
}

#[tokio::test]
async fn served_histories_are_accepted_after_their_repair() {
    run(async |app| {
        hold(interrupted_turns, &app, async |client, _, (turns, interruptions)| {
            let history = write_interrupted(&with_call_ids(&turns), &interruptions);
            let session = store(client, &history).await;
            let stored = items(client, &session, "format=acontext").await;
            assert_eq!(stored.len(), history.len());
            for target in PROVIDERS {
                let items = items(client, &session, &format!("format={}&repair=true", target.as_str())).await;
                // Nothing may be left.
                if !items.is_empty() {
                    check(target, &items).unwrap();
                }
            }
        })
        .await;
    })
    .await;
}
