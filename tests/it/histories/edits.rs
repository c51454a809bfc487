//! Laws for histories that edit strategies have shortened.

use acontextd::conversation::edit;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use serde_json::{Value, json};

use super::model::{Item, PROVIDERS, any_format, turns};
use super::{Options, check_stored, hold, render, write};

fn strategies() -> BoxedStrategy<Vec<Value>> {
    let recent = 0_u8..4;
    let limit = 1_u16..150;
    let strategy = prop_oneof![
        recent.clone().prop_map(|n| json!({"type": "remove_tool_result", "params": {"keep_recent_n_tool_results": n}})),
        recent.prop_map(|n| json!({"type": "remove_tool_call_params", "params": {"keep_recent_n_tool_calls": n}})),
        limit.clone().prop_map(|n| json!({"type": "middle_out", "params": {"token_reduce_to": n}})),
        (limit, any::<bool>(), any::<bool>()).prop_map(|(n, pin_system, start_on_user)| {
            let params = json!({"limit_tokens": n, "pin_system": pin_system, "start_on_user": start_on_user});
            json!({"type": "token_limit", "params": params})
        }),
    ];
    prop::collection::vec(strategy, 1..4).boxed()
}

#[test]
fn edited_histories_are_accepted() {
    hold(&(turns(&any_format(), true), strategies()).boxed(), |(turns, list)| {
        let written = super::write(turns);
        let parsed = edit::parse(&Value::from(list.clone()).to_string()).unwrap();
        let last_limit = list.iter().rfind(|strategy| strategy["type"] == "token_limit");
        let starts_on_user = last_limit.is_some_and(|limit| limit["params"]["start_on_user"] == true);
        for target in PROVIDERS {
            let options = Options { strategies: parsed.clone(), ..Options::default() };
            let mut items = render(&written.history, target, &options);
            if items.is_empty() {
                continue;
            }
            // Without this parameter, a strategy may leave a turn of the assistant at the beginning, as upstream does.
            if !starts_on_user {
                let first = write::user_message(target, &[Item::Text("first".into())]);
                items.insert(0, first);
            }
            check_stored(target, &items).map_err(|err| TestCaseError::fail(format!("{err}\n{list:?}")))?;
        }
        Ok(())
    });
}
