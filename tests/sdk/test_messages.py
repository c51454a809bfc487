"""Messages as users of the SDK work with them: formats of several providers, files, user metadata, pages."""

import asyncio
import base64
import dataclasses
import hashlib
import io
import json
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from anthropic.types import Message as AnthropicMessage
from openai.types.chat import ChatCompletionMessage

from acontext import FileUpload
from acontext.integrations.claude_agent import ClaudeAgentStorage
from acontext.messages import AcontextMessage, MessagePart, build_acontext_message
from support import run_async, open_link, raises_error, store_text

FORMATS = ["openai", "anthropic", "gemini", "acontext"]
UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"
# The smallest PNG: one pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010804000000b51c0c02"
    "0000000b4944415478da6364f80f00010501012718e3660000000049454e44ae426082"
)
PNG_BASE64 = base64.b64encode(PNG).decode()
PNG_DATA_URL = f"data:image/png;base64,{PNG_BASE64}"
SIGNATURE = base64.b64encode(b"signed by the model").decode()


@pytest.fixture
def session(client):
    return client.sessions.create()


def store_blobs(client, session, *blobs, format="openai", **options):
    """Stores messages and returns the response for the last one."""
    for blob in blobs:
        message = client.sessions.store_message(session.id, blob=blob, format=format, **options)
    return message


def read_page(client, session, format="openai", **options):
    """Reads a list of messages and checks what is true for every list."""
    page = client.sessions.get_messages(session.id, format=format, **options)
    assert len(page.items) == len(page.ids) == len(page.metas)
    assert page.has_more == bool(page.next_cursor)
    assert page.edit_at_message_id == (page.ids[-1] if page.ids else None)
    assert page.public_urls is None or format == "acontext"
    if format == "acontext":
        assert page.ids == [item["id"] for item in page.items]
    return page


def read_items(client, session, format="openai", **options):
    return read_page(client, session, format, **options).items


def read_parts(client, session):
    return [item["parts"] for item in read_items(client, session, "acontext")]


def store_file(client, session, *parts, file, field="file", **options):
    """Stores a message with a file in the `acontext` format. A part that is a string is the type of a file part."""
    parts = [{"type": part, "file_field": field} if isinstance(part, str) else part for part in parts]
    return client.sessions.store_message(
        session.id, blob={"role": "user", "parts": parts}, format="acontext", file_field=field, file=file, **options
    )


# ----- one conversation in the format of each provider -----


RESULT = '{"rgb":[255,0,0]}'
QUESTION = {"type": "text", "text": "What color is this?"}
CONVERSATION = {
    # This format has no thinking parts.
    "openai": [
        {
            "role": "user",
            "content": [QUESTION, {"type": "image_url", "image_url": {"url": PNG_DATA_URL}}],
        },
        {
            "role": "assistant",
            "content": "Let me measure.",
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "measure", "arguments": '{"x":0,"y":0}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": RESULT},
        {"role": "assistant", "content": "Red."},
    ],
    "anthropic": [
        {
            "role": "user",
            "content": [
                QUESTION,
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG_BASE64}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "It is one pixel.", "signature": SIGNATURE},
                {"type": "text", "text": "Let me measure."},
                {"type": "tool_use", "id": "call_1", "name": "measure", "input": {"x": 0, "y": 0}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "call_1",
                    "is_error": False,
                    "content": [{"type": "text", "text": RESULT}],
                }
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
    ],
    "gemini": [
        {
            "role": "user",
            "parts": [{"text": "What color is this?"}, {"inlineData": {"mimeType": "image/png", "data": PNG_BASE64}}],
        },
        {
            "role": "model",
            "parts": [
                {"text": "It is one pixel.", "thought": True, "thoughtSignature": SIGNATURE},
                {"text": "Let me measure."},
                {"functionCall": {"id": "call_1", "name": "measure", "args": {"x": 0, "y": 0}}},
            ],
        },
        {
            "role": "user",
            "parts": [{"functionResponse": {"id": "call_1", "name": "measure", "response": {"rgb": [255, 0, 0]}}}],
        },
        {"role": "model", "parts": [{"text": "Red."}]},
    ],
    "acontext": [
        {"role": "user", "parts": [QUESTION, {"type": "image", "meta": {"url": PNG_DATA_URL}}]},
        {
            "role": "assistant",
            "parts": [
                {"type": "thinking", "text": "It is one pixel.", "meta": {"signature": SIGNATURE}},
                {"type": "text", "text": "Let me measure."},
                {"type": "tool-call", "meta": {"id": "call_1", "name": "measure", "arguments": '{"x":0,"y":0}'}},
            ],
        },
        {"role": "user", "parts": [{"type": "tool-result", "text": RESULT, "meta": {"tool_call_id": "call_1"}}]},
        {"role": "assistant", "parts": [{"type": "text", "text": "Red."}]},
    ],
}
# Metadata of the acontext parts that depends on the format in which a message was stored.
IMAGE_META = {
    "openai": {"url": PNG_DATA_URL, "detail": ""},
    "acontext": {"url": PNG_DATA_URL},
    "anthropic": {"type": "base64", "media_type": "image/png", "data": PNG_BASE64},
    "gemini": {"type": "base64", "media_type": "image/png", "data": PNG_BASE64},
}
CALL_META = {
    "openai": {"type": "function"},
    "anthropic": {"type": "tool_use"},
    "gemini": {"type": "function"},
    "acontext": {},
}
RESULT_META = {"openai": {}, "anthropic": {"is_error": False}, "gemini": {"name": "measure"}, "acontext": {}}
# The formats of stored messages whose thought can be read in a format. Anthropic requires its own signature.
SOURCES_OF_THOUGHTS = {
    "openai": set(),
    "anthropic": {"anthropic", "acontext"},
    "gemini": {"anthropic", "gemini", "acontext"},
    "acontext": {"anthropic", "gemini", "acontext"},
}


def expected_items(stored_as, read_as):
    """Returns the conversation that was stored in one format as it is read in another one."""
    # A copy that can be modified.
    messages = json.loads(json.dumps(CONVERSATION[read_as]))
    answer = messages[1]
    if read_as != "openai" and stored_as not in SOURCES_OF_THOUGHTS[read_as]:
        del answer["content" if read_as == "anthropic" else "parts"][0]
    elif read_as == "gemini" and stored_as != "gemini":
        del answer["parts"][0]["thoughtSignature"]
    if read_as == "acontext":
        messages[0]["parts"][1]["meta"] = IMAGE_META[stored_as]
        answer["parts"][-1]["meta"] |= CALL_META[stored_as]
        messages[2]["parts"][0]["meta"] |= RESULT_META[stored_as]
    return messages


@pytest.mark.parametrize("read_as", FORMATS)
@pytest.mark.parametrize("stored_as", FORMATS)
def test_a_conversation_can_be_read_in_every_format(client, session, stored_as, read_as):
    messages = [store_blobs(client, session, blob, format=stored_as) for blob in CONVERSATION[stored_as]]
    page = read_page(client, session, read_as)
    items = page.items
    if read_as == "acontext":
        assert all(item["meta"]["source_format"] == stored_as for item in items)
        items = [{"role": item["role"], "parts": item["parts"]} for item in items]
    assert items == expected_items(stored_as, read_as)
    assert page.ids == [message.id for message in messages]
    assert [message.role for message in messages] == ["user", "assistant", "user", "assistant"]
    # The number of tokens does not depend on the format in which the messages are read.
    assert page.this_time_tokens == client.sessions.get_token_counts(session.id).total_tokens > 20


@pytest.mark.parametrize("format", FORMATS)
def test_storing_a_message_returns_what_the_list_returns(client, session, format):
    blobs = enumerate(CONVERSATION[format])
    stored = [store_blobs(client, session, blob, format=format, meta={"n": n}) for n, blob in blobs]
    listed = read_items(client, session, "acontext")
    for message, item in zip(stored, listed, strict=True):
        dump = message.model_dump(exclude_none=True)
        assert dump.pop("meta") == item["meta"]["__user_meta__"]
        assert dump == {key: value for key, value in item.items() if value is not None and key != "meta"}


def test_openai_is_the_default_format(client, session):
    client.sessions.store_message(session.id, blob=CONVERSATION["openai"][3])
    assert client.sessions.get_messages(session.id).items == [CONVERSATION["openai"][3]]


def test_formats_may_be_mixed_in_one_session(client, session):
    for format in FORMATS:
        store_blobs(client, session, CONVERSATION[format][3], format=format)
    for format in ("openai", "anthropic", "gemini"):
        assert read_items(client, session, format) == [CONVERSATION[format][3]] * 4


# ----- what the SDKs send -----


def test_a_message_of_the_openai_sdk_with_nulls_is_accepted(client, session):
    sent = ChatCompletionMessage.model_validate(
        {
            "role": "assistant",
            "content": "Let me look.",
            "refusal": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}
            ],
        }
    )
    assert None in sent.model_dump().values()
    store_blobs(client, session, sent)
    (item,) = read_items(client, session)
    assert item == {key: value for key, value in sent.model_dump().items() if value is not None}
    assert ChatCompletionMessage.model_validate(item) == sent


def test_a_message_of_the_anthropic_sdk_with_nulls_is_accepted(client, session):
    sent = AnthropicMessage.model_validate(
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "some-model",
            "stop_reason": "tool_use",
            "stop_sequence": None,
            "usage": {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": None},
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": SIGNATURE},
                {"type": "text", "text": "Let me look.", "citations": None},
                {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "it"}},
            ],
        }
    )
    store_blobs(client, session, sent, format="anthropic")
    (item,) = read_items(client, session, "anthropic")
    # The message can be sent again: the provider rejects a request with the id, the model and the usage.
    assert item == {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": SIGNATURE},
            {"type": "text", "text": "Let me look."},
            {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "it"}},
        ],
    }


def test_nulls_in_a_dumped_message_are_treated_as_absent(client, session):
    store_blobs(
        client,
        session,
        {"role": "assistant", "content": "a", "refusal": None, "tool_calls": None, "audio": None},
        {"role": "user", "content": [{"type": "text", "text": "b", "cache_control": None}], "name": None},
    )
    store_blobs(
        client,
        session,
        {"role": "user", "meta": None, "parts": [{"type": "text", "text": "c", "meta": None, "file_field": None}]},
        format="acontext",
    )
    assert read_parts(client, session) == [[{"type": "text", "text": text}] for text in "abc"]


def test_messages_may_be_built_with_the_helpers_of_the_sdk(client, session):
    built = build_acontext_message(
        role="user",
        parts=[
            "words alone",
            MessagePart(type="text", text="with meta", meta={"lang": "en"}),
            {"type": "data", "meta": {"data_type": "chart", "values": [1, 2.5, None]}},
        ],
        meta={"origin": "helper"},
    )
    store_blobs(client, session, built, format="acontext")
    message = AcontextMessage(role="assistant", parts=[MessagePart(type="text", text="by hand")])
    store_blobs(client, session, dataclasses.asdict(message), format="acontext")
    first, second = read_items(client, session, "acontext")
    assert first["parts"] == [
        {"type": "text", "text": "words alone"},
        {"type": "text", "text": "with meta", "meta": {"lang": "en"}},
        {"type": "data", "meta": {"data_type": "chart", "values": [1, 2.5, None]}},
    ]
    assert first["meta"] == {"origin": "helper", "source_format": "acontext"}
    assert second["parts"] == [{"type": "text", "text": "by hand"}]


def test_every_type_of_part_is_preserved(client, session):
    sent = [
        {"type": "text", "text": "words", "meta": {"lang": "en"}},
        {"type": "image", "meta": {"url": "https://images.example.org/cat.png"}},
        {"type": "audio", "meta": {"data": "AAAA", "format": "wav"}},
        {"type": "video", "meta": {"url": "https://videos.example.org/cat.mp4"}},
        {"type": "file", "meta": {"name": "cat"}},
        {"type": "data", "meta": {"data_type": "chart"}},
        {"type": "thinking", "text": "hm"},
        {"type": "redacted_thinking", "meta": {"data": "b3BhcXVl"}},
        {"type": "tool-call", "meta": {"id": "c", "name": "n", "arguments": {"as": ["object"]}}},
        {"type": "tool-result", "text": "r", "meta": {"tool_call_id": "c", "extra": [None, {"x": 1.5}]}},
    ]
    stored = store_blobs(client, session, {"role": "assistant", "parts": sent}, format="acontext")
    assert [part.model_dump(exclude_none=True) for part in stored.parts] == sent
    assert read_parts(client, session) == [sent]
    for format in ("openai", "anthropic", "gemini"):
        assert len(read_items(client, session, format)) >= 1


# ----- text -----


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\t ",
        "Grüße, 寿司 🍣 \u202e \u0000 \ufeff",
        '<&> "quoted" \\ \u2028\u2029',
        "<|endoftext|>",
        "x" * 1_000_000,
        "one word and another one " * 40_000,
    ],
    ids=["empty", "blank", "unicode", "quotes", "special token", "long run", "long text"],
)
def test_text_is_preserved(client, session, text):
    message = store_text(client, session, text)
    assert (message.parts[0].text or "") == text
    assert read_items(client, session) == [{"role": "user", "content": text}]
    assert bool(text) == bool(read_page(client, session).this_time_tokens)


@pytest.mark.parametrize("format", ["openai", "anthropic"])
def test_a_list_of_one_text_is_the_same_as_a_string(client, session, format):
    blob = {"role": "user", "content": [{"type": "text", "text": "alone"}]}
    store_blobs(client, session, blob, format=format)
    (item,) = read_items(client, session, format)
    assert item in (blob, {"role": "user", "content": "alone"})
    store_blobs(client, session, {"role": "user", "content": "alone"}, format=format)
    assert read_items(client, session, format)[1]["content"] in ("alone", [{"type": "text", "text": "alone"}])
    assert read_parts(client, session) == [[{"type": "text", "text": "alone"}]] * 2


def test_system_messages_keep_their_role_only_in_openai(client, session):
    sent = [
        {"role": "system", "content": "Be brief.", "name": "policy"},
        {"role": "developer", "content": "Use metric units."},
        {"role": "user", "content": "How far?", "name": "ada"},
        {"role": "assistant", "content": "Far.", "name": "bot"},
    ]
    store_blobs(client, session, *sent)
    assert read_items(client, session) == sent
    assert [item["role"] for item in read_items(client, session, "acontext")] == ["user", "user", "user", "assistant"]
    assert [item["role"] for item in read_items(client, session, "anthropic")] == ["user", "user", "user", "assistant"]
    assert [item["role"] for item in read_items(client, session, "gemini")] == ["user", "user", "user", "model"]


def test_a_long_name_is_preserved(client, session):
    sent = {"role": "user", "content": "hello", "name": "n" * 10_000}
    store_blobs(client, session, sent)
    assert read_items(client, session) == [sent]


@pytest.mark.parametrize(
    "format, blob",
    [
        ("openai", {"role": "assistant"}),
        ("openai", {"role": "assistant", "content": None}),
        ("openai", {"role": "assistant", "content": []}),
        ("anthropic", {"role": "user", "content": []}),
        ("anthropic", {"role": "assistant"}),
        ("acontext", {"role": "user", "parts": []}),
        ("acontext", {"role": "user"}),
        ("gemini", {"role": "model", "parts": []}),
    ],
)
def test_an_empty_message_keeps_its_position(client, session, format, blob):
    store_text(client, session, "before", meta={"n": 1})
    assert store_blobs(client, session, blob, format=format, meta={"n": 2}).parts == []
    store_text(client, session, "after", meta={"n": 3})
    for read_as in FORMATS:
        page = read_page(client, session, read_as)
        assert len(page.items) == 3
        assert page.metas == [{"n": 1}, {"n": 2}, {"n": 3}]
    # Providers reject a message without content. In its own format it is returned as it was stored.
    if format == "openai":
        assert read_items(client, session)[1] == blob
    else:
        assert read_items(client, session)[1]["content"] == "[no content]"


# ----- content that only one provider supports -----


@pytest.mark.parametrize(
    "format, blob",
    [
        (
            "openai",
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "watch"},
                    {"type": "video_url", "video_url": {"url": "https://videos.example.org/a.mp4"}},
                ],
            },
        ),
        (
            "openai",
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "Sorry."},
                    {"type": "refusal", "refusal": "I will not do that."},
                ],
            },
        ),
        (
            "openai",
            {
                "role": "assistant",
                "content": "run",
                "tool_calls": [
                    {"id": "k1", "type": "custom", "custom": {"name": "shell", "input": "ls -l"}},
                    {"id": "k2", "type": "function", "function": {"name": "f", "arguments": ""}},
                ],
            },
        ),
        ("openai", {"role": "assistant", "function_call": {"name": "old", "arguments": '{"a":1}'}}),
        (
            "openai",
            {
                "role": "user",
                "content": [{"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}],
            },
        ),
        (
            "openai",
            {
                "role": "user",
                "content": [
                    {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="}}
                ],
            },
        ),
        (
            "openai",
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "https://images.example.org/cat.png", "detail": "high"}}
                ],
            },
        ),
        (
            "anthropic",
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "before"},
                    {"type": "hologram", "beam": {"x": 1}},
                    {"type": "redacted_thinking", "data": "b3BhcXVl"},
                    {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "cats"}},
                    {"type": "text", "text": "after"},
                ],
            },
        ),
        (
            "anthropic",
            {
                "role": "user",
                "content": [
                    {
                        "type": "document",
                        "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="},
                        "title": "Report",
                        "context": "last year",
                        "citations": {"enabled": True},
                        "cache_control": {"type": "ephemeral", "ttl": "1h"},
                    },
                    {"type": "text", "text": "sum up", "cache_control": {"type": "ephemeral"}},
                    {
                        "type": "image",
                        "source": {"type": "url", "url": "https://images.example.org/cat.png"},
                        "cache_control": {"type": "ephemeral"},
                    },
                ],
            },
        ),
        (
            "gemini",
            {
                "role": "user",
                "parts": [
                    {"fileData": {"mimeType": "video/mp4", "fileUri": "gs://bucket/clip.mp4"}},
                    {"text": "what happens?"},
                ],
            },
        ),
        (
            "gemini",
            {
                "role": "model",
                "parts": [
                    {"executableCode": {"language": "PYTHON", "code": "print(1)"}},
                    {"functionCall": {"id": "g1", "name": "f", "args": {"a": 1}}, "thoughtSignature": SIGNATURE},
                ],
            },
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_provider_specific_content_is_preserved(client, session, format, blob):
    store_blobs(client, session, blob, format=format)
    assert read_items(client, session, format) == [blob]
    # The message can also be read in the other formats.
    for other in FORMATS:
        assert len(read_items(client, session, other)) == 1


def test_an_image_url_is_passed_on_and_not_fetched(client, session):
    url = "https://images.invalid/cat.png"
    store_blobs(client, session, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]})
    (item,) = read_items(client, session, "anthropic")
    assert item["content"] == [{"type": "image", "source": {"type": "url", "url": url}}]
    (item,) = read_items(client, session, "gemini")
    assert url in json.dumps(item)


def test_a_document_is_converted_between_providers(client, session):
    data = base64.b64encode(b"%PDF-1.4").decode()
    source = {"type": "base64", "media_type": "application/pdf", "data": data}
    blob = {"role": "user", "content": [{"type": "document", "source": source}]}
    store_blobs(client, session, blob, format="anthropic")
    file = {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{data}"}
    store_blobs(client, session, {"role": "user", "content": [{"type": "file", "file": file}]})
    inline = {"inlineData": {"mimeType": "application/pdf", "data": data}}
    assert [item["parts"] for item in read_items(client, session, "gemini")] == [[inline], [inline]]
    for item in read_items(client, session, "anthropic"):
        (block,) = item["content"]
        assert (block["type"], block["source"]) == ("document", source)
    for item in read_items(client, session, "openai"):
        (part,) = item["content"]
        assert part["file"]["file_data"] == file["file_data"]


# ----- tool calls -----


def tool_call(call_id, name, arguments):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_parallel_calls_and_their_results_are_converted(client, session):
    sent = [
        {
            "role": "assistant",
            "tool_calls": [tool_call("c1", "weather", '{"city":"Paris"}'), tool_call("c2", "time", "{}")],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "tool", "tool_call_id": "c2", "content": "12:30"},
    ]
    sent[0]["content"] = None
    store_blobs(client, session, *sent)
    assert read_items(client, session) == sent
    assert read_items(client, session, "anthropic") == [
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Paris"}},
                {"type": "tool_use", "id": "c2", "name": "time", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": call_id,
                    "is_error": False,
                    "content": [{"type": "text", "text": text}],
                }
                for call_id, text in (("c1", "rain"), ("c2", "12:30"))
            ],
        },
    ]
    calls, results = read_items(client, session, "gemini")
    assert calls["parts"][0] == {"functionCall": {"id": "c1", "name": "weather", "args": {"city": "Paris"}}}
    assert [part["functionCall"]["name"] for part in calls["parts"]] == ["weather", "time"]
    assert [part["functionResponse"] for part in results["parts"]] == [
        {"id": "c1", "name": "weather", "response": {"output": "rain"}},
        {"id": "c2", "name": "time", "response": {"output": "12:30"}},
    ]


def test_several_results_become_several_openai_messages(client, session):
    call_message = store_blobs(
        client,
        session,
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "a1", "name": "first", "input": {}},
                {"type": "tool_use", "id": "a2", "name": "second", "input": {"k": "v"}},
            ],
        },
        format="anthropic",
        meta={"n": 1},
    )
    results = {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "a1", "content": "one"},
            {
                "type": "tool_result",
                "tool_use_id": "a2",
                "content": [{"type": "text", "text": "two"}],
                "is_error": True,
            },
            {"type": "text", "text": "And now?"},
        ],
    }
    result_message = store_blobs(client, session, results, format="anthropic", meta={"n": 2})
    after = store_text(client, session, "after", meta={"n": 3})

    page = read_page(client, session)
    assert page.items[1:] == [
        {"role": "tool", "tool_call_id": "a1", "content": "one"},
        {"role": "tool", "tool_call_id": "a2", "content": "two"},
        {"role": "user", "content": "And now?"},
        {"role": "user", "content": "after"},
    ]
    # Ids and metas correspond to the items.
    assert page.ids == [call_message.id, result_message.id, result_message.id, result_message.id, after.id]
    assert page.metas == [{"n": 1}, {"n": 2}, {"n": 2}, {"n": 2}, {"n": 3}]
    # The limit of a page counts messages, not items.
    page = read_page(client, session, limit=2)
    assert page.ids == [call_message.id] + [result_message.id] * 3
    assert read_page(client, session, limit=2, cursor=page.next_cursor).ids == [after.id]
    assert read_page(client, session, "gemini").ids == [call_message.id, result_message.id, after.id]
    blocks = read_items(client, session, "anthropic")[1]["content"]
    assert [block.get("is_error", False) for block in blocks] == [False, True, False]
    assert [block["type"] for block in blocks] == ["tool_result", "tool_result", "text"]


def test_arguments_in_a_string_are_preserved(client, session):
    for arguments in ('{ "b": 1,\n "a": [2.0, 1e3] }', "not JSON", "", '{"big": 9007199254740993}', '"<&>\u2028"'):
        sent = {"role": "assistant", "tool_calls": [tool_call("c", "f", arguments)]}
        store_blobs(client, session, sent)
        assert read_items(client, session)[-1] == sent


@pytest.mark.parametrize("format", FORMATS)
def test_arguments_in_an_object_become_compact_sorted_json(client, session, format):
    given = {"b": {"d": 1, "c": "<&>ü"}, "a": [2.5, None, 2**53 + 1]}
    text = '{"a":[2.5,null,9007199254740993],"b":{"c":"<&>ü","d":1}}'
    blob = {
        "openai": {"role": "assistant", "tool_calls": [tool_call("c", "f", given)]},
        "anthropic": {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": given}]},
        "gemini": {"role": "model", "parts": [{"functionCall": {"id": "c", "name": "f", "args": given}}]},
        "acontext": {
            "role": "assistant",
            "parts": [{"type": "tool-call", "meta": {"id": "c", "name": "f", "arguments": given}}],
        },
    }[format]
    store_blobs(client, session, blob, format=format)
    (item,) = read_items(client, session, "anthropic")
    assert item["content"] == [{"type": "tool_use", "id": "c", "name": "f", "input": given}]
    (item,) = read_items(client, session, "gemini")
    assert item["parts"] == [{"functionCall": {"id": "c", "name": "f", "args": given}}]
    # The SDK of OpenAI supports arguments only as a string.
    no_content = {} if format == "openai" else {"content": None}
    assert read_items(client, session) == [{"role": "assistant", "tool_calls": [tool_call("c", "f", text)], **no_content}]


# ----- calls of Gemini, which are matched by name -----


def function_call(name, call_id=None, **args):
    return {"functionCall": {"name": name, "args": args} | ({"id": call_id} if call_id else {})}


def function_response(name, call_id=None, **response):
    return {"functionResponse": {"name": name, "response": response} | ({"id": call_id} if call_id else {})}


def test_a_call_without_an_id_and_its_result_get_the_same_id(client, session):
    blob = {"role": "model", "parts": [function_call("find", q="x")]}
    call_message = store_blobs(client, session, blob, format="gemini")
    call_id = call_message.parts[0].meta["id"]
    assert call_id.startswith("call_")
    blob = {"role": "user", "parts": [function_response("find", hits=2)]}
    result_message = store_blobs(client, session, blob, format="gemini")
    assert result_message.parts[0].meta["tool_call_id"] == call_id
    assert read_items(client, session) == [
        {"role": "assistant", "content": None, "tool_calls": [tool_call(call_id, "find", '{"q":"x"}')]},
        {"role": "tool", "tool_call_id": call_id, "content": '{"hits":2}'},
    ]


def test_results_are_matched_with_calls_of_the_name_in_order(client, session):
    calls = [function_call("find", q=1), function_call("find", q=2), function_call("count", q=3)]
    call_message = store_blobs(client, session, {"role": "model", "parts": calls}, format="gemini")
    ids = [part.meta["id"] for part in call_message.parts]
    assert len(set(ids)) == 3
    results = [function_response("count", n=3), function_response("find", n=1), function_response("find", n=2)]
    result_message = store_blobs(client, session, {"role": "user", "parts": results}, format="gemini")
    assert [part.meta["tool_call_id"] for part in result_message.parts] == [ids[2], ids[0], ids[1]]


def test_a_result_without_a_call_is_stored_and_uses_no_call(client, session):
    def store_results(*parts):
        stored = store_blobs(client, session, {"role": "user", "parts": list(parts)}, format="gemini")
        return [part.meta.get("tool_call_id") for part in stored.parts]

    assert store_results(function_response("find")) == [None]
    store_blobs(client, session, {"role": "model", "parts": [function_call("find", "c1")]}, format="gemini")
    assert store_results(function_response("lose")) == [None]
    assert store_results(function_response("find", "c2")) == ["c2"]
    # The first result matches the call; no call is left for the second one.
    assert store_results(function_response("find", n=1), function_response("find", n=2)) == ["c1", None]
    assert store_results(function_response("find", n=1)) == [None]
    assert len(read_page(client, session, "acontext").ids) == 6


def test_concurrent_results_use_each_call_once(server, client, session):
    for number in range(12):
        store_blobs(client, session, {"role": "model", "parts": [function_call("find", f"c{number}")]}, format="gemini")

    async def steps(client):
        blob = {"role": "user", "parts": [function_response("find", n=1)]}
        messages = await asyncio.gather(
            *(client.sessions.store_message(session.id, blob=blob, format="gemini") for _ in range(12))
        )
        assert len({message.parts[0].meta["tool_call_id"] for message in messages}) == 12
        message = await client.sessions.store_message(session.id, blob=blob, format="gemini")
        assert "tool_call_id" not in message.parts[0].meta

    run_async(server, steps)


# ----- files -----


def test_an_image_is_returned_as_a_link_and_as_bytes(client, session):
    message = store_file(client, session, QUESTION, "image", file=FileUpload("red.png", PNG))
    text, image = message.parts
    sha256 = hashlib.sha256(PNG).hexdigest()
    assert (text.type, text.text, image.type, image.filename) == ("text", QUESTION["text"], "image", "red.png")
    assert (image.asset.sha256, image.asset.mime, image.asset.size_b) == (sha256, "image/png", len(PNG))
    assert image.asset.s3_key.startswith("assets/") and image.asset.s3_key.endswith(f"/{sha256}.png")

    page = read_page(client, session, "acontext")
    (item,) = page.items
    assert item["parts"] == [part.model_dump(exclude_none=True) for part in message.parts]
    assert list(page.public_urls) == [sha256]
    url = page.public_urls[sha256]
    assert datetime.fromisoformat(url.expire_at) > datetime.fromisoformat(message.created_at)
    download = open_link(url.url)
    assert (download.status_code, download.content, download.headers["content-type"]) == (200, PNG, "image/png")

    # A format that supports image URLs gets a link, the others get the bytes.
    (item,) = read_items(client, session, "openai")
    assert item["content"][0] == QUESTION
    link = item["content"][1]["image_url"]["url"]
    assert open_link(link).content == PNG
    assert read_items(client, session, "anthropic") == CONVERSATION["anthropic"][:1]
    assert read_items(client, session, "gemini") == CONVERSATION["gemini"][:1]


def test_signed_urls_can_be_omitted(client, session):
    store_file(client, session, QUESTION, "image", file=FileUpload("red.png", PNG))
    page = read_page(client, session, "acontext", with_asset_public_url=False)
    assert page.public_urls is None
    assert page.items[0]["parts"][1]["asset"]["sha256"] == hashlib.sha256(PNG).hexdigest()
    # The bytes of the image are returned instead.
    assert read_items(client, session, "openai", with_asset_public_url=False) == CONVERSATION["openai"][:1]
    assert read_items(client, session, "anthropic", with_asset_public_url=False) == CONVERSATION["anthropic"][:1]
    assert read_items(client, session, "gemini", with_asset_public_url=False) == CONVERSATION["gemini"][:1]


@pytest.mark.parametrize(
    "name, content, mime",
    [
        ("notes.md", b"# Notes\n\nBuy milk.\n", "text/markdown"),
        ("plain.txt", "Grüße\n".encode(), "text/plain"),
        ("data.json", b'{"a": 1}', "application/json"),
        ("table.csv", b"name,age\nalice,30\n", "text/csv"),
        ("report.pdf", b"%PDF-1.4\n%%EOF\n", "application/pdf"),
        ("raw.bin", bytes(range(256)), "application/octet-stream"),
        # The content determines the type, not the name.
        ("pixel.txt", PNG, "image/png"),
        ("größe 寿司.md", b"# Name\n", "text/markdown"),
        ("no extension", b"words", "text/plain"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_a_file_is_preserved(client, session, name, content, mime):
    # The server ignores the content type that the client sends.
    message = store_file(client, session, "file", file=FileUpload(name, content, "image/gif"))
    (part,) = message.parts
    assert part.filename == name
    assert (part.asset.mime.split(";")[0], part.asset.size_b) == (mime, len(content))
    page = read_page(client, session, "acontext")
    download = open_link(page.public_urls[part.asset.sha256].url)
    assert download.content == content
    assert download.headers["content-type"] == part.asset.mime
    downloaded = client.request_binary(
        "GET", f"/session/{session.id}/asset/download", params={"s3_key": part.asset.s3_key}
    )
    assert downloaded == content
    # Gemini gets the files of the types that it supports as inline data.
    if mime not in ("application/json", "application/octet-stream"):
        (item,) = read_items(client, session, "gemini")
        assert item["parts"] == [{"inlineData": {"mimeType": mime, "data": base64.b64encode(content).decode()}}]
    # The formats contain the bytes, the text or a link.
    for format in ("openai", "anthropic", "gemini"):
        dump = json.dumps(read_items(client, session, format), ensure_ascii=False)
        text = json.dumps(content.decode(errors="replace"), ensure_ascii=False).strip('"')
        assert base64.b64encode(content).decode() in dump or "/api/v1/material/" in dump or text in dump


def test_an_empty_file_is_accepted(client, session):
    message = store_file(client, session, "file", file=FileUpload("empty.txt", b""))
    assert message.parts[0].asset.size_b == 0
    page = read_page(client, session, "acontext")
    assert open_link(page.public_urls[message.parts[0].asset.sha256].url).content == b""
    for format in FORMATS:
        assert len(read_items(client, session, format)) == 1


def test_a_file_may_be_a_stream_or_a_tuple(client, session):
    store_file(client, session, "file", file=FileUpload("stream.txt", io.BytesIO(b"from a stream"), "text/plain"))
    store_file(client, session, "file", file=("tuple.txt", b"from a tuple"))
    store_file(client, session, "file", file=("typed.txt", b"from a typed tuple", "text/plain"))
    page = read_page(client, session, "acontext")
    assets = [item["parts"][0]["asset"]["sha256"] for item in page.items]
    contents = [open_link(page.public_urls[sha256].url).content for sha256 in assets]
    assert contents == [b"from a stream", b"from a tuple", b"from a typed tuple"]


def test_a_message_of_an_sdk_helper_may_refer_to_the_file(client, session):
    blob = build_acontext_message(
        role="user", parts=["see", MessagePart(type="image", file_field="a custom field", meta={"alt": "red"})]
    )
    message = client.sessions.store_message(
        session.id, blob=blob, format="acontext", file_field="a custom field", file=("red.png", PNG)
    )
    assert message.parts[1].asset.mime == "image/png"
    assert message.parts[1].meta == {"alt": "red"}


def test_several_parts_may_refer_to_one_file(client, session):
    """Equal contents have one link, independent of their names."""
    message = store_file(client, session, "file", "image", file=FileUpload("first.png", PNG))
    assert [part.asset for part in message.parts] == [message.parts[0].asset] * 2
    second = store_file(client, session, "image", file=FileUpload("second.PNG", PNG))
    assert second.parts[0].filename == "second.PNG"
    assert second.parts[0].asset.sha256 == message.parts[0].asset.sha256
    page = read_page(client, session, "acontext")
    assert list(page.public_urls) == [message.parts[0].asset.sha256]
    names = [[part["filename"] for part in item["parts"]] for item in page.items]
    assert names == [["first.png", "first.png"], ["second.PNG"]]


def test_a_signed_url_stays_the_same_within_an_hour(client, session):
    """A prompt that contains the URL thus stays the same. The URL may change if an hour ends between two requests."""
    store_file(client, session, "image", file=FileUpload("red.png", PNG))

    def read_urls():
        urls = read_page(client, session, "acontext").public_urls
        return json.dumps([read_items(client, session), {sha256: url.url for sha256, url in urls.items()}])

    assert read_urls() == read_urls() or read_urls() == read_urls()


def test_a_file_of_exactly_the_limit_is_stored(client, session):
    content = b"\0" * (16 << 20)
    message = store_file(client, session, "file", file=FileUpload("big.bin", content))
    assert message.parts[0].asset.size_b == len(content)
    url = read_page(client, session, "acontext").public_urls[message.parts[0].asset.sha256].url
    assert open_link(url).content == content


def test_a_file_over_the_limit_is_413_and_stores_nothing(client, session):
    with raises_error(413, "16.00MB"):
        store_file(client, session, "file", file=FileUpload("big.bin", b"\0" * ((16 << 20) + 1)))
    assert read_page(client, session).ids == []


def test_a_part_that_refers_to_a_missing_file_is_rejected(client, session):
    with raises_error(400, "missing file nothing"):
        store_blobs(
            client, session, {"role": "user", "parts": [{"type": "file", "file_field": "nothing"}]}, format="acontext"
        )
    with raises_error(400, "missing file another"):
        blob = {"role": "user", "parts": [{"type": "file", "file_field": "another"}]}
        client.sessions.store_message(
            session.id, blob=blob, format="acontext", file_field="file", file=("a.txt", b"a")
        )
    assert read_page(client, session).ids == []


# ----- user metadata -----


def test_user_metadata_is_stored_with_the_message(client, session):
    meta = {"text": "ü\n\"'", "n": [1, -2.5, 1e-7, 2**53 + 1, 10**30], "deep": {"a": {"b": [None, True]}}, "": ""}
    for format in FORMATS:
        message = store_blobs(client, session, CONVERSATION[format][3], format=format, meta=meta)
        assert message.meta == meta
    without_meta = store_text(client, session, "without")
    assert without_meta.meta == {}
    assert store_text(client, session, "empty", meta={}).meta == {}
    for format in FORMATS:
        assert read_page(client, session, format).metas == [meta] * 4 + [{}] * 2
    inner = [item["meta"] for item in read_items(client, session, "acontext")]
    assert inner[:4] == [{"source_format": format, "__user_meta__": meta} for format in FORMATS]
    assert inner[4:] == [{"source_format": "openai"}] * 2


def test_metadata_in_a_message_is_not_user_metadata(client, session):
    blob = {"role": "user", "parts": [{"type": "text", "text": "hi"}], "meta": {"origin": "import", "name": "eve"}}
    message = store_blobs(client, session, blob, format="acontext", meta={"key": "value"})
    assert message.meta == {"key": "value"}
    (item,) = read_items(client, session, "acontext")
    assert item["meta"] == {
        "origin": "import",
        "name": "eve",
        "source_format": "acontext",
        "__user_meta__": {"key": "value"},
    }
    assert read_items(client, session) == [{"role": "user", "content": "hi", "name": "eve"}]


def test_user_metadata_is_patched_key_by_key(client, session):
    meta = {"keep": 1, "change": "old", "drop": True, "nested": {"a": 1, "b": 2}}
    message = store_text(client, session, "patched", meta=meta)
    other = store_text(client, session, "another", meta={"other": True})
    patch = client.sessions.patch_message_meta

    changed = patch(session.id, message.id, meta={"change": "new", "drop": None, "nested": {"a": 3}, "add": [None]})
    assert changed == {"keep": 1, "change": "new", "nested": {"a": 3}, "add": [None]}
    assert read_page(client, session).metas == [changed, {"other": True}]
    assert patch(session.id, message.id, meta={}) == changed
    assert patch(session.id, message.id, meta={"never set": None}) == changed
    assert patch(session.id, message.id, meta=dict.fromkeys(changed)) == {}
    assert patch(session.id, message.id, meta={"big": 9223372036854775807123}) == {"big": 9223372036854775807123}
    assert patch(session.id, other.id, meta={"more": 1}) == {"other": True, "more": 1}

    item, _ = read_items(client, session, "acontext")
    assert item["meta"] == {"source_format": "openai", "__user_meta__": {"big": 9223372036854775807123}}
    assert item["created_at"] == message.created_at
    assert datetime.fromisoformat(item["updated_at"]) > datetime.fromisoformat(message.updated_at)
    assert [item["content"] for item in read_items(client, session)] == ["patched", "another"]


def test_concurrent_patches_are_all_applied(server, client, session):
    message = store_text(client, session, "patched by many")

    async def steps(client):
        patches = [
            client.sessions.patch_message_meta(session.id, message.id, meta={f"key {number}": number})
            for number in range(24)
        ]
        for number, patched in enumerate(await asyncio.gather(*patches)):
            assert patched[f"key {number}"] == number

    run_async(server, steps)
    assert read_page(client, session).metas == [{f"key {number}": number for number in range(24)}]


def test_patching_an_unknown_message_is_an_error(client, other_client, session):
    message = store_text(client, session, "hello", meta={"unchanged": True})
    other_session = client.sessions.create()
    patch = client.sessions.patch_message_meta
    for session_id, message_id in ((session.id, UNKNOWN_ID), (other_session.id, message.id)):
        with raises_error(404, "message not found"):
            patch(session_id, message_id, meta={"unchanged": False})
    for project, session_id in ((client, UNKNOWN_ID), (other_client, session.id)):
        with raises_error(404, "session not found"):
            project.sessions.patch_message_meta(session_id, message.id, meta={"unchanged": False})
    with raises_error(400, "message_id"):
        patch(session.id, "not-an-id", meta={"unchanged": False})
    assert read_page(client, session).metas == [{"unchanged": True}]


def test_user_metadata_has_a_size_limit(client, session):
    # Exactly 64 KiB, including the braces, the quotes and the key.
    largest = {"k": "x" * (64 * 1024 - len('{"k":""}'))}
    message = store_text(client, session, "large", meta=largest)
    assert message.meta == largest
    with raises_error(400, "meta size exceeds 64KB limit"):
        store_text(client, session, "too large", meta={"k": largest["k"] + "x"})
    with raises_error(400, "meta size exceeds 64KB limit"):
        client.sessions.patch_message_meta(session.id, message.id, meta={"k": largest["k"] + "x"})
    assert read_page(client, session).metas == [largest]


# ----- pages -----


def read_pages(client, session, limit, **order):
    """Returns the ids on each page, in the order of the pages."""
    pages, cursor = [], None
    while True:
        page = read_page(client, session, limit=limit, cursor=cursor, **order)
        pages.append(page.ids)
        assert page.edit_at_message_id == page.ids[-1]
        if not page.has_more:
            return pages
        cursor = page.next_cursor


def test_paging_returns_every_message_once_in_both_directions(client, session):
    ids = [store_text(client, session, f"t{number}", meta={"n": number}).id for number in range(1, 11)]
    assert read_pages(client, session, 3) == read_pages(client, session, 3, time_desc=False)
    assert read_pages(client, session, 3) == [ids[:3], ids[3:6], ids[6:9], ids[9:]]
    # The newest page comes first, and the messages of each page are ordered from the oldest to the newest.
    assert read_pages(client, session, 3, time_desc=True) == [ids[7:], ids[4:7], ids[1:4], ids[:1]]
    for order in ({}, {"time_desc": True}):
        assert read_pages(client, session, 10, **order) == read_pages(client, session, 200, **order) == [ids]
        for limit in (1, 7):
            pages = read_pages(client, session, limit, **order)
            assert sorted(sum(pages, [])) == sorted(ids)
    page = read_page(client, session, limit=2, time_desc=True)
    assert page.items == [{"role": "user", "content": "t9"}, {"role": "user", "content": "t10"}]
    assert page.metas == [{"n": 9}, {"n": 10}]


def test_paging_is_stable_while_messages_are_stored(client, session):
    ids = [store_text(client, session, f"t{number}").id for number in range(4)]
    newest = read_page(client, session, limit=2, time_desc=True)
    oldest = read_page(client, session, limit=2)
    late = store_text(client, session, "late").id
    assert read_page(client, session, limit=2, time_desc=True, cursor=newest.next_cursor).ids == ids[:2]
    assert read_page(client, session, limit=3, cursor=oldest.next_cursor).ids == ids[2:] + [late]


def test_without_a_limit_all_messages_are_returned(client, session):
    ids = [store_text(client, session, f"t{number}").id for number in range(205)]
    for options in ({}, {"limit": 0}, {"time_desc": True}, {"cursor": "never read"}, {"limit": 0, "cursor": "garbage"}):
        page = read_page(client, session, **options)
        assert page.ids == ids and not page.has_more
    assert read_page(client, session, limit=200).ids == ids[:200]


def test_an_empty_session_has_an_empty_page(client, session):
    for options in ({}, {"limit": 5}, {"limit": 5, "time_desc": True}, {"with_events": True}):
        for format in FORMATS:
            page = read_page(client, session, format, **options)
            assert (page.items, page.this_time_tokens, page.has_more) == ([], 0, False)
    assert client.sessions.get_token_counts(session.id).total_tokens == 0


@pytest.mark.parametrize(
    "name, value",
    [("limit", -1), ("limit", 201), ("limit", 2**63), ("cursor", "garbage!"), ("cursor", "MTIzfDQ1Ng")],
)
def test_the_error_names_an_invalid_paging_parameter(client, session, name, value):
    with raises_error(400, name):
        client.sessions.get_messages(session.id, **({"limit": 5} | {name: value}))


def test_each_message_refers_to_the_previous_one(client, session):
    messages = [store_blobs(client, session, CONVERSATION[format][0], format=format) for format in FORMATS * 2]
    messages.append(store_file(client, session, "image", file=FileUpload("red.png", PNG)))
    messages.append(store_text(client, session, "last"))
    assert [message.parent_id for message in messages] == [None] + [message.id for message in messages[:-1]]
    times = [datetime.fromisoformat(message.created_at) for message in messages]
    assert all(earlier < later for earlier, later in zip(times, times[1:]))
    listed = read_items(client, session, "acontext")
    assert [item["parent_id"] for item in listed] == [message.parent_id for message in messages]
    assert [item["created_at"] for item in listed] == [message.created_at for message in messages]


def test_a_list_without_events_may_be_read_with_events(client, session):
    message = store_text(client, session, "hello")
    page = client.sessions.get_messages(
        session.id, with_events=True, edit_strategies=[], pin_editing_strategies_at_message=message.id
    )
    assert (page.ids, page.events or []) == ([message.id], [])


# ----- tokens -----


def test_tokens_are_counted_per_message(client, session):
    counts = {"hi": 2, "t1": 3, "only one": 3, "": 0}
    for text, count in counts.items():
        store_text(client, session, text)
        assert read_page(client, session, limit=1, time_desc=True).this_time_tokens == count, text
    total = sum(counts.values())
    assert client.sessions.get_token_counts(session.id).total_tokens == total
    assert read_page(client, session).this_time_tokens == total
    # The count of a page includes only its own messages.
    assert read_page(client, session, limit=2).this_time_tokens == counts["hi"] + counts["t1"]
    assert read_page(client, session, limit=2, time_desc=True).this_time_tokens == counts["only one"]


def test_images_and_files_have_no_tokens(client, session):
    store_file(client, session, "image", file=FileUpload("red.png", PNG))
    store_file(client, session, "file", file=FileUpload("words.txt", b"words " * 1000))
    blob = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG_DATA_URL}}]}
    store_blobs(client, session, blob)
    for format in FORMATS:
        assert read_page(client, session, format).this_time_tokens == 0
    assert client.sessions.get_token_counts(session.id).total_tokens == 0


def test_calls_and_results_have_tokens(client, session):
    store_blobs(client, session, CONVERSATION["openai"][1])
    with_call = client.sessions.get_token_counts(session.id).total_tokens
    store_blobs(client, session, {"role": "assistant", "content": "Let me measure."})
    without_call = client.sessions.get_token_counts(session.id).total_tokens - with_call
    assert with_call > without_call > 0
    store_blobs(client, session, CONVERSATION["openai"][2])
    assert client.sessions.get_token_counts(session.id).total_tokens > with_call + without_call


# ----- concurrent requests -----


def test_many_threads_store_messages_in_one_session(server, client, session):
    """Each message is stored once. No two messages have the same parent, and no two have the same time."""
    threads, count = 16, 20
    barrier = threading.Barrier(threads)

    def store_texts(thread):
        with server.client() as thread_client:
            barrier.wait()
            return [
                store_text(thread_client, session, f"{thread} {number}", meta={"thread": thread})
                for number in range(count)
            ]

    with ThreadPoolExecutor(threads) as pool:
        stored = [message for messages in pool.map(store_texts, range(threads)) for message in messages]
    listed = read_items(client, session, "acontext")
    assert {item["id"] for item in listed} == {message.id for message in stored}
    assert len(listed) == threads * count
    assert [item["parent_id"] for item in listed] == [None] + [item["id"] for item in listed[:-1]]
    times = [datetime.fromisoformat(item["created_at"]) for item in listed]
    assert all(earlier < later for earlier, later in zip(times, times[1:]))
    # The list equals the responses, and the messages of each thread are in their order.
    stored_by_id = {message.id: message for message in stored}
    for item in listed:
        assert stored_by_id[item["id"]].parent_id == item["parent_id"]
        assert stored_by_id[item["id"]].created_at == item["created_at"]
    for thread in range(threads):
        texts = [item["parts"][0]["text"] for item in listed if item["meta"]["__user_meta__"]["thread"] == thread]
        assert texts == [f"{thread} {number}" for number in range(count)]
    assert sum(read_pages(client, session, 50), []) == [item["id"] for item in listed]


def test_messages_of_many_sizes_are_stored_concurrently(server, client, session):
    """Short messages, long messages and files are stored in different ways, but in the same chain."""

    async def steps(client):
        def store_one(number):
            text = f"{number} " * (20_000 if number % 3 == 1 else 1)
            if number % 3 == 2:
                blob = {"role": "user", "parts": [{"type": "file", "file_field": "f"}]}
                return client.sessions.store_message(
                    session.id, blob=blob, format="acontext", file_field="f", file=("a.txt", text.encode())
                )
            return client.sessions.store_message(session.id, blob={"role": "user", "content": text})

        stored = await asyncio.gather(*(store_one(number) for number in range(45)))
        listed = (await client.sessions.get_messages(session.id, format="acontext")).items
        assert sorted(item["id"] for item in listed) == sorted(message.id for message in stored)
        assert [item["parent_id"] for item in listed] == [None] + [item["id"] for item in listed[:-1]]

    run_async(server, steps)


def test_deleting_a_session_during_requests_leaves_no_messages(server, client):
    """Each message is either stored and deleted with the session, or rejected. No request fails in another way."""
    session = client.sessions.create()

    async def steps(client):
        store, blob = client.sessions.store_message, {"role": "user", "content": "late?"}
        await store(session.id, blob=blob)
        stores = [store(session.id, blob=blob) for _ in range(20)]
        delete = client.sessions.delete(session.id)
        results = await asyncio.gather(*stores[:10], delete, *stores[10:], return_exceptions=True)
        errors = [result for result in results if isinstance(result, Exception)]
        assert [(error.status_code, error.message) for error in errors] == [(404, "session not found")] * len(errors)

    run_async(server, steps)
    with raises_error(404, "session not found"):
        client.sessions.get_messages(session.id)
    assert server.psql(f"select count(*) from messages where session_id = '{session.id}'") == "0"


# ----- the asynchronous client -----


def test_async_messages(server):
    async def steps(client):
        sessions = client.sessions
        session = await sessions.create()
        for format in FORMATS:
            for blob in CONVERSATION[format][3:]:
                await sessions.store_message(session.id, blob=blob, format=format, meta={"format": format})
        message = await sessions.store_message(
            session.id,
            blob={"role": "user", "parts": [{"type": "image", "file_field": "f"}]},
            format="acontext",
            file_field="f",
            file=FileUpload("red.png", PNG),
        )
        assert message.parts[0].asset.mime == "image/png"
        for format in FORMATS:
            page = await sessions.get_messages(session.id, format=format)
            assert len(page.items) == len(page.ids) == 5
            assert page.metas == [{"format": format} for format in FORMATS] + [{}]
        page = await sessions.get_messages(session.id, format="acontext", limit=1, time_desc=True)
        assert (page.ids, page.has_more) == ([message.id], True)
        assert open_link(page.public_urls[message.parts[0].asset.sha256].url).content == PNG
        assert await sessions.patch_message_meta(session.id, message.id, meta={"late": True}) == {"late": True}
        page = await sessions.get_messages(session.id)
        assert page.metas[-1] == {"late": True}
        assert (await sessions.get_token_counts(session.id)).total_tokens == page.this_time_tokens > 0

    run_async(server, steps)


# ----- the storage of the Claude Agent SDK -----


def agent_messages(session_id):
    """Returns the messages that the agent's SDK produces in one turn."""
    return [
        {"subtype": "init", "data": {"session_id": session_id, "tools": []}},
        {"content": "What is in a.txt?", "parent_tool_use_id": None},
        {
            "content": [
                {"thinking": "I have to read it.", "signature": SIGNATURE},
                {"text": "Let me look."},
                {"text": ""},
                {"id": "toolu_1", "name": "Read", "input": {"path": "a.txt"}},
            ],
            "model": "some-model",
        },
        {"content": [{"tool_use_id": "toolu_1", "content": [{"type": "text", "text": "words"}], "is_error": None}]},
        {"content": [{"tool_use_id": "toolu_2", "content": "no such file", "is_error": True}]},
        {"content": [{"text": "It says: words."}], "model": "some-model", "error": "rate_limit"},
        {"subtype": "success", "session_id": session_id, "duration_ms": 5},
    ]


AGENT_CONVERSATION = [
    {"role": "user", "content": [{"type": "text", "text": "What is in a.txt?"}]},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "I have to read it.", "signature": SIGNATURE},
            {"type": "text", "text": "Let me look."},
            {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"path": "a.txt"}},
        ],
    },
    {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "words"}]}],
    },
    {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": "toolu_2", "content": "no such file", "is_error": True}],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "It says: words."}]},
]


def normalize_tool_results(blobs):
    """Returns the messages with `is_error` in every tool result, and with the text of a tool result as a list."""
    blobs = json.loads(json.dumps(blobs))
    for block in (block for blob in blobs for block in blob["content"] if block["type"] == "tool_result"):
        block.setdefault("is_error", False)
        if isinstance(block["content"], str):
            block["content"] = [{"type": "text", "text": block["content"]}]
    return blobs


def collect_errors(errors):
    """Returns an error handler that collects the errors, which the storage would otherwise ignore."""
    return lambda error, blob: errors.append(error)


def test_an_agents_turns_are_stored_under_its_session_id(server, client):
    session_id, user, errors = str(uuid.uuid4()), f"agent-{uuid.uuid4()}", []

    async def steps(client):
        storage = ClaudeAgentStorage(client, user=user, include_thinking=True, on_error=collect_errors(errors))
        for message in agent_messages(session_id):
            await storage.save_message(message)
        assert storage.session_id == session_id

    run_async(server, steps)
    assert errors == []
    assert [session.id for session in client.sessions.list(user=user).items] == [session_id]
    page = client.sessions.get_messages(session_id, format="anthropic")
    assert normalize_tool_results(page.items) == normalize_tool_results(AGENT_CONVERSATION)
    assert page.metas == [
        {},
        {"model": "some-model", "has_thinking": True},
        {},
        {},
        {"model": "some-model", "error": "rate_limit"},
    ]
    # The messages can also be read in another format.
    assert [item["role"] for item in client.sessions.get_messages(session_id).items] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]


def test_an_agent_continues_its_session(server, client):
    session_id, errors = str(uuid.uuid4()), []

    async def steps(client):
        for _ in range(2):
            storage = ClaudeAgentStorage(client, on_error=collect_errors(errors))
            for message in agent_messages(session_id):
                await storage.save_message(message)

    run_async(server, steps)
    assert errors == []
    assert len(client.sessions.get_messages(session_id).ids) == 2 * len(AGENT_CONVERSATION)


def test_an_agent_without_a_session_id_gets_one(server, client):
    errors = []

    async def steps(client):
        storage = ClaudeAgentStorage(client, on_error=collect_errors(errors))
        for message in agent_messages("no id at all"):
            await storage.save_message(message)
        return storage.session_id

    session_id = run_async(server, steps)
    assert errors == []
    # Thinking is omitted unless the client requests it.
    items = client.sessions.get_messages(session_id, format="anthropic").items
    assert normalize_tool_results(items[:1]) == normalize_tool_results(AGENT_CONVERSATION[:1])
    assert "thinking" not in json.dumps(items)


def test_an_agent_with_a_session_of_another_project_gets_errors(server, other_client):
    """The storage treats the conflict as its existing session, and then its messages are rejected."""
    other_session, errors = other_client.sessions.create(), []

    async def steps(client):
        storage = ClaudeAgentStorage(client, session_id=other_session.id, on_error=collect_errors(errors))
        for message in agent_messages(other_session.id):
            await storage.save_message(message)

    run_async(server, steps)
    expected = [(404, "session not found")] * len(AGENT_CONVERSATION)
    assert [(error.status_code, error.message) for error in errors] == expected
    assert other_client.sessions.get_messages(other_session.id).ids == []
