//! The function calls and function responses of a message.

use serde_json::Value;

use super::super::FunctionResponse;
use super::super::value::{Object, indexed_objects_mut, str_at};

/// The signature for calls that Gemini has not made. Google documents it for histories of other models (page "Thought signatures",
/// "FAQs"): Gemini does not validate the signature of such a call.
const PLACEHOLDER_SIGNATURE: &str = "skip_thought_signature_validator";

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

/// Adds a placeholder to the first function call of a message if it has no signature. Gemini requires a signature only there.
pub fn add_placeholder_signature(message: &mut Value) {
    let mut parts = indexed_objects_mut(message.get_mut("parts"));
    if let Some((_, part)) = parts.find(|(_, part)| part.contains_key("functionCall"))
        && str_at(part, "thoughtSignature").is_empty()
    {
        part.insert("thoughtSignature".into(), PLACEHOLDER_SIGNATURE.into());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_call_gets_a_placeholder_if_it_has_no_signature() {
        let call = |name: &str| json!({"functionCall": {"name": name}});
        let signed = |signature: &str| json!({"functionCall": {"name": "f"}, "thoughtSignature": signature});
        for (parts, expected) in [
            (
                json!([{"text": "x"}, call("f"), call("g")]),
                json!([{"text": "x"}, signed(PLACEHOLDER_SIGNATURE), call("g")]),
            ),
            (json!([signed("c2ln"), call("g")]), json!([signed("c2ln"), call("g")])),
            (json!([{"text": "x"}]), json!([{"text": "x"}])),
        ] {
            let mut message = json!({"role": "model", "parts": parts});
            add_placeholder_signature(&mut message);
            assert_eq!(message["parts"], expected);
        }
    }
}
