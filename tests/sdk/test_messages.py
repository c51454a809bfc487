"""Messages, as users of the SDK work with them: in the formats of several providers, with files, meta and pages."""

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
from support import asynchronously, open_link, refused, say

FORMATS = ["openai", "anthropic", "gemini", "acontext"]
NOBODYS = "00000000-0000-4000-8000-000000000000"
# The smallest PNG: one pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010804000000b51c0c02"
    "0000000b4944415478da6364f80f00010501012718e3660000000049454e44ae426082"
)
PICTURE = base64.b64encode(PNG).decode()
PICTURE_URL = f"data:image/png;base64,{PICTURE}"
SIGNATURE = base64.b64encode(b"signed by the model").decode()


@pytest.fixture
def session(client):
    return client.sessions.create()


def store(client, session, *blobs, format="openai", **how):
    """Stores messages: what the server says about the last one."""
    for blob in blobs:
        message = client.sessions.store_message(session.id, blob=blob, format=format, **how)
    return message


def read(client, session, format="openai", **how):
    """Reads messages and checks what holds for every list of them."""
    got = client.sessions.get_messages(session.id, format=format, **how)
    assert len(got.items) == len(got.ids) == len(got.metas)
    assert got.has_more == bool(got.next_cursor)
    assert got.edit_at_message_id == (got.ids[-1] if got.ids else None)
    assert got.public_urls is None or format == "acontext"
    if format == "acontext":
        assert got.ids == [item["id"] for item in got.items]
    return got


def items(client, session, format="openai", **how):
    return read(client, session, format, **how).items


def parts(client, session):
    return [item["parts"] for item in items(client, session, "acontext")]


def send(client, session, *parts, file, field="file", **how):
    """Stores a message in the format that carries files. Parts that are types are the file."""
    parts = [{"type": part, "file_field": field} if isinstance(part, str) else part for part in parts]
    return client.sessions.store_message(
        session.id, blob={"role": "user", "parts": parts}, format="acontext", file_field=field, file=file, **how
    )


# ----- one conversation in the words of each provider -----


RESULT = '{"rgb":[255,0,0]}'
QUESTION = {"type": "text", "text": "What colour is this?"}
TALK = {
    # It has no word for thinking.
    "openai": [
        {
            "role": "user",
            "content": [QUESTION, {"type": "image_url", "image_url": {"url": PICTURE_URL}}],
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
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}},
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
            "parts": [{"text": "What colour is this?"}, {"inlineData": {"mimeType": "image/png", "data": PICTURE}}],
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
        {"role": "user", "parts": [QUESTION, {"type": "image", "meta": {"url": PICTURE_URL}}]},
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
# What the parts of our own format keep of the provider's, where it differs.
IMAGE_META = {
    "openai": {"url": PICTURE_URL, "detail": ""},
    "acontext": {"url": PICTURE_URL},
    "anthropic": {"type": "base64", "media_type": "image/png", "data": PICTURE},
    "gemini": {"type": "base64", "media_type": "image/png", "data": PICTURE},
}
CALL_META = {
    "openai": {"type": "function"},
    "anthropic": {"type": "tool_use"},
    "gemini": {"type": "function"},
    "acontext": {},
}
RESULT_META = {"openai": {}, "anthropic": {"is_error": False}, "gemini": {"name": "measure"}, "acontext": {}}
THINKING = {"anthropic", "gemini", "acontext"}


def expected(stored, shown):
    """The conversation as it was stored in one format, read in another."""
    # A copy to be changed.
    talk = json.loads(json.dumps(TALK[shown]))
    answer = talk[1]
    if shown == "openai" and stored in THINKING:
        # What has no word of its own is told as text.
        answer["content"] = [{"type": "text", "text": "It is one pixel."}, {"type": "text", "text": "Let me measure."}]
    if shown != "openai" and stored not in THINKING:
        del answer["content" if shown == "anthropic" else "parts"][0]
    if shown == "acontext":
        talk[0]["parts"][1]["meta"] = IMAGE_META[stored]
        answer["parts"][-1]["meta"] |= CALL_META[stored]
        talk[2]["parts"][0]["meta"] |= RESULT_META[stored]
    return talk


@pytest.mark.parametrize("shown", FORMATS)
@pytest.mark.parametrize("stored", FORMATS)
def test_a_conversation_stored_in_one_format_is_read_in_each(client, session, stored, shown):
    messages = [store(client, session, blob, format=stored) for blob in TALK[stored]]
    got = read(client, session, shown)
    found = got.items
    if shown == "acontext":
        assert all(item["meta"]["source_format"] == stored for item in found)
        found = [{"role": item["role"], "parts": item["parts"]} for item in found]
    assert found == expected(stored, shown)
    assert got.ids == [message.id for message in messages]
    assert [message.role for message in messages] == ["user", "assistant", "user", "assistant"]
    # Tokens are those of the conversation, not of the words that tell it.
    assert got.this_time_tokens == client.sessions.get_token_counts(session.id).total_tokens > 20


@pytest.mark.parametrize("format", FORMATS)
def test_what_a_store_answers_is_what_the_list_shows(client, session, format):
    stored = [store(client, session, blob, format=format, meta={"n": n}) for n, blob in enumerate(TALK[format])]
    shown = items(client, session, "acontext")
    for message, item in zip(stored, shown, strict=True):
        said = message.model_dump(exclude_none=True)
        assert said.pop("meta") == item["meta"]["__user_meta__"]
        assert said == {key: value for key, value in item.items() if value is not None and key != "meta"}


def test_openai_is_the_format_unless_told_otherwise(client, session):
    client.sessions.store_message(session.id, blob=TALK["openai"][3])
    assert client.sessions.get_messages(session.id).items == [TALK["openai"][3]]


def test_formats_may_be_mixed_in_one_session(client, session):
    for format in FORMATS:
        store(client, session, TALK[format][3], format=format)
    for format in ("openai", "anthropic", "gemini"):
        assert items(client, session, format) == [TALK[format][3]] * 4


# ----- what the SDKs send -----


def test_a_message_of_the_openai_sdk_is_taken_with_all_its_nulls(client, session):
    said = ChatCompletionMessage.model_validate(
        {
            "role": "assistant",
            "content": "Let me look.",
            "refusal": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}
            ],
        }
    )
    assert None in said.model_dump().values()
    store(client, session, said)
    (shown,) = items(client, session)
    assert shown == {key: value for key, value in said.model_dump().items() if value is not None}
    assert ChatCompletionMessage.model_validate(shown) == said


def test_a_message_of_the_anthropic_sdk_is_taken_with_all_its_nulls(client, session):
    said = AnthropicMessage.model_validate(
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
    store(client, session, said, format="anthropic")
    (shown,) = items(client, session, "anthropic")
    # What can be sent again: the provider refuses the id, the model and the usage in a request.
    assert shown == {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": SIGNATURE},
            {"type": "text", "text": "Let me look."},
            {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "it"}},
        ],
    }


def test_nulls_of_a_dump_count_as_absent(client, session):
    store(
        client,
        session,
        {"role": "assistant", "content": "a", "refusal": None, "tool_calls": None, "audio": None},
        {"role": "user", "content": [{"type": "text", "text": "b", "cache_control": None}], "name": None},
    )
    store(
        client,
        session,
        {"role": "user", "meta": None, "parts": [{"type": "text", "text": "c", "meta": None, "file_field": None}]},
        format="acontext",
    )
    assert parts(client, session) == [[{"type": "text", "text": text}] for text in "abc"]


def test_messages_may_be_put_together_with_the_helpers_of_the_sdk(client, session):
    built = build_acontext_message(
        role="user",
        parts=[
            "words alone",
            MessagePart(type="text", text="with meta", meta={"lang": "en"}),
            {"type": "data", "meta": {"data_type": "chart", "values": [1, 2.5, None]}},
        ],
        meta={"origin": "helper"},
    )
    store(client, session, built, format="acontext")
    message = AcontextMessage(role="assistant", parts=[MessagePart(type="text", text="by hand")])
    store(client, session, dataclasses.asdict(message), format="acontext")
    first, second = items(client, session, "acontext")
    assert first["parts"] == [
        {"type": "text", "text": "words alone"},
        {"type": "text", "text": "with meta", "meta": {"lang": "en"}},
        {"type": "data", "meta": {"data_type": "chart", "values": [1, 2.5, None]}},
    ]
    assert first["meta"] == {"origin": "helper", "source_format": "acontext"}
    assert second["parts"] == [{"type": "text", "text": "by hand"}]


def test_every_kind_of_part_comes_back(client, session):
    said = [
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
    stored = store(client, session, {"role": "assistant", "parts": said}, format="acontext")
    assert [part.model_dump(exclude_none=True) for part in stored.parts] == said
    assert parts(client, session) == [said]
    for format in ("openai", "anthropic", "gemini"):
        assert len(items(client, session, format)) >= 1


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
        "ein Wort und noch eines " * 40_000,
    ],
    ids=["empty", "blank", "unicode", "quotes", "special token", "long run", "long text"],
)
def test_text_comes_back_as_it_went_in(client, session, text):
    message = say(client, session, text)
    assert (message.parts[0].text or "") == text
    assert items(client, session) == [{"role": "user", "content": text}]
    assert bool(text) == bool(read(client, session).this_time_tokens)


@pytest.mark.parametrize("format", ["openai", "anthropic"])
def test_text_in_a_list_of_one_is_text(client, session, format):
    blob = {"role": "user", "content": [{"type": "text", "text": "alone"}]}
    store(client, session, blob, format=format)
    (shown,) = items(client, session, format)
    assert shown in (blob, {"role": "user", "content": "alone"})
    store(client, session, {"role": "user", "content": "alone"}, format=format)
    assert items(client, session, format)[1]["content"] in ("alone", [{"type": "text", "text": "alone"}])
    assert parts(client, session) == [[{"type": "text", "text": "alone"}]] * 2


def test_system_messages_keep_their_role_where_there_is_one(client, session):
    said = [
        {"role": "system", "content": "Be brief.", "name": "policy"},
        {"role": "developer", "content": "Use metric units."},
        {"role": "user", "content": "How far?", "name": "ada"},
        {"role": "assistant", "content": "Far.", "name": "bot"},
    ]
    store(client, session, *said)
    assert items(client, session) == said
    assert [item["role"] for item in items(client, session, "acontext")] == ["user", "user", "user", "assistant"]
    assert [item["role"] for item in items(client, session, "anthropic")] == ["user", "user", "user", "assistant"]
    assert [item["role"] for item in items(client, session, "gemini")] == ["user", "user", "user", "model"]


def test_a_long_name_is_kept(client, session):
    said = {"role": "user", "content": "hello", "name": "n" * 10_000}
    store(client, session, said)
    assert items(client, session) == [said]


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
def test_a_message_that_says_nothing_keeps_its_place(client, session, format, blob):
    say(client, session, "before", meta={"n": 1})
    assert store(client, session, blob, format=format, meta={"n": 2}).parts == []
    say(client, session, "after", meta={"n": 3})
    for shown in FORMATS:
        got = read(client, session, shown)
        assert len(got.items) == 3
        assert got.metas == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert items(client, session)[1].get("content") in (None, [], "")


# ----- what only one provider knows -----


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
def test_what_only_one_provider_knows_comes_back_to_it(client, session, format, blob):
    store(client, session, blob, format=format)
    assert items(client, session, format) == [blob]
    # Nor does it stand in the way of the others.
    for other in FORMATS:
        assert len(items(client, session, other)) == 1


def test_a_picture_elsewhere_is_passed_on_and_not_fetched(client, session):
    url = "https://images.invalid/cat.png"
    store(client, session, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]})
    (shown,) = items(client, session, "anthropic")
    assert shown["content"] == [{"type": "image", "source": {"type": "url", "url": url}}]
    (shown,) = items(client, session, "gemini")
    assert url in json.dumps(shown)


def test_a_document_goes_from_one_provider_to_the_other(client, session):
    data = base64.b64encode(b"%PDF-1.4").decode()
    source = {"type": "base64", "media_type": "application/pdf", "data": data}
    store(client, session, {"role": "user", "content": [{"type": "document", "source": source}]}, format="anthropic")
    file = {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{data}"}
    store(client, session, {"role": "user", "content": [{"type": "file", "file": file}]})
    inline = {"inlineData": {"mimeType": "application/pdf", "data": data}}
    assert [item["parts"] for item in items(client, session, "gemini")] == [[inline], [inline]]
    for item in items(client, session, "anthropic"):
        (block,) = item["content"]
        assert (block["type"], block["source"]) == ("document", source)
    for item in items(client, session, "openai"):
        (part,) = item["content"]
        assert part["file"]["file_data"] == file["file_data"]


# ----- tool calls -----


def call(call_id, name, arguments):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_parallel_calls_and_their_results(client, session):
    said = [
        {"role": "assistant", "tool_calls": [call("c1", "weather", '{"city":"Paris"}'), call("c2", "time", "{}")]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "tool", "tool_call_id": "c2", "content": "12:30"},
    ]
    store(client, session, {**said[0], "content": None}, *said[1:])
    assert items(client, session) == said
    assert items(client, session, "anthropic") == [
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Paris"}},
                {"type": "tool_use", "id": "c2", "name": "time", "input": {}},
            ],
        },
        *(
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": call_id,
                        "is_error": False,
                        "content": [{"type": "text", "text": text}],
                    }
                ],
            }
            for call_id, text in (("c1", "rain"), ("c2", "12:30"))
        ),
    ]
    calls, *results = items(client, session, "gemini")
    assert calls["parts"][0] == {"functionCall": {"id": "c1", "name": "weather", "args": {"city": "Paris"}}}
    assert [part["functionCall"]["name"] for part in calls["parts"]] == ["weather", "time"]
    assert [result["parts"][0]["functionResponse"] for result in results] == [
        {"id": "c1", "name": "weather", "response": {"output": "rain"}},
        {"id": "c2", "name": "time", "response": {"output": "12:30"}},
    ]


def test_several_results_in_one_message_are_several_messages_of_openai(client, session):
    asked = store(
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
    answered = store(client, session, results, format="anthropic", meta={"n": 2})
    after = say(client, session, "after", meta={"n": 3})

    got = read(client, session)
    assert got.items[1:] == [
        {"role": "tool", "tool_call_id": "a1", "content": "one"},
        {"role": "tool", "tool_call_id": "a2", "content": "two"},
        {"role": "user", "content": "And now?"},
        {"role": "user", "content": "after"},
    ]
    # Ids and metas stay beside the items that they are of.
    assert got.ids == [asked.id, answered.id, answered.id, answered.id, after.id]
    assert got.metas == [{"n": 1}, {"n": 2}, {"n": 2}, {"n": 2}, {"n": 3}]
    # A page counts messages, however many items they make.
    page = read(client, session, limit=2)
    assert page.ids == [asked.id] + [answered.id] * 3
    assert read(client, session, limit=2, cursor=page.next_cursor).ids == [after.id]
    assert read(client, session, "gemini").ids == [asked.id, answered.id, after.id]
    blocks = items(client, session, "anthropic")[1]["content"]
    assert [block.get("is_error", False) for block in blocks] == [False, True, False]
    assert [block["type"] for block in blocks] == ["tool_result", "tool_result", "text"]


def test_arguments_that_came_as_text_stay_as_they_came(client, session):
    for arguments in ('{ "b": 1,\n "a": [2.0, 1e3] }', "not JSON", "", '{"big": 9007199254740993}', '"<&>\u2028"'):
        said = {"role": "assistant", "tool_calls": [call("c", "f", arguments)]}
        store(client, session, said)
        assert items(client, session)[-1] == said


@pytest.mark.parametrize("format", FORMATS)
def test_arguments_that_came_as_an_object_become_short_text_with_sorted_keys(client, session, format):
    given = {"b": {"d": 1, "c": "<&>ü"}, "a": [2.5, None, 2**53 + 1]}
    text = '{"a":[2.5,null,9007199254740993],"b":{"c":"<&>ü","d":1}}'
    blob = {
        "openai": {"role": "assistant", "tool_calls": [call("c", "f", given)]},
        "anthropic": {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": given}]},
        "gemini": {"role": "model", "parts": [{"functionCall": {"id": "c", "name": "f", "args": given}}]},
        "acontext": {
            "role": "assistant",
            "parts": [{"type": "tool-call", "meta": {"id": "c", "name": "f", "arguments": given}}],
        },
    }[format]
    store(client, session, blob, format=format)
    (item,) = items(client, session, "anthropic")
    assert item["content"] == [{"type": "tool_use", "id": "c", "name": "f", "input": given}]
    (item,) = items(client, session, "gemini")
    assert item["parts"] == [{"functionCall": {"id": "c", "name": "f", "args": given}}]
    # Its SDK knows them as text only.
    assert items(client, session) == [{"role": "assistant", "tool_calls": [call("c", "f", text)]}]


# ----- calls of Gemini, which pairs them by name -----


def function_call(name, call_id=None, **args):
    return {"functionCall": {"name": name, "args": args} | ({"id": call_id} if call_id else {})}


def function_response(name, call_id=None, **response):
    return {"functionResponse": {"name": name, "response": response} | ({"id": call_id} if call_id else {})}


def test_a_call_without_an_id_gets_one_and_its_answer_the_same(client, session):
    asked = store(client, session, {"role": "model", "parts": [function_call("find", q="x")]}, format="gemini")
    call_id = asked.parts[0].meta["id"]
    assert call_id.startswith("call_")
    answered = store(client, session, {"role": "user", "parts": [function_response("find", hits=2)]}, format="gemini")
    assert answered.parts[0].meta["tool_call_id"] == call_id
    assert items(client, session) == [
        {"role": "assistant", "tool_calls": [call(call_id, "find", '{"q":"x"}')]},
        {"role": "tool", "tool_call_id": call_id, "content": '{"hits":2}'},
    ]


def test_calls_of_one_name_are_answered_in_their_order(client, session):
    calls = [function_call("find", q=1), function_call("find", q=2), function_call("count", q=3)]
    asked = store(client, session, {"role": "model", "parts": calls}, format="gemini")
    ids = [part.meta["id"] for part in asked.parts]
    assert len(set(ids)) == 3
    answers = [function_response("count", n=3), function_response("find", n=1), function_response("find", n=2)]
    answered = store(client, session, {"role": "user", "parts": answers}, format="gemini")
    assert [part.meta["tool_call_id"] for part in answered.parts] == [ids[2], ids[0], ids[1]]


def test_an_answer_that_nobody_asked_for_is_refused_and_uses_up_nothing(client, session):
    def answer(*parts):
        return store(client, session, {"role": "user", "parts": list(parts)}, format="gemini")

    with refused(400, "functionResponse"):
        answer(function_response("find"))
    store(client, session, {"role": "model", "parts": [function_call("find", "c1")]}, format="gemini")
    for wrong in ([function_response("lose")], [function_response("find", "c2")]):
        with refused(400, "functionResponse"):
            answer(*wrong)
    # The first one fits, the second one makes the message a wrong one.
    with refused(400, "parts[1]"):
        answer(function_response("find", n=1), function_response("find", n=2))
    assert answer(function_response("find", n=1)).parts[0].meta["tool_call_id"] == "c1"
    with refused(400, "functionResponse"):
        answer(function_response("find", n=1))
    assert len(read(client, session).ids) == 2


def test_many_answers_at_once_take_each_call_once(server, client, session):
    for number in range(12):
        store(client, session, {"role": "model", "parts": [function_call("find", f"c{number}")]}, format="gemini")

    async def steps(client):
        blob = {"role": "user", "parts": [function_response("find", n=1)]}
        answers = await asyncio.gather(
            *(client.sessions.store_message(session.id, blob=blob, format="gemini") for _ in range(12))
        )
        assert len({answer.parts[0].meta["tool_call_id"] for answer in answers}) == 12
        with refused(400, "functionResponse"):
            await client.sessions.store_message(session.id, blob=blob, format="gemini")

    asynchronously(server, steps)


# ----- files -----


def test_an_image_comes_with_a_link_and_as_bytes(client, session):
    message = send(client, session, QUESTION, "image", file=FileUpload("red.png", PNG))
    text, image = message.parts
    sha256 = hashlib.sha256(PNG).hexdigest()
    assert (text.type, text.text, image.type, image.filename) == ("text", QUESTION["text"], "image", "red.png")
    assert (image.asset.sha256, image.asset.mime, image.asset.size_b) == (sha256, "image/png", len(PNG))
    assert image.asset.s3_key.startswith("assets/") and image.asset.s3_key.endswith(f"/{sha256}.png")

    got = read(client, session, "acontext")
    (item,) = got.items
    assert item["parts"] == [part.model_dump(exclude_none=True) for part in message.parts]
    assert list(got.public_urls) == [sha256]
    url = got.public_urls[sha256]
    assert datetime.fromisoformat(url.expire_at) > datetime.fromisoformat(message.created_at)
    opened = open_link(url.url)
    assert (opened.status_code, opened.content, opened.headers["content-type"]) == (200, PNG, "image/png")

    # Who can follow a link gets it; the others get the bytes.
    (item,) = items(client, session, "openai")
    assert item["content"][0] == QUESTION
    link = item["content"][1]["image_url"]["url"]
    assert open_link(link).content == PNG
    assert items(client, session, "anthropic") == TALK["anthropic"][:1]
    assert items(client, session, "gemini") == TALK["gemini"][:1]


def test_links_are_left_out_if_nobody_wants_them(client, session):
    send(client, session, QUESTION, "image", file=FileUpload("red.png", PNG))
    got = read(client, session, "acontext", with_asset_public_url=False)
    assert got.public_urls is None
    assert got.items[0]["parts"][1]["asset"]["sha256"] == hashlib.sha256(PNG).hexdigest()
    # The picture itself is not lost.
    assert items(client, session, "openai", with_asset_public_url=False) == TALK["openai"][:1]
    assert items(client, session, "anthropic", with_asset_public_url=False) == TALK["anthropic"][:1]
    assert items(client, session, "gemini", with_asset_public_url=False) == TALK["gemini"][:1]


@pytest.mark.parametrize(
    "name, content, mime",
    [
        ("notes.md", b"# Notes\n\nBuy milk.\n", "text/markdown"),
        ("plain.txt", "Grüße\n".encode(), "text/plain"),
        ("data.json", b'{"a": 1}', "application/json"),
        ("table.csv", b"name,age\nalice,30\n", "text/csv"),
        ("report.pdf", b"%PDF-1.4\n%%EOF\n", "application/pdf"),
        ("raw.bin", bytes(range(256)), "application/octet-stream"),
        # The name does not decide, the content does.
        ("pixel.txt", PNG, "image/png"),
        ("größe 寿司.md", b"# Name\n", "text/markdown"),
        ("no extension", b"words", "text/plain"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_a_file_comes_back_as_it_went_in(client, session, name, content, mime):
    # What the client says about the type is not asked for.
    message = send(client, session, "file", file=FileUpload(name, content, "image/gif"))
    (part,) = message.parts
    assert part.filename == name
    assert (part.asset.mime.split(";")[0], part.asset.size_b) == (mime, len(content))
    got = read(client, session, "acontext")
    opened = open_link(got.public_urls[part.asset.sha256].url)
    assert opened.content == content
    assert opened.headers["content-type"] == part.asset.mime
    downloaded = client.request_binary(
        "GET", f"/session/{session.id}/asset/download", params={"s3_key": part.asset.s3_key}
    )
    assert downloaded == content
    # Gemini takes any file as bytes.
    (item,) = items(client, session, "gemini")
    assert item["parts"] == [{"inlineData": {"mimeType": mime, "data": base64.b64encode(content).decode()}}]
    # The others get its bytes, or a link to them.
    for format in ("openai", "anthropic"):
        said = json.dumps(items(client, session, format), ensure_ascii=False)
        text = json.dumps(content.decode(errors="replace"), ensure_ascii=False).strip('"')
        assert base64.b64encode(content).decode() in said or "/api/v1/material/" in said or text in said


def test_an_empty_file_is_a_file(client, session):
    message = send(client, session, "file", file=FileUpload("empty.txt", b""))
    assert message.parts[0].asset.size_b == 0
    got = read(client, session, "acontext")
    assert open_link(got.public_urls[message.parts[0].asset.sha256].url).content == b""
    for format in FORMATS:
        assert len(items(client, session, format)) == 1


def test_a_file_may_come_as_a_stream_or_a_tuple(client, session):
    send(client, session, "file", file=FileUpload("stream.txt", io.BytesIO(b"from a stream"), "text/plain"))
    send(client, session, "file", file=("tuple.txt", b"from a tuple"))
    send(client, session, "file", file=("typed.txt", b"from a typed tuple", "text/plain"))
    got = read(client, session, "acontext")
    assets = [item["parts"][0]["asset"]["sha256"] for item in got.items]
    contents = [open_link(got.public_urls[sha256].url).content for sha256 in assets]
    assert contents == [b"from a stream", b"from a tuple", b"from a typed tuple"]


def test_a_helper_of_the_sdk_names_the_file(client, session):
    blob = build_acontext_message(
        role="user", parts=["see", MessagePart(type="image", file_field="a field of my own", meta={"alt": "red"})]
    )
    message = client.sessions.store_message(
        session.id, blob=blob, format="acontext", file_field="a field of my own", file=("red.png", PNG)
    )
    assert message.parts[1].asset.mime == "image/png"
    assert message.parts[1].meta == {"alt": "red"}


def test_one_file_may_be_in_several_places(client, session):
    """Equal content has one link, whatever it is called."""
    message = send(client, session, "file", "image", file=FileUpload("first.png", PNG))
    assert [part.asset for part in message.parts] == [message.parts[0].asset] * 2
    again = send(client, session, "image", file=FileUpload("second.PNG", PNG))
    assert again.parts[0].filename == "second.PNG"
    assert again.parts[0].asset.sha256 == message.parts[0].asset.sha256
    got = read(client, session, "acontext")
    assert list(got.public_urls) == [message.parts[0].asset.sha256]
    names = [[part["filename"] for part in item["parts"]] for item in got.items]
    assert names == [["first.png", "first.png"], ["second.PNG"]]


def test_a_link_is_the_same_within_the_hour(client, session):
    """So that a prompt which contains it stays the same. It may change when an hour ends between the two questions."""
    send(client, session, "image", file=FileUpload("red.png", PNG))

    def look():
        urls = read(client, session, "acontext").public_urls
        return json.dumps([items(client, session), {sha256: url.url for sha256, url in urls.items()}])

    assert look() == look() or look() == look()


def test_a_file_of_just_the_limit_is_stored(client, session):
    content = b"\0" * (16 << 20)
    message = send(client, session, "file", file=FileUpload("big.bin", content))
    assert message.parts[0].asset.size_b == len(content)
    url = read(client, session, "acontext").public_urls[message.parts[0].asset.sha256].url
    assert open_link(url).content == content


def test_a_file_over_the_limit_is_413_and_no_message(client, session):
    with refused(413, "16.00MB"):
        send(client, session, "file", file=FileUpload("big.bin", b"\0" * ((16 << 20) + 1)))
    assert read(client, session).ids == []


def test_a_part_that_names_a_file_which_did_not_come_is_refused(client, session):
    with refused(400, "missing file nothing"):
        store(
            client, session, {"role": "user", "parts": [{"type": "file", "file_field": "nothing"}]}, format="acontext"
        )
    with refused(400, "missing file another"):
        blob = {"role": "user", "parts": [{"type": "file", "file_field": "another"}]}
        client.sessions.store_message(
            session.id, blob=blob, format="acontext", file_field="file", file=("a.txt", b"a")
        )
    assert read(client, session).ids == []


# ----- meta -----


def test_meta_is_kept_beside_the_message(client, session):
    meta = {"text": "ü\n\"'", "n": [1, -2.5, 1e-7, 2**53 + 1, 10**30], "deep": {"a": {"b": [None, True]}}, "": ""}
    for format in FORMATS:
        message = store(client, session, TALK[format][3], format=format, meta=meta)
        assert message.meta == meta
    bare = say(client, session, "without")
    assert bare.meta == {}
    assert say(client, session, "empty", meta={}).meta == {}
    for format in FORMATS:
        assert read(client, session, format).metas == [meta] * 4 + [{}] * 2
    inner = [item["meta"] for item in items(client, session, "acontext")]
    assert inner[:4] == [{"source_format": format, "__user_meta__": meta} for format in FORMATS]
    assert inner[4:] == [{"source_format": "openai"}] * 2


def test_meta_of_the_message_itself_is_not_the_clients(client, session):
    blob = {"role": "user", "parts": [{"type": "text", "text": "hi"}], "meta": {"origin": "import", "name": "eve"}}
    message = store(client, session, blob, format="acontext", meta={"mine": True})
    assert message.meta == {"mine": True}
    (item,) = items(client, session, "acontext")
    assert item["meta"] == {
        "origin": "import",
        "name": "eve",
        "source_format": "acontext",
        "__user_meta__": {"mine": True},
    }
    assert items(client, session) == [{"role": "user", "content": "hi", "name": "eve"}]


def test_meta_is_patched_key_by_key(client, session):
    given = {"keep": 1, "change": "old", "drop": True, "nested": {"a": 1, "b": 2}}
    message = say(client, session, "patched", meta=given)
    other = say(client, session, "another", meta={"other": True})
    patch = client.sessions.patch_message_meta

    changed = patch(session.id, message.id, meta={"change": "new", "drop": None, "nested": {"a": 3}, "add": [None]})
    assert changed == {"keep": 1, "change": "new", "nested": {"a": 3}, "add": [None]}
    assert read(client, session).metas == [changed, {"other": True}]
    assert patch(session.id, message.id, meta={}) == changed
    assert patch(session.id, message.id, meta={"never there": None}) == changed
    assert patch(session.id, message.id, meta=dict.fromkeys(changed)) == {}
    assert patch(session.id, message.id, meta={"big": 9223372036854775807123}) == {"big": 9223372036854775807123}
    assert patch(session.id, other.id, meta={"more": 1}) == {"other": True, "more": 1}

    shown, _ = items(client, session, "acontext")
    assert shown["meta"] == {"source_format": "openai", "__user_meta__": {"big": 9223372036854775807123}}
    assert shown["created_at"] == message.created_at
    assert datetime.fromisoformat(shown["updated_at"]) > datetime.fromisoformat(message.updated_at)
    assert [item["content"] for item in items(client, session)] == ["patched", "another"]


def test_patches_at_once_lose_nothing(server, client, session):
    message = say(client, session, "patched by many")

    async def steps(client):
        patches = [
            client.sessions.patch_message_meta(session.id, message.id, meta={f"key {number}": number})
            for number in range(24)
        ]
        for number, patched in enumerate(await asyncio.gather(*patches)):
            assert patched[f"key {number}"] == number

    asynchronously(server, steps)
    assert read(client, session).metas == [{f"key {number}": number for number in range(24)}]


def test_meta_of_a_message_that_is_not_there_is_not_patched(client, stranger, session):
    message = say(client, session, "mine", meta={"kept": True})
    elsewhere = client.sessions.create()
    patch = client.sessions.patch_message_meta
    for session_id, message_id in ((session.id, NOBODYS), (elsewhere.id, message.id)):
        with refused(404, "message not found"):
            patch(session_id, message_id, meta={"kept": False})
    for project, session_id in ((client, NOBODYS), (stranger, session.id)):
        with refused(404, "session not found"):
            project.sessions.patch_message_meta(session_id, message.id, meta={"kept": False})
    with refused(400, "message_id"):
        patch(session.id, "not-an-id", meta={"kept": False})
    assert read(client, session).metas == [{"kept": True}]


def test_meta_has_a_limit(client, session):
    # Sixty-four KiB with the braces, the quotes and the name.
    largest = {"k": "x" * (64 * 1024 - len('{"k":""}'))}
    message = say(client, session, "large", meta=largest)
    assert message.meta == largest
    with refused(400, "meta size exceeds 64KB limit"):
        say(client, session, "too large", meta={"k": largest["k"] + "x"})
    with refused(400, "meta size exceeds 64KB limit"):
        client.sessions.patch_message_meta(session.id, message.id, meta={"k": largest["k"] + "x"})
    assert read(client, session).metas == [largest]


# ----- pages -----


def walk(client, session, limit, **order):
    """The ids on each page, in the order in which the pages come."""
    pages, cursor = [], None
    while True:
        page = read(client, session, limit=limit, cursor=cursor, **order)
        pages.append(page.ids)
        assert page.edit_at_message_id == page.ids[-1]
        if not page.has_more:
            return pages
        cursor = page.next_cursor


def test_paging_shows_every_message_once_in_both_directions(client, session):
    said = [say(client, session, f"t{number}", meta={"n": number}).id for number in range(1, 11)]
    assert walk(client, session, 3) == walk(client, session, 3, time_desc=False)
    assert walk(client, session, 3) == [said[:3], said[3:6], said[6:9], said[9:]]
    # The newest page comes first, and each page reads from its oldest message to its newest.
    assert walk(client, session, 3, time_desc=True) == [said[7:], said[4:7], said[1:4], said[:1]]
    for order in ({}, {"time_desc": True}):
        assert walk(client, session, 10, **order) == walk(client, session, 200, **order) == [said]
        for limit in (1, 7):
            pages = walk(client, session, limit, **order)
            assert sorted(sum(pages, [])) == sorted(said)
    page = read(client, session, limit=2, time_desc=True)
    assert page.items == [{"role": "user", "content": "t9"}, {"role": "user", "content": "t10"}]
    assert page.metas == [{"n": 9}, {"n": 10}]


def test_a_walk_shows_what_was_there_when_messages_come_meanwhile(client, session):
    said = [say(client, session, f"t{number}").id for number in range(4)]
    newest = read(client, session, limit=2, time_desc=True)
    oldest = read(client, session, limit=2)
    late = say(client, session, "late").id
    assert read(client, session, limit=2, time_desc=True, cursor=newest.next_cursor).ids == said[:2]
    assert read(client, session, limit=3, cursor=oldest.next_cursor).ids == said[2:] + [late]


def test_without_a_limit_all_messages_come(client, session):
    said = [say(client, session, f"t{number}").id for number in range(205)]
    for how in ({}, {"limit": 0}, {"time_desc": True}, {"cursor": "read by nobody"}, {"limit": 0, "cursor": "garbage"}):
        got = read(client, session, **how)
        assert got.ids == said and not got.has_more
    assert read(client, session, limit=200).ids == said[:200]


def test_an_empty_session_has_an_empty_page(client, session):
    for how in ({}, {"limit": 5}, {"limit": 5, "time_desc": True}, {"with_events": True}):
        for format in FORMATS:
            got = read(client, session, format, **how)
            assert (got.items, got.this_time_tokens, got.has_more) == ([], 0, False)
    assert client.sessions.get_token_counts(session.id).total_tokens == 0


@pytest.mark.parametrize(
    "name, value",
    [("limit", -1), ("limit", 201), ("limit", 2**63), ("cursor", "garbage!"), ("cursor", "MTIzfDQ1Ng")],
)
def test_paging_that_makes_no_sense_is_refused_by_name(client, session, name, value):
    with refused(400, name):
        client.sessions.get_messages(session.id, **({"limit": 5} | {name: value}))


def test_each_message_follows_the_one_before(client, session):
    said = [store(client, session, TALK[format][0], format=format) for format in FORMATS * 2]
    said.append(send(client, session, "image", file=FileUpload("red.png", PNG)))
    said.append(say(client, session, "last"))
    assert [message.parent_id for message in said] == [None] + [message.id for message in said[:-1]]
    times = [datetime.fromisoformat(message.created_at) for message in said]
    assert all(earlier < later for earlier, later in zip(times, times[1:]))
    shown = items(client, session, "acontext")
    assert [item["parent_id"] for item in shown] == [message.parent_id for message in said]
    assert [item["created_at"] for item in shown] == [message.created_at for message in said]


def test_events_and_strategies_may_be_asked_for_where_there_are_none(client, session):
    message = say(client, session, "hello")
    got = client.sessions.get_messages(
        session.id, with_events=True, edit_strategies=[], pin_editing_strategies_at_message=message.id
    )
    assert (got.ids, got.events or []) == ([message.id], [])


# ----- tokens -----


def test_tokens_are_counted_per_message(client, session):
    counts = {"hi": 2, "t1": 3, "only one": 3, "": 0}
    for text, count in counts.items():
        say(client, session, text)
        assert read(client, session, limit=1, time_desc=True).this_time_tokens == count, text
    total = sum(counts.values())
    assert client.sessions.get_token_counts(session.id).total_tokens == total
    assert read(client, session).this_time_tokens == total
    # A page counts what is on it.
    assert read(client, session, limit=2).this_time_tokens == counts["hi"] + counts["t1"]
    assert read(client, session, limit=2, time_desc=True).this_time_tokens == counts["only one"]


def test_pictures_and_files_have_no_tokens(client, session):
    send(client, session, "image", file=FileUpload("red.png", PNG))
    send(client, session, "file", file=FileUpload("words.txt", b"words " * 1000))
    store(client, session, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PICTURE_URL}}]})
    for format in FORMATS:
        assert read(client, session, format).this_time_tokens == 0
    assert client.sessions.get_token_counts(session.id).total_tokens == 0


def test_calls_and_results_have_tokens(client, session):
    store(client, session, TALK["openai"][1])
    with_call = client.sessions.get_token_counts(session.id).total_tokens
    store(client, session, {"role": "assistant", "content": "Let me measure."})
    without_call = client.sessions.get_token_counts(session.id).total_tokens - with_call
    assert with_call > without_call > 0
    store(client, session, TALK["openai"][2])
    assert client.sessions.get_token_counts(session.id).total_tokens > with_call + without_call


# ----- many at once -----


def test_many_threads_store_on_one_session(server, client, session):
    """Each message is there once. No two follow the same one, and no two have the same time."""
    threads, each = 16, 20
    together = threading.Barrier(threads)

    def work(thread):
        with server.client() as mine:
            together.wait()
            return [say(mine, session, f"{thread} {number}", meta={"thread": thread}) for number in range(each)]

    with ThreadPoolExecutor(threads) as pool:
        stored = [message for done in pool.map(work, range(threads)) for message in done]
    shown = items(client, session, "acontext")
    assert {item["id"] for item in shown} == {message.id for message in stored}
    assert len(shown) == threads * each
    assert [item["parent_id"] for item in shown] == [None] + [item["id"] for item in shown[:-1]]
    times = [datetime.fromisoformat(item["created_at"]) for item in shown]
    assert all(earlier < later for earlier, later in zip(times, times[1:]))
    # What was answered is what is shown, and what one thread said stays in its order.
    answered = {message.id: message for message in stored}
    for item in shown:
        assert answered[item["id"]].parent_id == item["parent_id"]
        assert answered[item["id"]].created_at == item["created_at"]
    for thread in range(threads):
        said = [item["parts"][0]["text"] for item in shown if item["meta"]["__user_meta__"]["thread"] == thread]
        assert said == [f"{thread} {number}" for number in range(each)]
    assert sum(walk(client, session, 50), []) == [item["id"] for item in shown]


def test_messages_of_many_sizes_and_kinds_at_once(server, client, session):
    """Short ones, long ones and files go in by different ways, and into the same chain."""

    async def steps(client):
        def one(number):
            text = f"{number} " * (20_000 if number % 3 == 1 else 1)
            if number % 3 == 2:
                blob = {"role": "user", "parts": [{"type": "file", "file_field": "f"}]}
                return client.sessions.store_message(
                    session.id, blob=blob, format="acontext", file_field="f", file=("a.txt", text.encode())
                )
            return client.sessions.store_message(session.id, blob={"role": "user", "content": text})

        stored = await asyncio.gather(*(one(number) for number in range(45)))
        shown = (await client.sessions.get_messages(session.id, format="acontext")).items
        assert sorted(item["id"] for item in shown) == sorted(message.id for message in stored)
        assert [item["parent_id"] for item in shown] == [None] + [item["id"] for item in shown[:-1]]

    asynchronously(server, steps)


def test_a_session_that_is_deleted_while_messages_come_leaves_none(server, client):
    """Each store is kept and deleted with the session, or is refused; nothing fails in another way."""
    session = client.sessions.create()

    async def steps(client):
        store, blob = client.sessions.store_message, {"role": "user", "content": "late?"}
        await store(session.id, blob=blob)
        stores = [store(session.id, blob=blob) for _ in range(20)]
        delete = client.sessions.delete(session.id)
        done = await asyncio.gather(*stores[:10], delete, *stores[10:], return_exceptions=True)
        failed = [result for result in done if isinstance(result, Exception)]
        assert [(error.status_code, error.message) for error in failed] == [(404, "session not found")] * len(failed)

    asynchronously(server, steps)
    with refused(404, "session not found"):
        client.sessions.get_messages(session.id)
    assert server.psql(f"select count(*) from messages where session_id = '{session.id}'") == "0"


# ----- the asynchronous client -----


def test_async_messages(server):
    async def steps(client):
        sessions = client.sessions
        session = await sessions.create()
        for format in FORMATS:
            for blob in TALK[format][3:]:
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
            got = await sessions.get_messages(session.id, format=format)
            assert len(got.items) == len(got.ids) == 5
            assert got.metas == [{"format": format} for format in FORMATS] + [{}]
        got = await sessions.get_messages(session.id, format="acontext", limit=1, time_desc=True)
        assert (got.ids, got.has_more) == ([message.id], True)
        assert open_link(got.public_urls[message.parts[0].asset.sha256].url).content == PNG
        assert await sessions.patch_message_meta(session.id, message.id, meta={"late": True}) == {"late": True}
        got = await sessions.get_messages(session.id)
        assert got.metas[-1] == {"late": True}
        assert (await sessions.get_token_counts(session.id)).total_tokens == got.this_time_tokens > 0

    asynchronously(server, steps)


# ----- the storage of the Claude Agent SDK -----


def agent_messages(session_id):
    """What the agent's SDK hands out in one turn."""
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


AGENT_TALK = [
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


def plain(blobs):
    """Without what may be said or left out in a result of a tool, and with its text as a list."""
    blobs = json.loads(json.dumps(blobs))
    for block in (block for blob in blobs for block in blob["content"] if block["type"] == "tool_result"):
        block.setdefault("is_error", False)
        if isinstance(block["content"], str):
            block["content"] = [{"type": "text", "text": block["content"]}]
    return blobs


def failures(kept):
    """For a storage that is not to fail: it swallows errors otherwise."""
    return lambda error, blob: kept.append(error)


def test_an_agents_turns_are_stored_under_its_own_session_id(server, client):
    wanted, user, failed = str(uuid.uuid4()), f"agent-{uuid.uuid4()}", []

    async def steps(client):
        storage = ClaudeAgentStorage(client, user=user, include_thinking=True, on_error=failures(failed))
        for message in agent_messages(wanted):
            await storage.save_message(message)
        assert storage.session_id == wanted

    asynchronously(server, steps)
    assert failed == []
    assert [session.id for session in client.sessions.list(user=user).items] == [wanted]
    got = client.sessions.get_messages(wanted, format="anthropic")
    assert plain(got.items) == plain(AGENT_TALK)
    assert got.metas == [
        {},
        {"model": "some-model", "has_thinking": True},
        {},
        {},
        {"model": "some-model", "error": "rate_limit"},
    ]
    # What the agent said is read by others, too.
    assert [item["role"] for item in client.sessions.get_messages(wanted).items] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]


def test_an_agent_goes_on_with_its_session(server, client):
    wanted, failed = str(uuid.uuid4()), []

    async def steps(client):
        for _ in range(2):
            storage = ClaudeAgentStorage(client, on_error=failures(failed))
            for message in agent_messages(wanted):
                await storage.save_message(message)

    asynchronously(server, steps)
    assert failed == []
    assert len(client.sessions.get_messages(wanted).ids) == 2 * len(AGENT_TALK)


def test_an_agent_without_a_session_id_gets_one(server, client):
    failed = []

    async def steps(client):
        storage = ClaudeAgentStorage(client, on_error=failures(failed))
        for message in agent_messages("no id at all"):
            await storage.save_message(message)
        return storage.session_id

    session_id = asynchronously(server, steps)
    assert failed == []
    # Thinking is left out unless it is asked for.
    assert plain(client.sessions.get_messages(session_id, format="anthropic").items[:1]) == plain(AGENT_TALK[:1])
    assert "thinking" not in json.dumps(client.sessions.get_messages(session_id, format="anthropic").items)


def test_an_agent_with_the_session_of_another_project_is_told_so(server, stranger):
    """The storage takes the conflict for its own session, and then its messages are refused."""
    theirs, failed = stranger.sessions.create(), []

    async def steps(client):
        storage = ClaudeAgentStorage(client, session_id=theirs.id, on_error=failures(failed))
        for message in agent_messages(theirs.id):
            await storage.save_message(message)

    asynchronously(server, steps)
    assert [(error.status_code, error.message) for error in failed] == [(404, "session not found")] * len(AGENT_TALK)
    assert stranger.sessions.get_messages(theirs.id).ids == []
