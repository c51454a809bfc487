"""Message bodies that the SDK does not send: error messages, limits, unusual multipart forms, other clients."""

import contextlib
import hashlib
import json
import os
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from support import wait_until, new_project
from raw_http import BOUNDARY, FORM, RawConnection, exchange, form_part, form_body

JSON = {"Content-Type": "application/json"}
HELLO = {"role": "user", "content": "hello"}
UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"
NIL_ID = "00000000-0000-0000-0000-000000000000"
MIB = 1 << 20


@pytest.fixture
def session(client):
    return client.sessions.create()


def encode(value):
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def post_body(server, session_id, body, headers=JSON):
    return exchange(server, "POST", f"/api/v1/session/{session_id}/messages", headers, encode(body))


def post_form(server, session_id, *parts, headers=()):
    return post_body(server, session_id, form_body(*parts), {"Content-Type": FORM, **dict(headers)})


def get_messages(server, session_id, query=""):
    return exchange(server, "GET", f"/api/v1/session/{session_id}/messages{query}")


def patch_meta(server, session_id, message_id, body, headers=JSON):
    path = f"/api/v1/session/{session_id}/messages/{message_id}/meta"
    return exchange(server, "PATCH", path, headers, encode(body))


def expect_data(response, status):
    assert response.status == status, response.body
    body = response.json()
    assert (body["code"], body["msg"]) == (0, "")
    return body["data"]


def read_items(server, session_id, format="acontext"):
    return expect_data(get_messages(server, session_id, f"?format={format}"), 200)["items"]


def has_no_messages(server, session):
    return get_messages(server, session.id).json()["data"]["ids"] == []


def payload(value):
    return form_part("payload", encode(value))


def with_files(*fields, **extra):
    """Returns a message in the `acontext` format with a file part for each of the form fields."""
    parts = [{"type": "file", "file_field": field} for field in fields]
    return {"format": "acontext", "blob": {"role": "user", "parts": parts}, **extra}


def acontext(*parts, role="user", **extra):
    """Returns a message in the `acontext` format. `extra` becomes part of the message, not of the request."""
    return {"format": "acontext", "blob": {"role": role, "parts": list(parts), **extra}}


def openai(**blob):
    return {"format": "openai", "blob": blob}


def anthropic(**blob):
    return {"format": "anthropic", "blob": blob}


def gemini(*parts, role="user"):
    return {"format": "gemini", "blob": {"role": role, "parts": list(parts)}}


# ----- bodies that contain no message -----


INVALID_BODIES = [
    b"",
    b"{",
    b"[]",
    b'[{"role": "user", "content": "in a list"}, null, null]',
    b'"text"',
    b"5",
    b"blob=hello",
    b"\xff",
    b'{"blob": {"role": "\xff"}}',
    b"{'blob': 1}",
]


@pytest.mark.parametrize("body", INVALID_BODIES)
@pytest.mark.parametrize("content_type", ["application/json", "text/plain", None])
def test_a_body_that_is_not_an_object_is_rejected(server, session, body, content_type):
    response = post_body(server, session.id, body, {"Content-Type": content_type})
    assert response.status == 400
    assert "body:" in response.error_message()
    assert has_no_messages(server, session)


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "APPLICATION/JSON", "text/plain", None])
def test_a_body_is_read_as_json_for_any_content_type(server, session, content_type):
    expect_data(post_body(server, session.id, {"blob": HELLO}, {"Content-Type": content_type}), 201)
    assert read_items(server, session.id, "openai") == [HELLO]


FORMATS = ["openai", "anthropic", "gemini", "acontext"]
INVALID_FIELDS = [
    ({}, "blob"),
    (None, "blob"),
    ({"blob": None}, "blob"),
    ({"format": "gemini", "meta": {}}, "blob"),
    ({"role": "user"}, "blob"),
    ({"content": "without a role"}, "blob"),
    *(({"format": name, "blob": blob}, "blob") for name in FORMATS for blob in ("", "text", 0, False, [], [HELLO])),
    *(({"blob": HELLO, "format": name}, "format") for name in ("xml", "OpenAI", "openai ", "0", "openai,gemini")),
    *(({"blob": HELLO, "format": name}, "format") for name in (5, [], {}, True)),
    *(({"blob": HELLO, "meta": meta}, "meta") for meta in ([], "text", 5, True)),
    *(({"blob": HELLO, "meta": meta}, "meta") for meta in ({"a": "\0"}, {"a\0": 1}, {"a": [{"b": "\0"}]})),
    ({"blob": HELLO, "meta": {"k": "x" * 65529}}, "meta size exceeds 64KB limit"),
    ({"blob": HELLO, "meta": {str(n): n for n in range(10_000)}}, "meta size exceeds 64KB limit"),
    ({"blob": HELLO, "meta": {"k": "ü" * 40_000}}, "meta size exceeds 64KB limit"),
]


@pytest.mark.parametrize("body, field", INVALID_FIELDS)
def test_the_error_names_an_invalid_field_of_a_body(server, session, body, field):
    response = post_body(server, session.id, body)
    assert response.status == 400
    assert field in response.error_message()
    assert has_no_messages(server, session)


TEXT = {"type": "text", "text": "hello"}
INVALID_TEXT_PARTS = (None, "text", 5, {"text": 5}, {"text": "x", "thought": 5})
INVALID_CALLS = ({"name": ""}, {"name": 5}, "f", {"name": "f", "args": "x"})
INVALID_RESPONSES = ({}, {"name": ""}, {"name": 5}, "f")
INVALID_BLOBS = [
    # OpenAI
    *((openai(role=role, content="x"), "role") for role in ("model", "User", "", "bot", None, 5, [])),
    (openai(content="no role"), "role"),
    *((openai(role=role), "content") for role in ("user", "system", "developer")),
    *((openai(role="user", content=content), "content") for content in (None, 5, True, {})),
    (openai(role="system", content=None), "content"),
    *((openai(role="user", content=[TEXT, item]), "content[1]") for item in (None, 5, [])),
    *((openai(role="user", content=[TEXT, item]), "content[1]") for item in ({}, {"text": "no type"}, {"type": 5})),
    (openai(role="user", content="x", name="a\0b"), "name"),
    *((openai(role="assistant", tool_calls=calls), "tool_calls") for calls in ("text", 5, {})),
    # Anthropic
    *((anthropic(role=role, content="x"), "role") for role in ("developer", "tool", "model", "", None, 5)),
    (anthropic(content="no role"), "role"),
    # Gemini
    *((gemini({"text": "x"}, role=role), "role") for role in ("assistant", "system", "Model", "", 5)),
    ({"format": "gemini", "blob": {"content": "neither role nor parts"}}, "role"),
    *(({"format": "gemini", "blob": {"role": "user", "parts": parts}}, "parts") for parts in ("text", 5, {})),
    *((gemini({"text": "x"}, item), "parts[1]") for item in INVALID_TEXT_PARTS),
    *(
        (gemini({"inlineData": {"mimeType": "image/png", "data": data}}), "parts[0].inlineData.data")
        for data in ("not base64!", "abcde", "ab\0d", 5)
    ),
    *((gemini({"functionCall": call}, role="model"), "parts[0].functionCall") for call in INVALID_CALLS),
    *((gemini({"functionResponse": item}), "parts[0].functionResponse") for item in INVALID_RESPONSES),
    # Acontext
    *((acontext(TEXT, role=role), "role") for role in ("system", "tool", "model", "USER", "", None, 1)),
    ({"format": "acontext", "blob": {"parts": [TEXT]}}, "role"),
    *(({"format": "acontext", "blob": {"role": "user", "parts": parts}}, "parts") for parts in ("text", 5, {})),
    *((acontext(TEXT, item), "parts[1]") for item in (None, "text", 5, [])),
    *((acontext(TEXT, {"type": kind}), "parts[1].type") for kind in ("hologram", "", "Text", None, 5)),
    (acontext(TEXT, {"text": "no type"}), "parts[1].type"),
    *((acontext({"type": "text", "text": text}), "parts[0].text") for text in (5, [])),
    *((acontext({"type": "thinking", "text": text}), "parts[0].text") for text in ("", None, 5, [])),
    (acontext({"type": "thinking"}), "parts[0].text"),
    *((acontext({"type": "image", "meta": meta}), "parts[0].meta") for meta in ("text", 5, [])),
    *((acontext({"type": "file", "file_field": field}), "parts[0].file_field") for field in (5, [], {})),
    (acontext({"type": "tool-call"}), "parts[0].meta"),
    (acontext({"type": "tool-call", "meta": {"name": "n"}}), "arguments"),
    (acontext({"type": "tool-call", "meta": {"arguments": "{}"}}), "name"),
    (acontext({"type": "tool-result", "text": "r"}), "tool_call_id"),
    (acontext({"type": "tool-result", "meta": {}}), "tool_call_id"),
    (acontext({"type": "data", "meta": {"type": "x"}}), "data_type"),
    *((acontext(TEXT, meta=meta), "meta") for meta in ("text", 5, [], {"a": "\0"})),
    # Only a multipart form can contain files.
    (acontext({"type": "file", "file_field": "nothing"}), "missing file nothing"),
]


@pytest.mark.parametrize("body, field", INVALID_BLOBS)
def test_the_error_names_an_invalid_field_of_a_message(server, session, body, field):
    form_response = post_form(server, session.id, payload(body))
    for response in (post_body(server, session.id, body), form_response):
        assert response.status == 400
        message = response.error_message()
        assert field in message
        # The error names the format, unless the message itself is valid and only its reference cannot be resolved.
        assert body["format"] in message or "missing file" in message
    assert has_no_messages(server, session)


@pytest.mark.parametrize("nested_field", ["blob", "content", "meta", "format"])
def test_json_that_is_nested_too_deeply_is_rejected(server, session, nested_field):
    def nested_lists(levels):
        return b"[" * levels + b"]" * levels

    def body(levels):
        return {
            "blob": b'{"blob":%s}' % nested_lists(levels),
            "content": b'{"blob":{"role":"user","content":"x","extra":%s}}' % nested_lists(levels),
            "meta": b'{"blob":{"role":"user","content":"x"},"meta":{"a":%s}}' % nested_lists(levels),
            "format": b'{"blob":{"role":"user","content":"x"},"format":%s}' % nested_lists(levels),
        }[nested_field]

    for levels in (300, 100_000):
        response = post_body(server, session.id, body(levels))
        assert (response.status, "body:" in response.error_message()) == (400, True)
        response = post_form(server, session.id, payload(body(levels)))
        assert (response.status, "payload" in response.error_message()) == (400, True)
    assert has_no_messages(server, session)
    if nested_field in ("content", "meta"):
        expect_data(post_body(server, session.id, body(100)), 201)


def test_deeply_nested_arguments_in_a_string_are_accepted(server, client, session):
    arguments = "[" * 5000 + "]" * 5000
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    sent = {"role": "assistant", "tool_calls": [call]}
    expect_data(post_body(server, session.id, {"blob": sent}), 201)
    assert read_items(server, session.id, "openai") == [sent]
    for format in ("anthropic", "gemini", "acontext"):
        assert len(read_items(server, session.id, format)) == 1


def test_data_after_the_json_value_is_ignored(server, session):
    expect_data(post_body(server, session.id, encode({"blob": HELLO}) + b"{} and more"), 201)
    assert read_items(server, session.id, "openai") == [HELLO]


def test_unknown_keys_are_ignored(server, session):
    body = {"blob": HELLO, "more": [1], "session_id": UNKNOWN_ID, "created_at": "1999"}
    expect_data(post_body(server, session.id, body), 201)
    (item,) = read_items(server, session.id)
    assert item["session_id"] == session.id
    assert not item["created_at"].startswith("1999")


@pytest.mark.parametrize("absent", [{"format": None}, {"format": ""}, {"meta": None}, {}])
def test_null_is_treated_as_absent(server, session, absent):
    for response in (
        post_body(server, session.id, {"blob": HELLO} | absent),
        post_form(server, session.id, payload({"blob": HELLO} | absent)),
    ):
        assert expect_data(response, 201)["meta"] == {}
    assert read_items(server, session.id, "openai") == [HELLO] * 2


def test_a_stored_message_has_all_keys(server, session):
    """Keys without a value are present as null, because typed clients require them."""
    message = expect_data(post_body(server, session.id, {"blob": {"role": "assistant"}}), 201)
    expected = {"parent_id": None, "task_id": None, "role": "assistant", "meta": {}, "parts": []}
    assert message == {
        **expected,
        "id": message["id"],
        "session_id": session.id,
        "session_task_process_status": "pending",
        "created_at": message["created_at"],
        "updated_at": message["created_at"],
    }
    page = expect_data(get_messages(server, session.id), 200)
    assert page == {
        "items": [{"role": "assistant"}],
        "ids": [message["id"]],
        "metas": [{}],
        "has_more": False,
        "this_time_tokens": 0,
        "edit_at_message_id": message["id"],
    }
    assert read_items(server, session.id) == [message | {"meta": {"source_format": "openai"}}]


def test_an_empty_list_has_all_keys(server, session):
    for query in ("", "?limit=1&time_desc=true", "?format=acontext&with_events=true"):
        page = expect_data(get_messages(server, session.id, query), 200)
        assert page == {"items": [], "ids": [], "metas": [], "has_more": False, "this_time_tokens": 0}


# ----- the character NUL -----


@pytest.mark.parametrize(
    "body, format",
    [
        (openai(role="user", content="a\0b"), "openai"),
        (openai(role="user", content=[{"type": "text", "text": "a\0b"}, TEXT]), "openai"),
        (openai(role="tool", tool_call_id="a\0b", content="\0"), "openai"),
        (anthropic(role="user", content=[{"type": "text", "text": "a\0b"}]), "anthropic"),
        (gemini({"text": "a\0b"}), "gemini"),
        (
            anthropic(role="assistant", content=[{"type": "tool_use", "id": "t", "name": "f", "input": {"a": "\0"}}]),
            "anthropic",
        ),
    ],
)
def test_nul_in_the_content_of_a_message_is_preserved(server, session, body, format):
    expect_data(post_body(server, session.id, body), 201)
    assert read_items(server, session.id, format) == [body["blob"]]
    for other in ("openai", "anthropic", "gemini", "acontext"):
        assert len(read_items(server, session.id, other)) == 1


def test_nul_in_acontext_parts_is_preserved(server, session):
    sent = [{"type": "text", "text": "a\0b", "meta": {"c": "\0"}}]
    assert expect_data(post_body(server, session.id, acontext(*sent)), 201)["parts"] == sent
    assert read_items(server, session.id)[0]["parts"] == sent


def test_nul_in_a_metadata_patch_is_rejected(server, session):
    message = expect_data(post_body(server, session.id, {"blob": HELLO, "meta": {"a": 1}}), 201)
    for meta in ({"a": "\0"}, {"a\0": 1}, {"a": {"b": ["\0"]}}):
        response = patch_meta(server, session.id, message["id"], {"meta": meta})
        assert (response.status, "meta" in response.error_message()) == (400, True)
    assert expect_data(patch_meta(server, session.id, message["id"], {"meta": {}}), 200) == {"meta": {"a": 1}}


# ----- multipart forms -----


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_the_parts_of_a_form_may_have_any_order(server, session, order):
    form = [payload(with_files("b", "a")), form_part("a", b"x,y\n1,2\n", "a.csv"), form_part("b", b'{"b":1}', "b.json")]
    message = expect_data(post_form(server, session.id, *(form[index] for index in order)), 201)
    assert [item["filename"] for item in message["parts"]] == ["b.json", "a.csv"]
    assert [item["asset"]["size_b"] for item in message["parts"]] == [7, 8]
    assert [item["asset"]["mime"].split(";")[0] for item in message["parts"]] == ["application/json", "text/csv"]
    assert read_items(server, session.id)[0]["parts"] == message["parts"]


def test_a_file_that_no_part_refers_to_is_ignored(server, session):
    secret = f"not referenced {session.id}".encode()
    form = [form_part("extra", secret, "x.txt"), payload({"blob": HELLO}), form_part("more", secret, "y.txt")]
    assert expect_data(post_form(server, session.id, *form), 201)["parts"] == [TEXT]
    sha256 = hashlib.sha256(secret).hexdigest()
    assert server.psql(f"select count(*) from blobs where sha256 = '{sha256}'") == "0"
    wait_until(lambda: not server.files("tmp"), "the temporary files are deleted")


def test_the_first_of_two_files_in_one_field_is_stored(server, session):
    form = [payload(with_files("a")), form_part("a", b"first", "1.txt"), form_part("a", b"second", "2.txt")]
    (file_part,) = expect_data(post_form(server, session.id, *form), 201)["parts"]
    assert (file_part["filename"], file_part["asset"]["sha256"]) == ("1.txt", hashlib.sha256(b"first").hexdigest())


@pytest.mark.parametrize("format", ["openai", "anthropic", "gemini", "acontext"])
def test_a_form_may_contain_every_format(server, session, format):
    blob = {"role": "user", "parts": [{"text": "by form"}]}
    if format == "acontext":
        blob["parts"][0]["type"] = "text"
    if format in ("openai", "anthropic"):
        blob = {"role": "user", "content": "by form"}
    body = {"format": format, "blob": blob, "meta": {"via": "form"}}
    message = expect_data(post_form(server, session.id, payload(body)), 201)
    assert (message["meta"], message["parts"]) == ({"via": "form"}, [{"type": "text", "text": "by form"}])


INVALID_FORMS = [
    # The form has no message.
    ([form_part("a", b"a", "a.txt")], "failed to normalize openai message: blob"),
    ([payload(b"")], "failed to normalize openai message: blob"),
    ([payload(b"null")], "failed to normalize openai message: blob"),
    ([payload(b"{}")], "failed to normalize openai message: blob"),
    ([payload({"blob": None})], "failed to normalize openai message: blob"),
    ([payload({"format": "acontext"})], "failed to normalize acontext message: blob"),
    # The message cannot be read.
    ([payload(b"{not json")], "invalid payload json"),
    ([payload(b"[]")], "invalid payload json"),
    ([payload(b'"text"')], "invalid payload json"),
    ([payload(b'{"blob":{"role":"user","content":"\xff"}}')], "payload"),
    ([payload(encode({"blob": HELLO}) + b"more")], "invalid payload json"),
    ([payload({"blob": HELLO, "format": 5})], "invalid payload json"),
    ([payload({"blob": HELLO, "meta": [1]})], "invalid payload json"),
    ([payload({"blob": HELLO, "meta": "text"})], "invalid payload json"),
    ([payload({"blob": HELLO, "format": "xml"})], "invalid format"),
    ([payload({"blob": HELLO, "meta": {"k": "x" * 65529}})], "meta size exceeds 64KB limit"),
    ([payload({"blob": HELLO, "meta": {"k": "\0"}})], "meta"),
    # The form has two messages.
    ([payload({"blob": HELLO})] * 2, "payload: must not appear more than once in the form"),
    ([payload(with_files("a")), form_part("a", b"a", "a.txt"), payload({"blob": HELLO})], "payload: must not appear"),
    # The file is missing.
    ([payload(with_files("a"))], "missing file a"),
    ([payload(with_files("sent", "missing")), form_part("sent", b"a", "a.txt")], "missing file missing"),
    ([payload(with_files("a")), form_part("A", b"a", "a.txt")], "missing file a"),
    ([payload(with_files("a")), form_part("a ", b"a", "a.txt")], "missing file a"),
    # A text field is not a file.
    ([payload(with_files("a")), form_part("a", b"a")], "missing file a"),
    # The filename cannot be stored.
    ([payload(with_files("a")), form_part("a", b"a", "n" * 1025)], "a: "),
    ([payload(with_files("a")), form_part("a", b"a", "n" * 10_000 + ".txt")], "a: "),
    (
        [payload(with_files("a")), form_part("a", b"a", disposition="form-data; name=\"a\"; filename*=UTF-8''a%00b")],
        "a: ",
    ),
    ([payload(with_files("a")), form_part("a", b"a", disposition=b'form-data; name="a"; filename="\xff"')], "a: "),
]


@pytest.mark.parametrize("form, words", INVALID_FORMS)
def test_the_error_names_the_problem_of_an_invalid_form(server, session, form, words):
    response = post_form(server, session.id, *form)
    assert response.status == 400
    assert words in response.error_message()
    assert has_no_messages(server, session)


def test_a_truncated_form_is_rejected(server, session):
    body = form_body(payload(with_files("a")), form_part("a", b"hello", "a.txt"))
    for invalid in (body[:-3], body[: -len(BOUNDARY) - 6], body[:100], b"", b"no form at all"):
        response = post_body(server, session.id, invalid, {"Content-Type": FORM})
        assert response.status == 400 and response.error_message()
    response = post_body(server, session.id, body, {"Content-Type": "multipart/form-data"})
    assert (response.status, "Content-Type" in response.error_message()) == (400, True)
    assert has_no_messages(server, session)
    wait_until(lambda: not server.files("tmp"), "the temporary files are deleted")


@pytest.mark.parametrize("disconnect", ["close", "reset"])
def test_a_disconnect_during_an_upload_stores_nothing(server, session, disconnect):
    body = form_body(payload(with_files("a")), form_part("a", os.urandom(2 * MIB), "half.bin"))
    connection = RawConnection(server)
    headers = {"Content-Type": FORM, "Content-Length": len(body)}
    connection.send_request("POST", f"/api/v1/session/{session.id}/messages", headers)
    connection.send(body[:MIB])
    wait_until(lambda: server.files("tmp"), "the upload has a temporary file")
    getattr(connection, disconnect)()
    wait_until(lambda: not server.files("tmp"), "the temporary files are deleted")
    assert has_no_messages(server, session)
    # The complete form is stored.
    expect_data(post_body(server, session.id, body, {"Content-Type": FORM}), 201)


@pytest.mark.parametrize(
    "name, stored_name",
    [
        ("größe 寿司 🍣.TXT", "größe 寿司 🍣.TXT"),
        ("from/elsewhere/../a.tar.GZ", "a.tar.GZ"),
        ("C:\\\\docs\\\\a.txt", "a.txt"),
        ("n" * 1024, "n" * 1024),
        ("..", ".."),
    ],
    ids=lambda value: value[:20],
)
def test_a_filename_is_stored_without_its_directory(server, session, name, stored_name):
    form = [payload(with_files("a")), form_part("a", b"a", name)]
    (file_part,) = expect_data(post_form(server, session.id, *form), 201)["parts"]
    assert file_part["filename"] == stored_name
    key, sha256 = file_part["asset"]["s3_key"], file_part["asset"]["sha256"]
    # The S3 key has only the last extension, in lower case.
    extension = "." + stored_name.rpartition(".")[2].lower() if "." in stored_name else ""
    assert key.endswith(f"/{sha256}{extension}") and key.startswith(f"assets/{session.project_id}/")


# ----- limits -----


def test_a_message_may_have_up_to_1000_parts(server, session):
    bodies = {
        "parts": lambda count: acontext(*[TEXT] * count),
        "gemini parts": lambda count: gemini(*[{"text": "x"}] * count),
        "content": lambda count: openai(role="user", content=[TEXT] * count),
        "anthropic content": lambda count: anthropic(role="user", content=[TEXT] * count),
    }
    for name, body in bodies.items():
        expect_data(post_body(server, session.id, body(1000)), 201)
        for response in (post_body(server, session.id, body(1001)), post_form(server, session.id, payload(body(1001)))):
            assert response.status == 400
            assert name.split()[-1] in response.error_message() and "1000" in response.error_message()
    assert [len(item["parts"]) for item in read_items(server, session.id)] == [1000] * 4


def test_a_message_may_have_up_to_1000_tool_calls(server, session):
    """Tool calls count as parts."""

    def body(count):
        function = {"name": "f", "arguments": "{}"}
        calls = [{"id": f"c{number}", "type": "function", "function": function} for number in range(count)]
        return openai(role="assistant", tool_calls=calls)

    assert len(expect_data(post_body(server, session.id, body(1000)), 201)["parts"]) == 1000
    response = post_body(server, session.id, body(1001))
    assert response.status == 400
    assert "tool_calls" in response.error_message() and "1000" in response.error_message()


def test_a_message_may_have_up_to_64_files(server, session):
    def form(count, referenced):
        files = [form_part(f"f{n}", f"content {n}".encode(), f"{n}.txt") for n in range(count)]
        return [payload(with_files(*(f"f{n}" for n in range(referenced)))), *files]

    message = expect_data(post_form(server, session.id, *form(64, 64)), 201)
    assert [item["filename"] for item in message["parts"]] == [f"{n}.txt" for n in range(64)]
    # The limit also applies to files that no part refers to.
    for referenced in (65, 1):
        response = post_form(server, session.id, *form(65, referenced))
        assert response.status == 400
        assert "f64" in response.error_message() and "64 files" in response.error_message()
    assert len(read_items(server, session.id)) == 1
    wait_until(lambda: not server.files("tmp"), "the temporary files are deleted")


@pytest.mark.parametrize("referenced", [True, False])
def test_a_file_over_16_mib_is_413(server, session, referenced):
    message = with_files("big") if referenced else {"blob": HELLO}
    response = post_form(server, session.id, payload(message), form_part("big", b"\0" * (16 * MIB + 1), "big.bin"))
    assert response.status == 413
    assert "16.00MB" in response.error_message()
    assert has_no_messages(server, session)
    wait_until(lambda: not server.files("tmp"), "the temporary files are deleted")


def test_a_message_over_128_mib_is_413(server, session):
    fields = [f"f{n}" for n in range(9)]
    files = [form_part(field, b"\0" * (15 * MIB), "big.bin") for field in fields]
    form = form_body(payload(with_files(*fields)), *files)
    with RawConnection(server) as connection:
        # The form is sent in chunks, so that the server does not know the total size in advance.
        headers = {"Content-Type": FORM, "Transfer-Encoding": "chunked"}
        connection.send_request("POST", f"/api/v1/session/{session.id}/messages", headers)
        # The server may close the connection before the end of the form, but not without a response.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for start in range(0, len(form), MIB):
                chunk = form[start : start + MIB]
                connection.send(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            connection.send(b"0\r\n\r\n")
        response = connection.read_response("POST")
    assert response.status == 413
    assert response.error_message()
    assert has_no_messages(server, session)
    wait_until(lambda: not server.files("tmp"), "the temporary files are deleted")


def test_a_body_over_32_mib_is_413(server, session):
    body = b'{"blob":{"role":"user","content":"' + b"x" * (32 * MIB) + b'"}}'
    for response in (post_body(server, session.id, body), post_form(server, session.id, payload(body))):
        assert response.status == 413
        assert response.error_message()
    assert has_no_messages(server, session)


def test_a_too_large_content_length_is_rejected_before_the_body(server, session):
    for content_type, length in (("application/json", 33 * MIB), (FORM, 200 * MIB)):
        with RawConnection(server) as connection:
            headers = {"Content-Type": content_type, "Content-Length": length}
            connection.send_request("POST", f"/api/v1/session/{session.id}/messages", headers)
            # No byte of the body has been sent.
            response = connection.read_response()
        assert response.status == 413
        assert response.error_message()


def test_a_message_of_many_mebibytes_is_stored(server, session):
    text = "a long sentence that does not end, " * 300_000
    message = expect_data(post_body(server, session.id, openai(role="user", content=text)), 201)
    assert message["parts"] == [{"type": "text", "text": text}]
    assert read_items(server, session.id, "openai") == [{"role": "user", "content": text}]
    assert expect_data(get_messages(server, session.id), 200)["this_time_tokens"] > 1_000_000


def test_the_size_of_metadata_excludes_whitespace_and_escapes(server, session):
    """Neither insignificant whitespace nor the escaping of characters counts towards the limit."""
    meta = b'{"k" : ' + b" " * 70_000 + b'"' + b"\\u0078" * 60_000 + b'"}'
    body = b'{"blob":{"role":"user","content":"x"},"meta":' + meta + b"}"
    message = expect_data(post_body(server, session.id, body), 201)
    assert message["meta"] == {"k": "x" * 60_000}


# ----- patches -----


@pytest.mark.parametrize(
    "body, field",
    [
        *((body, "body") for body in (b"", b"{", [], [{"unchanged": 0}], "text", 5)),
        *((body, "meta") for body in (None, {}, {"meta": None}, {"other": {}})),
        *(({"meta": meta}, "meta") for meta in ([], "x", 1, True)),
        ({"meta": {"k": "x" * 65529}}, "meta size exceeds 64KB limit"),
        (b'{"meta":{"a":' + b"[" * 200 + b"]" * 200 + b"}}", "meta"),
        (b'{"meta":{"a":' + b"[" * 300 + b"]" * 300 + b"}}", "body"),
    ],
)
def test_the_error_names_the_problem_of_an_invalid_patch(server, session, body, field):
    message = expect_data(post_body(server, session.id, {"blob": HELLO, "meta": {"unchanged": 1}}), 201)
    response = patch_meta(server, session.id, message["id"], body)
    assert response.status == 400
    assert expect_data(get_messages(server, session.id), 200)["metas"] == [{"unchanged": 1}]
    assert field in response.error_message()


def test_patches_cannot_exceed_the_total_limit_of_metadata(server, session):
    message = expect_data(post_body(server, session.id, {"blob": HELLO}), 201)
    statuses = []
    for number in range(20):
        statuses.append(patch_meta(server, session.id, message["id"], {"meta": {f"k{number}": "x" * 65_000}}).status)
    assert statuses == [200] * statuses.count(200) + [413] * statuses.count(413)
    assert 0 < statuses.count(413) < 20
    (meta,) = expect_data(get_messages(server, session.id), 200)["metas"]
    assert len(meta) == statuses.count(200)
    # The metadata can be reduced again.
    removal = {"meta": dict.fromkeys(meta)}
    assert expect_data(patch_meta(server, session.id, message["id"], removal), 200) == {"meta": {}}


# ----- reading -----


@pytest.mark.parametrize(
    "query, field",
    [
        *((f"limit={value}", "limit") for value in ("-1", "201", "x", "1.5", "99999999999999999999", "0x10")),
        *((f"limit=1&cursor={value}", "cursor") for value in ("garbage!", "YWJj", "MTJ8bm90LWEtdXVpZA", "%00", "%F0")),
        ("limit=1&cursor=" + "x" * 5000, "cursor"),
        *((f"format={value}", "format") for value in ("xml", "OpenAI", "openai%20", "acontext,openai", "0", "%00")),
        *((f"time_desc={value}", "time_desc") for value in ("yes", "2", "tRUE")),
        ("with_events=maybe", "with_events"),
        ("with_asset_public_url=no", "with_asset_public_url"),
        *((f"edit_strategies={value}", "edit_strategies") for value in ("%7B", "%7B%7D", "5", "%22x%22", "[]x", "[")),
    ],
    ids=lambda value: value[:40],
)
def test_the_error_names_an_invalid_query_parameter(server, session, query, field):
    response = get_messages(server, session.id, f"?{query}")
    assert response.status == 400
    assert field in response.error_message()


ACCEPTED_QUERIES = [
    *("limit=", "limit=%205%20", "limit=5&limit=x", "limit=0&cursor=garbage", "cursor=garbage", "limit=5&cursor="),
    *("format=", "time_desc=", "time_desc=1", "time_desc=T", "time_desc=True", "time_desc=f"),
    *("with_events=1", "with_events=true", "with_asset_public_url=0"),
    *("edit_strategies=", "edit_strategies=null", "edit_strategies=[]", "pin_editing_strategies_at_message=nothing"),
    "unknown=1&id=x",
]


@pytest.mark.parametrize("query", ACCEPTED_QUERIES)
def test_query_parameters_are_read_as_clients_send_them(server, session, query):
    message = expect_data(post_body(server, session.id, {"blob": HELLO}), 201)
    page = expect_data(get_messages(server, session.id, f"?{query}"), 200)
    assert (page["items"], page["ids"]) == ([HELLO], [message["id"]])


def test_a_get_request_may_have_a_json_content_type(server, session):
    expect_data(post_body(server, session.id, {"blob": HELLO}), 201)
    response = exchange(server, "GET", f"/api/v1/session/{session.id}/messages?limit=1", JSON)
    assert expect_data(response, 200)["items"] == [HELLO]


def test_a_cursor_of_another_list_is_accepted(server, client, session):
    """The cursor is the creation time of an earlier session, so every message of a later session is after it."""
    user = f"user-{uuid.uuid4()}"
    for _ in range(2):
        client.sessions.create(user=user)
    cursor = client.sessions.list(user=user, limit=1).next_cursor
    message = expect_data(post_body(server, session.id, {"blob": HELLO}), 201)
    assert expect_data(get_messages(server, session.id, f"?limit=5&cursor={cursor}"), 200)["ids"] == [message["id"]]
    assert expect_data(get_messages(server, session.id, f"?limit=5&time_desc=true&cursor={cursor}"), 200)["ids"] == []


# ----- sessions that do not exist -----


# Bodies that the server stores in different ways.
BODIES = {
    "short": {"blob": HELLO},
    "long": {"blob": {"role": "user", "content": "x" * 100_000}},
    "with a file": with_files("f"),
    "a tool result": gemini({"functionResponse": {"name": "f", "response": {}}}),
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_message_for_an_unknown_session_is_404(server, session, kind):
    body = BODIES[kind]
    _, foreign_key = new_project(server)
    foreign = {"Authorization": f"Bearer {foreign_key}"}
    form = [payload(body), form_part("f", f"for no session {session.id}".encode(), "a.txt")]
    for session_id, headers in ((UNKNOWN_ID, {}), (NIL_ID, {}), (session.project_id, {}), (session.id, foreign)):
        responses = [post_form(server, session_id, *form, headers=headers)]
        if kind != "with a file":
            responses.append(post_body(server, session_id, body, JSON | headers))
        for response in responses:
            assert (response.status, response.error_message()) == (404, "session not found")
    for response in (post_body(server, "nonsense", body), post_form(server, "nonsense", *form)):
        assert (response.status, "session_id" in response.error_message()) == (400, True)
    assert has_no_messages(server, session)
    sha256 = hashlib.sha256(f"for no session {session.id}".encode()).hexdigest()
    assert server.psql(f"select count(*) from blobs where sha256 = '{sha256}' and state = 'live'") == "0"
    assert server.psql(f"select count(*) from message_files where sha256 = '{sha256}'") == "0"


@pytest.mark.parametrize("key", [None, "Bearer sk-ac-wrong", "Bearer", "Basic abc"])
def test_the_api_key_is_checked_before_everything_else(server, session, key):
    for session_id in (session.id, "nonsense"):
        for response in (
            post_body(server, session_id, b"{broken", JSON | {"Authorization": key}),
            post_form(server, session_id, payload({"blob": HELLO}), headers={"Authorization": key}),
            patch_meta(server, session_id, UNKNOWN_ID, {"meta": {}}, JSON | {"Authorization": key}),
            exchange(server, "GET", f"/api/v1/session/{session_id}/messages", {"Authorization": key}),
            exchange(server, "GET", f"/api/v1/session/{session_id}/asset/download?s3_key=x", {"Authorization": key}),
            exchange(server, "GET", f"/api/v1/session/{session_id}/token_counts", {"Authorization": key}),
        ):
            assert (response.status, response.error_message()) == (401, "Unauthorized")
    assert has_no_messages(server, session)


@pytest.mark.parametrize(
    "method, path",
    [
        ("PUT", "messages"),
        ("DELETE", "messages"),
        ("PATCH", "messages"),
        ("GET", "messages/{}"),
        ("DELETE", "messages/{}"),
        ("GET", "messages/{}/meta"),
        ("POST", "token_counts"),
        ("POST", "asset/download"),
    ],
)
def test_other_methods_on_message_paths_are_404(server, session, method, path):
    message = expect_data(post_body(server, session.id, {"blob": HELLO}), 201)
    response = exchange(server, method, f"/api/v1/session/{session.id}/{path.format(message['id'])}", JSON, b"{}")
    assert response.status == 404
    assert response.error_message()
    assert expect_data(get_messages(server, session.id), 200)["items"] == [HELLO]


# ----- downloads by S3 key -----


@pytest.fixture
def file_part(server, session):
    """The only part of a message with one file."""
    form = [payload(with_files("f")), form_part("f", b"0123456789", "a.txt")]
    return expect_data(post_form(server, session.id, *form), 201)["parts"][0]


def download_asset(server, session_id, key, method="GET", **headers):
    path = f"/api/v1/session/{session_id}/asset/download?s3_key={key}"
    return exchange(server, method, path, {name.replace("_", "-"): value for name, value in headers.items()})


def test_an_asset_is_downloaded_by_its_s3_key(server, session, file_part):
    key = file_part["asset"]["s3_key"]
    response = download_asset(server, session.id, key)
    assert (response.status, response.body) == (200, b"0123456789")
    assert response.headers["Content-Type"] == "application/octet-stream"
    assert response.headers["ETag"] == f'"{file_part["asset"]["sha256"]}"'
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert download_asset(server, session.id, key, Range="bytes=2-5").body == b"2345"
    assert download_asset(server, session.id, key, If_None_Match="*").status == 304
    assert download_asset(server, session.id, key, "HEAD").headers["Content-Length"] == "10"


def test_an_asset_is_downloaded_only_from_its_own_session(server, client, session, file_part):
    key = file_part["asset"]["s3_key"]
    other_session = client.sessions.create()
    assert download_asset(server, other_session.id, key).status == 404
    assert download_asset(server, UNKNOWN_ID, key).error_message() == "session not found"
    assert download_asset(server, "nonsense", key).status == 400
    _, foreign_key = new_project(server)
    response = download_asset(server, session.id, key, Authorization=f"Bearer {foreign_key}")
    assert (response.status, "does not belong to this project" in response.error_message()) == (403, True)
    assert download_asset(server, session.id, key).status == 200


def test_s3_keys_without_an_asset_are_rejected(server, session, file_part):
    prefix = f"assets/{session.project_id}/"
    response = download_asset(server, session.id, "")
    assert (response.status, "s3_key" in response.error_message()) == (400, True)
    for foreign in (f"assets/{UNKNOWN_ID}/2026/01/01/x.txt", "x", "../../etc/passwd", prefix[:-1]):
        response = download_asset(server, session.id, foreign)
        assert (response.status, "asset does not belong to this project" in response.error_message()) == (403, True)
    for missing in (f"{prefix}2026/01/01/none.txt", f"{prefix}..%2F..", f"{prefix}%00", prefix, f"{prefix}%25"):
        response = download_asset(server, session.id, missing)
        assert (response.status, bool(response.error_message())) == (404, True)


# ----- other clients -----


@pytest.mark.parametrize("extra", [{}, {"type": "text"}, {"format": "openai"}, {"meta": {"via": "cli"}}])
def test_the_command_line_sends_a_message_without_a_blob_field(server, session, extra):
    message = expect_data(post_body(server, session.id, {"role": "user", "content": "by hand", **extra}), 201)
    assert (message["parts"], message["meta"]) == ([{"type": "text", "text": "by hand"}], extra.get("meta", {}))
    assert read_items(server, session.id, "openai") == [{"role": "user", "content": "by hand"}]


@pytest.mark.parametrize(
    "body", [{"role": "bot", "content": "x"}, {"role": "user", "content": None}, {"role": None, "content": "x"}]
)
def test_a_message_without_a_blob_field_is_validated(server, session, body):
    response = post_body(server, session.id, body)
    assert response.status == 400
    assert response.error_message()
    assert has_no_messages(server, session)


def test_the_dashboard_sends_several_files_with_generated_fields(server, session):
    """The field names are generated ids, texts precede files, and absent values of a part are null."""
    fields = [f"file_{uuid.uuid4()}" for _ in range(3)]
    parts = [{"type": "text", "text": "see", "meta": None, "file_field": None}]
    parts += [{"type": "file", "text": None, "meta": None, "file_field": field} for field in fields]
    body = {"format": "acontext", "blob": {"role": "user", "meta": None, "parts": parts}}
    files = [form_part(field, f"file {n}".encode(), f"{n}.txt") for n, field in enumerate(fields)]
    message = expect_data(post_form(server, session.id, payload(body), *files), 201)
    assert [item.get("filename") for item in message["parts"]] == [None, "0.txt", "1.txt", "2.txt"]
    assert all("file_field" not in item and None not in item.values() for item in message["parts"])
    query = "?limit=50&with_asset_public_url=true&with_events=true&format=acontext"
    page = expect_data(get_messages(server, session.id, query), 200)
    for item in message["parts"][1:]:
        assert page["public_urls"][item["asset"]["sha256"]]["url"]
        assert page["public_urls"][item["asset"]["sha256"]]["expire_at"]


# ----- concurrent requests -----


def test_many_connections_store_messages_in_one_session(server, session):
    """Sixteen connections store twenty messages each, in several formats and sizes; the parent ids form one chain."""
    kinds = [
        openai(role="user", content="short"),
        anthropic(role="assistant", content=[{"type": "text", "text": "blocks"}]),
        gemini({"text": "gemini"}),
        openai(role="user", content="long " * 10_000),
    ]

    def store_messages(thread):
        responses = []
        with RawConnection(server) as connection:
            for number in range(20):
                body = kinds[(thread + number) % len(kinds)] | {"meta": {"thread": thread, "number": number}}
                connection.send_request("POST", f"/api/v1/session/{session.id}/messages", JSON, encode(body))
                responses.append(expect_data(connection.read_response("POST"), 201))
        return responses

    with ThreadPoolExecutor(16) as pool:
        stored = [message for responses in pool.map(store_messages, range(16)) for message in responses]
    items = read_items(server, session.id)
    assert len(items) == 16 * 20
    assert {item["id"] for item in items} == {message["id"] for message in stored}
    assert [item["parent_id"] for item in items] == [None] + [item["id"] for item in items[:-1]]
    # The fraction of a second is padded, because the server omits its trailing zeros.
    times = [item["created_at"].rstrip("Z").partition(".") for item in items]
    times = [(second, fraction.ljust(6, "0")) for second, _, fraction in times]
    assert all(earlier < later for earlier, later in zip(times, times[1:]))
    for thread in range(16):
        metas = [item["meta"]["__user_meta__"] for item in items]
        assert [meta["number"] for meta in metas if meta["thread"] == thread] == list(range(20))
