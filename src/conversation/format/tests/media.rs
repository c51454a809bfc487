use super::*;

/// Converts a part to `OpenAI`, Anthropic and Gemini.
fn render(part: &Value, ctx: &RenderContext) -> [Value; 3] {
    let blob = json!({"role": "user", "parts": [part]});
    let converted =
        |target, list: &str| convert_with(Format::Acontext, blob.clone(), target, ctx)[0][list].as_array().cloned();
    let first = |list: Option<Vec<Value>>| list.map_or(Value::Null, |list| list.into_iter().next().unwrap_or_default());
    let openai = convert_with(Format::Acontext, blob.clone(), Format::OpenAi, ctx)[0]["content"].clone();
    let openai = if openai.is_string() { openai } else { openai.get(0).cloned().unwrap_or_default() };
    [openai, first(converted(Format::Anthropic, "content")), first(converted(Format::Gemini, "parts"))]
}

fn text(text: &str) -> [Value; 3] {
    [json!(text), json!({"type": "text", "text": text}), json!({"text": text})]
}

#[test]
fn image_urls_are_converted() {
    let url = "https://x/cat.png?size=1";
    for meta in [json!({"url": url}), json!({"type": "url", "url": url})] {
        let [openai, anthropic, gemini] = render(&json!({"type": "image", "meta": meta}), &RenderContext::default());
        assert_eq!(openai, json!({"type": "image_url", "image_url": {"url": url}}));
        assert_eq!(anthropic, json!({"type": "image", "source": {"type": "url", "url": url}}));
        assert_eq!(gemini, json!({"fileData": {"fileUri": url, "mimeType": "image/png"}}));
    }
    let part = json!({"type": "image", "meta": {"url": "https://x/cat", "detail": "high"}});
    let [openai, _, gemini] = render(&part, &RenderContext::default());
    assert_eq!(openai["image_url"]["detail"], "high");
    assert_eq!(gemini, json!({"fileData": {"fileUri": "https://x/cat"}}));
}

#[test]
fn embedded_images_are_converted() {
    let url = format!("data:image/png;base64,{PNG}");
    for meta in [
        json!({"url": url}),
        json!({"url": format!("DATA:;base64,{PNG}")}),
        json!({"type": "base64", "media_type": "image/png", "data": PNG}),
        json!({"data": PNG}),
        json!({"type": "base64", "media_type": "IMAGE/png; x=y", "data": PNG}),
    ] {
        let [openai, anthropic, gemini] = render(&json!({"type": "image", "meta": meta}), &RenderContext::default());
        assert_eq!(openai, json!({"type": "image_url", "image_url": {"url": url}}));
        let source = json!({"type": "base64", "media_type": "image/png", "data": PNG});
        assert_eq!(anthropic, json!({"type": "image", "source": source}));
        assert_eq!(gemini, json!({"inlineData": {"mimeType": "image/png", "data": PNG}}));
    }
}

#[test]
fn image_jpg_becomes_image_jpeg() {
    let part = json!({"type": "image", "meta": {"type": "base64", "media_type": "image/jpg", "data": "AAAA"}});
    assert_eq!(render(&part, &RenderContext::default())[1]["source"]["media_type"], "image/jpeg");
}

#[test]
fn unsupported_media_become_placeholder_text() {
    let part = json!({"type": "image", "meta": {"type": "base64", "media_type": "image/heic", "data": "AAAA"}});
    let [openai, anthropic, gemini] = render(&part, &RenderContext::default());
    let placeholder = json!({"type": "text", "text": "[image (image/heic)]"});
    assert_eq!((&openai, &anthropic), (&json!("[image (image/heic)]"), &placeholder));
    assert_eq!(gemini["inlineData"]["mimeType"], "image/heic");

    let part = json!({"type": "video", "meta": {"url": "https://x/v.mp4"}});
    let [openai, anthropic, gemini] = render(&part, &RenderContext::default());
    assert_eq!(openai, "[video: https://x/v.mp4]");
    assert_eq!(anthropic, json!({"type": "text", "text": "[video: https://x/v.mp4]"}));
    assert_eq!(gemini, json!({"fileData": {"fileUri": "https://x/v.mp4", "mimeType": "video/mp4"}}));

    let part = json!({"type": "video", "meta": {"url": "gs://b/v", "media_type": "video/mp4"}});
    let [openai, _, gemini] = render(&part, &RenderContext::default());
    assert_eq!(openai, "[video (video/mp4): gs://b/v]");
    assert_eq!(gemini, json!({"fileData": {"fileUri": "gs://b/v", "mimeType": "video/mp4"}}));
    assert_eq!(render(&json!({"type": "image"}), &RenderContext::default()), text("[no content]"));
    assert_eq!(render(&json!({"type": "file", "meta": {"name": "x"}}), &RenderContext::default()), text("[file x]"));
}

#[test]
fn images_of_an_assistant_become_placeholder_text() {
    let blob = json!({"role": "assistant", "parts": [{"type": "image", "meta": {"url": "https://x/c.png"}}]});
    let message = json!({"role": "assistant", "content": "[image: https://x/c.png]"});
    assert_eq!(convert(Format::Acontext, blob.clone(), Format::OpenAi), json!([message]));
    let text = json!({"type": "text", "text": "[image: https://x/c.png]"});
    let message = json!({"role": "assistant", "content": [text]});
    assert_eq!(convert(Format::Acontext, blob, Format::Anthropic), json!([message]));
}

#[test]
fn audio_is_converted_where_supported() {
    let part = json!({"type": "audio", "meta": {"data": "AAAA", "format": "wav"}});
    let [openai, anthropic, gemini] = render(&part, &RenderContext::default());
    assert_eq!(openai, json!({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}));
    assert_eq!(anthropic, json!({"type": "text", "text": "[audio (audio/wav)]"}));
    assert_eq!(gemini, json!({"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}}));
    let part = json!({"type": "audio", "meta": {"type": "base64", "media_type": "audio/mpeg", "data": "AAAA"}});
    assert_eq!(render(&part, &RenderContext::default())[0]["input_audio"]["format"], "mp3");
    let part = json!({"type": "audio", "meta": {"type": "base64", "media_type": "audio/flac", "data": "AAAA"}});
    assert_eq!(render(&part, &RenderContext::default())[0], "[audio (audio/flac)]");
}

#[test]
fn documents_are_converted() {
    let data = "data:application/pdf;base64,AAAA";
    for meta in [
        json!({"file_data": data, "filename": "a.pdf"}),
        json!({"file_data": "AAAA", "filename": "a.pdf"}),
        json!({"type": "base64", "media_type": "application/pdf", "data": "AAAA", "filename": "a.pdf"}),
    ] {
        let [openai, anthropic, gemini] = render(&json!({"type": "file", "meta": meta}), &RenderContext::default());
        assert_eq!(openai, json!({"type": "file", "file": {"file_data": data, "filename": "a.pdf"}}));
        let source = json!({"type": "base64", "media_type": "application/pdf", "data": "AAAA"});
        assert_eq!(anthropic, json!({"type": "document", "source": source, "title": "a.pdf"}));
        let inline = json!({"mimeType": "application/pdf", "data": "AAAA"});
        assert_eq!(gemini, json!({"inlineData": inline}));
    }
    let part = json!({"type": "file", "meta": {"type": "url", "url": "https://x/a.pdf"}});
    let [openai, anthropic, gemini] = render(&part, &RenderContext::default());
    assert_eq!(openai, "[file: https://x/a.pdf]");
    assert_eq!(anthropic, json!({"type": "document", "source": {"type": "url", "url": "https://x/a.pdf"}}));
    assert_eq!(gemini, json!({"fileData": {"fileUri": "https://x/a.pdf", "mimeType": "application/pdf"}}));
    let part = json!({"type": "file", "meta": {"file_id": "f-1"}});
    assert_eq!(render(&part, &RenderContext::default())[0], json!({"type": "file", "file": {"file_id": "f-1"}}));
}

#[test]
fn anthropic_only_sources_survive() {
    for (block, text) in [
        (json!({"type": "image", "source": {"type": "file", "file_id": "f"}}), "[image f]"),
        (json!({"type": "document", "source": {"type": "file", "file_id": "f"}}), "[file f]"),
        (json!({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "words"}}), "words"),
        (
            json!({"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "words"}]}}),
            "words",
        ),
    ] {
        let blob = json!({"role": "user", "content": [block]});
        assert_eq!(convert(Format::Anthropic, blob.clone(), Format::Anthropic), json!([blob]));
        let parts = json!([{"text": text}]);
        assert_eq!(convert(Format::Anthropic, blob, Format::Gemini), json!([{"role": "user", "parts": parts}]));
    }
}

#[test]
fn anthropic_gets_only_public_urls_and_valid_base64() {
    for (meta, text) in [
        (json!({"url": "gs://b/c.png"}), "[image: gs://b/c.png]"),
        (json!({"url": "file-1"}), "[image: file-1]"),
        (json!({"media_type": "image/png", "data": "not base64!"}), "[image (image/png)]"),
    ] {
        let [_, anthropic, _] = render(&json!({"type": "image", "meta": meta}), &RenderContext::default());
        assert_eq!(anthropic, json!({"type": "text", "text": text}));
    }
    let [_, anthropic, _] = render(&json!({"type": "image", "meta": {"data": "-_8"}}), &RenderContext::default());
    assert_eq!(anthropic["source"]["data"], "+/8=");
}

fn stored_file(kind: &str, filename: &str, mime: &str) -> Value {
    let asset = json!({"bucket": "b", "s3_key": "k", "etag": "", "sha256": "5ha", "mime": mime, "size_b": 3});
    json!({"type": kind, "filename": filename, "asset": asset})
}

/// Converts a part with a stored file, which [`normalize`] would not accept from a client.
fn render_file(part: &Value, with_url: bool, contents: Option<&str>) -> [Value; 3] {
    let one = |text: &str| [("5ha".to_owned(), text.to_owned())].into();
    let ctx = RenderContext {
        asset_urls: if with_url { one("https://me/url") } else { HashMap::new() },
        asset_contents: contents.map(one).unwrap_or_default(),
        ..RenderContext::default()
    };
    [(Format::OpenAi, "content"), (Format::Anthropic, "content"), (Format::Gemini, "parts")].map(|(target, list)| {
        let parts = to_parts(Format::Acontext, json!({"parts": [part]}));
        let message = from_parts(target, Role::User, &Map::new(), parts, &ctx).remove(0);
        message[list].get(0).unwrap_or(&message[list]).clone()
    })
}

#[test]
fn stored_image_becomes_url_or_embedded_data() {
    let part = stored_file("image", "red.png", "image/png");
    let [openai, anthropic, gemini] = render_file(&part, true, Some(PNG));
    assert_eq!(openai, json!({"type": "image_url", "image_url": {"url": "https://me/url"}}));
    assert_eq!(anthropic["source"], json!({"type": "base64", "media_type": "image/png", "data": PNG}));
    assert_eq!(gemini["inlineData"], json!({"mimeType": "image/png", "data": PNG}));

    let [openai, anthropic, gemini] = render_file(&part, true, None);
    assert_eq!(openai["image_url"]["url"], "https://me/url");
    assert_eq!(anthropic["source"], json!({"type": "url", "url": "https://me/url"}));
    let file = json!({"fileUri": "https://me/url", "mimeType": "image/png"});
    assert_eq!(gemini, json!({"fileData": file}));

    let [openai, ..] = render_file(&part, false, Some(PNG));
    assert_eq!(openai["image_url"]["url"], format!("data:image/png;base64,{PNG}"));
    assert_eq!(render_file(&part, false, None), text("[image red.png (image/png)]"));
}

#[test]
fn stored_file_is_converted_by_its_type() {
    let part = stored_file("file", "a.pdf", "application/pdf");
    let [openai, anthropic, _] = render_file(&part, true, Some("AAAA"));
    assert_eq!(openai["file"], json!({"file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"}));
    assert_eq!(anthropic["type"], "document");

    let part = stored_file("file", "n.md", "text/markdown; charset=utf-8");
    let [openai, anthropic, gemini] = render_file(&part, false, Some("aGk="));
    assert_eq!(openai["file"]["file_data"], "data:text/markdown;base64,aGk=");
    assert_eq!(anthropic["source"], json!({"type": "text", "media_type": "text/plain", "data": "hi"}));
    assert_eq!(gemini["inlineData"]["mimeType"], "text/markdown");

    let part = stored_file("file", "z.zip", "application/zip");
    let [openai, anthropic, gemini] = render_file(&part, true, None);
    assert_eq!(openai, "[file z.zip (application/zip): https://me/url]");
    assert_eq!(anthropic["text"], "[file z.zip (application/zip): https://me/url]");
    assert_eq!(gemini["text"], "[file z.zip (application/zip): https://me/url]");

    let part = stored_file("file", "s.wav", "audio/wav");
    assert_eq!(render_file(&part, true, Some("AAAA"))[0]["input_audio"]["format"], "wav");
}

#[test]
fn caption_becomes_text() {
    let blob = json!({"role": "user", "parts": [
        {"type": "image", "text": "a cat", "meta": {"url": "https://x/c.png"}},
        {"type": "data", "text": "a chart", "meta": {"data_type": "chart"}}]});
    let content = convert(Format::Acontext, blob, Format::OpenAi)[0]["content"].clone();
    assert_eq!(content[1], json!({"type": "text", "text": "a cat"}));
    assert_eq!(content[2], json!({"type": "text", "text": "a chart"}));
}
