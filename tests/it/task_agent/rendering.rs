//! How the parts of messages are rendered.

use serde_json::json;

use super::{batch, in_both_formats};
use crate::support::client::Form;
use crate::support::model_server::Step;

#[tokio::test]
async fn each_kind_of_part_is_rendered() {
    in_both_formats(&[], async |s| {
        let store = async |format: &str, blob| {
            s.client.store_message(&s.session, format, blob).await.assert_status(201);
        };
        s.store(&["read <b>this</b>"]).await;
        let function = json!({"name": "look", "arguments": "{\"q\": \"é\"}"});
        let call = json!({"id": "c1", "type": "function", "function": function});
        store("openai", json!({"role": "assistant", "content": "I look.", "tool_calls": [call]})).await;
        store("openai", json!({"role": "tool", "tool_call_id": "c1", "content": "found it"})).await;
        store("openai", json!({"role": "tool", "tool_call_id": "other", "content": "of no call"})).await;
        let thinking = json!({"type": "thinking", "thinking": "a secret thought", "signature": "c2ln"});
        let text = json!({"type": "text", "text": "Done."});
        store("anthropic", json!({"role": "assistant", "content": [thinking, text]})).await;
        let url = json!({"url": "https://example.com/cat.png"});
        store("openai", json!({"role": "user", "content": [{"type": "image_url", "image_url": url}]})).await;
        let parts = json!([
            {"type": "text", "text": "two files"},
            {"type": "image", "file_field": "a"},
            {"type": "file", "file_field": "b"},
        ]);
        let payload = json!({"format": "acontext", "blob": {"role": "user", "parts": parts}}).to_string();
        let form = Form::new().text("payload", &payload);
        let form = form.file("a", "<cat>.png", "image").file("b", "b.txt", "the content");
        s.client.store_form_message(&s.session, form).await.assert_status(201);
        let request = s.observe([Step::text("ok")]).await.remove(0);
        let messages = batch(&request);
        let expected = [
            "<text>read &lt;b&gt;this&lt;/b&gt;</text>",
            "<text>I look.</text>\n<tool-call>{\"tool_name\":\"look\",\"arguments\":{\"q\":\"\\u00e9\"}}</tool-call>",
            "<tool-result>{\"tool_name\":\"look\",\"result\":\"found it\"}</tool-result>",
            "<tool-result>{\"result\":\"of no call\"}</tool-result>",
            "<omitted type=\"thinking\"></omitted>\n<text>Done.</text>",
            "<omitted type=\"image\"></omitted>",
            "<text>two files</text>\n<omitted type=\"image\">&lt;cat&gt;.png</omitted>\n\
             <omitted type=\"file\">b.txt</omitted>",
        ];
        assert_eq!(messages, expected);
        let text = &request.user_texts()[0];
        for (id, role) in [(0, "user"), (1, "agent"), (4, "agent"), (5, "user")] {
            assert!(text.contains(&format!("id=\"{id}\" role=\"{role}\"")), "{id}: {text}");
        }
        assert!(!text.contains("secret thought") && !text.contains("the content"), "{text}");
    })
    .await;
}
