use serde_json::{Value, json};

use super::{REMOVE, accept, check, reject};

/// The examples of the pages "Function calling" and "Thought signatures", with all kinds of content.
fn history() -> Value {
    json!([
        {"role": "user", "parts": [
            {"text": "What is the weather?"},
            {"inlineData": {"mimeType": "image/png", "data": "iVBORw=="}},
            {"fileData": {"mimeType": "video/mp4", "fileUri": "gs://a/b.mp4"}, "videoMetadata": {"fps": 1}}
        ]},
        {"role": "model", "parts": [
            {"text": "hm", "thought": true, "thoughtSignature": "c2ln"},
            {"functionCall": {"id": "1", "name": "get.weather", "args": {"city": "Paris"}}, "thoughtSignature": "c2ln"},
            {"functionCall": {"name": "get_time"}}
        ]},
        {"parts": [
            {"functionResponse": {"name": "get_time", "response": {}}},
            {"functionResponse": {"id": "1", "name": "get.weather", "response": {"output": "14"}, "parts": [
                {"inlineData": {"mimeType": "image/png", "data": "iVBORw=="}}
            ]}}
        ]},
        {"role": "model", "parts": [
            {"executableCode": {"language": "PYTHON", "code": "1"}},
            {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "1"}},
            {"text": "14 degrees"},
            {"text": "", "thoughtSignature": "c2ln"}
        ]}
    ])
}

fn rejects(pointer: &str, value: &Value, expected: &str) {
    reject("gemini", &history(), pointer, value, expected);
}

#[test]
fn order_and_pairing() {
    accept("gemini", &history());
    let user = json!({"role": "user", "parts": [{"text": "x"}]});
    rejects("/2", &user, "contents[2].parts: must have 2 function responses, not 0");
    rejects("/2", &json!(REMOVE), "contents[2].parts: must have 2 function responses, not 0");
    rejects("/2/parts/0", &json!(REMOVE), "contents[2].parts: must have 2 function responses, not 1");
    rejects("/2/parts/1/functionResponse/id", &json!("2"), "contents[2].parts: no preceding call has the id");
    rejects("/2/parts/1/functionResponse/id", &json!(REMOVE), "contents[2].parts: no preceding call has the id");
    rejects("/2/parts/1/functionResponse/name", &json!("f"), "contents[2].parts: no preceding call has the id");
    rejects("/2/parts/0/functionResponse/name", &json!("f"), "contents[2].parts: no preceding call has the id");
    rejects("/1/parts/2/functionCall/id", &json!("1"), "contents[1].parts: must have calls with different ids");
    rejects("/0", &json!({"role": "model", "parts": [{"text": "x"}]}), "contents[0].role: must be user");
    let call = json!({"role": "model", "parts": [{"functionCall": {"name": "f"}}]});
    rejects("/4", &call, "contents[4].parts: must not have a functionCall after a model content");
    rejects("/3", &call, "contents[4]: must be the content with the function responses");
}

#[test]
fn roles_and_fields() {
    rejects("/0/role", &json!("function"), "contents[0].role: must be one of user, model");
    rejects("/0/role", &json!(null), "contents[0].role: must not be null");
    rejects("/0/content", &json!("x"), "contents[0].content: unknown field");
    rejects("/0/parts/0/type", &json!("text"), "contents[0].parts[0].type: unknown field");
    rejects("/0/parts/0/thoughtSignature", &json!(null), "contents[0].parts[0].thoughtSignature: must not be null");
    rejects("/1/parts/1/functionCall/willContinue", &json!(false), "contents[1].parts[1].functionCall.willContinue");
    rejects("/1/parts/1/functionCall/partialArgs", &json!([]), "contents[1].parts[1].functionCall.partialArgs");
    let path = "contents[2].parts[0].functionResponse";
    rejects("/2/parts/0/functionResponse/willContinue", &json!(true), &format!("{path}.willContinue: unknown field"));
    rejects("/2/parts/0/functionResponse/is_error", &json!(true), &format!("{path}.is_error: unknown field"));
    rejects("/2/parts/0/functionResponse/scheduling", &json!("x"), &format!("{path}.scheduling: must be one of"));
    rejects("/3/parts/0/executableCode/language", &json!("RUST"), "contents[3].parts[0].executableCode.language");
    rejects("/3/parts/1/codeExecutionResult/outcome", &json!("OK"), "contents[3].parts[1].codeExecutionResult.outcome");
}

#[test]
fn empty_content() {
    rejects("/0/parts", &json!([]), "contents[0].parts: must have at least one part");
    rejects("/0/parts", &json!(REMOVE), "contents[0].parts: is required");
    rejects("/0/parts/0", &json!({}), "contents[0].parts[0]: must have exactly one of");
    rejects("/0/parts/0/text", &json!(""), "contents[0].parts[0].text: must not be empty");
    rejects("/3/parts/3/thoughtSignature", &json!(REMOVE), "contents[3].parts[3].text: must not be empty");
    rejects("/2/parts/0/functionResponse/response", &json!(REMOVE), "contents[2].parts[0].functionResponse.response");
}

#[test]
fn parts_have_one_value() {
    rejects("/0/parts/1/text", &json!("x"), "contents[0].parts[1]: must have exactly one of");
    rejects("/3/parts/3", &json!({"thoughtSignature": "c2ln"}), "contents[3].parts[3]: must have exactly one of");
    rejects("/0/parts/0/videoMetadata", &json!({}), "contents[0].parts[0].videoMetadata: is only valid with media");
}

#[test]
fn parts_of_roles() {
    let response = json!({"functionResponse": {"name": "f", "response": {}}});
    rejects("/3/parts/0", &response, "contents[3].parts[0].functionResponse: is only valid in a user content");
    let call = json!({"functionCall": {"name": "f"}});
    rejects("/0/parts/0", &call, "contents[0].parts[0].functionCall: is only valid in a model content");
    rejects("/0/parts/0/thought", &json!(true), "contents[0].parts[0].thought: is only valid in a model content");
    rejects("/0/parts/0/thoughtSignature", &json!("c2ln"), "contents[0].parts[0].thoughtSignature: is only valid");
}

#[test]
fn ids_and_names() {
    rejects("/1/parts/1/functionCall/id", &json!(""), "contents[1].parts[1].functionCall.id: must not be empty");
    for name in ["", "1f", "a b", &"x".repeat(129)] {
        rejects("/1/parts/2/functionCall/name", &json!(name), "contents[1].parts[2].functionCall.name: must");
        rejects("/2/parts/0/functionResponse/name", &json!(name), "contents[2].parts[0].functionResponse.name: must");
    }
}

#[test]
fn arguments_and_responses_are_objects() {
    for value in [json!("{}"), json!([]), json!(5)] {
        rejects("/1/parts/1/functionCall/args", &value, "contents[1].parts[1].functionCall.args: must be an object");
        let path = "contents[2].parts[0].functionResponse.response: must be an object";
        rejects("/2/parts/0/functionResponse/response", &value, path);
    }
}

#[test]
fn media() {
    for mime in ["image/gif", "application/json", "image", ""] {
        rejects(
            "/0/parts/1/inlineData/mimeType",
            &json!(mime),
            "contents[0].parts[1].inlineData.mimeType: is not supported",
        );
        rejects(
            "/0/parts/2/fileData/mimeType",
            &json!(mime),
            "contents[0].parts[2].fileData.mimeType: is not supported",
        );
    }
    rejects("/0/parts/2/fileData/mimeType", &json!(REMOVE), "contents[0].parts[2].fileData.mimeType: is required");
    rejects("/0/parts/2/fileData/fileUri", &json!(""), "contents[0].parts[2].fileData.fileUri: must not be empty");
    let mut url_safe = history();
    url_safe[0]["parts"][1]["inlineData"]["data"] = json!("-_-_-w");
    url_safe[1]["parts"][0]["thoughtSignature"] = json!("-_-_-w==");
    accept("gemini", &url_safe);
    for data in ["", "x", "-!-_"] {
        rejects(
            "/0/parts/1/inlineData/data",
            &json!(data),
            "contents[0].parts[1].inlineData.data: must be non-empty base64",
        );
        rejects(
            "/1/parts/0/thoughtSignature",
            &json!(data),
            "contents[1].parts[0].thoughtSignature: must be non-empty",
        );
    }
    let path = "contents[2].parts[1].functionResponse.parts[0]";
    let pointer = "/2/parts/1/functionResponse/parts/0";
    rejects(&format!("{pointer}/inlineData/mimeType"), &json!("audio/wav"), &format!("{path}.inlineData.mimeType"));
    rejects(pointer, &json!({"text": "x"}), &format!("{path}.inlineData: is required"));
}

#[test]
fn gemini_3_demands_signatures_in_the_current_turn() {
    accept("gemini-3", &history());
    let unsigned = |history: &mut Value| history[1]["parts"][1].as_object_mut().unwrap().remove("thoughtSignature");
    let mut history = history();
    unsigned(&mut history);
    let error = check("gemini-3", history.as_array().unwrap()).unwrap_err();
    assert_eq!(error, "contents[1]: the first functionCall must have a thoughtSignature");
    accept("gemini", &history);
    // In an earlier turn, it may be missing.
    history.as_array_mut().unwrap().push(json!({"role": "user", "parts": [{"text": "Thanks"}]}));
    accept("gemini-3", &history);
}
