//! The function calls and function responses of a stored body.

use serde_json::Value;

use super::super::FunctionResponse;
use super::super::value::{Object, indexed_objects_mut, str_at};

/// Iterates over the parts that have an object at the key. Yields the index of the part and that object.
fn objects_at<'a>(body: &'a Value, key: &'a str) -> impl Iterator<Item = (usize, &'a Object)> {
    let parts = body.get("parts").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    parts.iter().enumerate().filter_map(move |(index, part)| Some((index, part.get(key)?.as_object()?)))
}

pub(in super::super) fn function_responses(body: &Value) -> Vec<FunctionResponse> {
    let to_response = |(part_index, response)| {
        let id = Some(str_at(response, "id")).filter(|id| !id.is_empty());
        let will_continue = response.get("willContinue").and_then(Value::as_bool).unwrap_or_default();
        let name = str_at(response, "name").to_owned();
        FunctionResponse { part_index, name, id: id.map(str::to_owned), will_continue }
    };
    objects_at(body, "functionResponse").map(to_response).collect()
}

pub(in super::super) fn set_response_id(body: &mut Value, part_index: usize, id: &str) {
    if let Some((_, part)) = indexed_objects_mut(body.get_mut("parts")).find(|(index, _)| *index == part_index)
        && let Some(Value::Object(response)) = part.get_mut("functionResponse")
    {
        response.insert("id".into(), id.into());
    }
}
