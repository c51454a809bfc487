"""Bodies of messages that the SDK does not send: refusals that name what is wrong, limits, odd forms, other clients."""

import contextlib
import hashlib
import json
import os
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from support import eventually, new_project
from wire import BOUNDARY, FORM, Wire, exchange, part, upload

JSON = {"Content-Type": "application/json"}
HELLO = {"role": "user", "content": "hello"}
NOBODYS = "00000000-0000-4000-8000-000000000000"
NIL = "00000000-0000-0000-0000-000000000000"
MIB = 1 << 20


@pytest.fixture
def session(client):
    return client.sessions.create()


def encoded(value):
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def post(server, session_id, body, headers=JSON):
    return exchange(server, "POST", f"/api/v1/session/{session_id}/messages", headers, encoded(body))


def post_form(server, session_id, *parts, headers=()):
    return post(server, session_id, upload(*parts), {"Content-Type": FORM, **dict(headers)})


def get(server, session_id, query=""):
    return exchange(server, "GET", f"/api/v1/session/{session_id}/messages{query}")


def patch(server, session_id, message_id, body, headers=JSON):
    path = f"/api/v1/session/{session_id}/messages/{message_id}/meta"
    return exchange(server, "PATCH", path, headers, encoded(body))


def data(answer, status):
    assert answer.status == status, answer.body
    said = answer.json()
    assert (said["code"], said["msg"]) == (0, "")
    return said["data"]


def shown(server, session_id, format="acontext"):
    return data(get(server, session_id, f"?format={format}"), 200)["items"]


def nothing_was_stored(server, session):
    return get(server, session.id).json()["data"]["ids"] == []


def payload(value):
    return part("payload", encoded(value))


def with_files(*fields, **more):
    """A message in the format that carries files, with a part for each of these fields of the form."""
    parts = [{"type": "file", "file_field": field} for field in fields]
    return {"format": "acontext", "blob": {"role": "user", "parts": parts}, **more}


def acontext(*parts, role="user", **more):
    """A message of our own format; `more` is of the message, not of the request."""
    return {"format": "acontext", "blob": {"role": role, "parts": list(parts), **more}}


def openai(**blob):
    return {"format": "openai", "blob": blob}


def anthropic(**blob):
    return {"format": "anthropic", "blob": blob}


def gemini(*parts, role="user"):
    return {"format": "gemini", "blob": {"role": role, "parts": list(parts)}}


# ----- bodies that are no message -----


NO_BODIES = [
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


@pytest.mark.parametrize("body", NO_BODIES)
@pytest.mark.parametrize("content_type", ["application/json", "text/plain", None])
def test_a_body_that_is_no_object_is_refused(server, session, body, content_type):
    answer = post(server, session.id, body, {"Content-Type": content_type})
    assert answer.status == 400
    assert "body:" in answer.refusal()
    assert nothing_was_stored(server, session)


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "APPLICATION/JSON", "text/plain", None])
def test_a_body_is_json_whatever_it_is_called(server, session, content_type):
    data(post(server, session.id, {"blob": HELLO}, {"Content-Type": content_type}), 201)
    assert shown(server, session.id, "openai") == [HELLO]


FORMATS = ["openai", "anthropic", "gemini", "acontext"]
WRONG_FIELDS = [
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


@pytest.mark.parametrize("body, field", WRONG_FIELDS)
def test_a_wrong_field_of_a_body_is_named(server, session, body, field):
    answer = post(server, session.id, body)
    assert answer.status == 400
    assert field in answer.refusal()
    assert nothing_was_stored(server, session)


TEXT = {"type": "text", "text": "hello"}
NO_TEXTS = ({}, None, "text", 5, {"text": 5}, {"text": ""})
NO_CALLS = ({}, {"name": 5}, "f", {"name": "f", "args": "x"})
NO_ANSWERS = ({}, {"name": ""}, {"name": 5}, "f", {"name": "nobody"})
WRONG_BLOBS = [
    # OpenAI
    *((openai(role=role, content="x"), "role") for role in ("model", "User", "", "bot", None, 5, [])),
    (openai(content="no role"), "role"),
    *((openai(role=role), "content") for role in ("user", "system", "developer")),
    *((openai(role="user", content=content), "content") for content in (None, [], 5, True, {})),
    *((openai(role="system", content=content), "content") for content in (None, [])),
    *((openai(role="user", content=[TEXT, item]), "content[1]") for item in (None, "text", 5, [])),
    *((openai(role="user", content=[TEXT, item]), "content[1]") for item in ({}, {"text": "no type"}, {"type": 5})),
    (openai(role="user", content="x", name="a\0b"), "name"),
    *((openai(role="assistant", tool_calls=calls), "tool_calls") for calls in ("text", 5, {})),
    # Anthropic
    *((anthropic(role=role, content="x"), "role") for role in ("system", "tool", "model", "", None, 5)),
    (anthropic(content="no role"), "role"),
    # Gemini
    *((gemini({"text": "x"}, role=role), "role") for role in ("assistant", "system", "function", "Model", "", None, 5)),
    ({"format": "gemini", "blob": {"parts": [{"text": "no role"}]}}, "role"),
    *(({"format": "gemini", "blob": {"role": "user", "parts": parts}}, "parts") for parts in ("text", 5, {})),
    *((gemini({"text": "x"}, item), "parts[1]") for item in NO_TEXTS),
    *(
        (gemini({"inlineData": {"mimeType": "image/png", "data": data}}), "parts[0].inlineData.data")
        for data in ("not base64!", "abcde", "ab\0d", 5)
    ),
    *((gemini({"functionCall": called}, role="model"), "parts[0].functionCall") for called in NO_CALLS),
    *((gemini({"functionResponse": said}), "parts[0].functionResponse") for said in NO_ANSWERS),
    # Our own
    *((acontext(TEXT, role=role), "role") for role in ("system", "tool", "model", "USER", "", None, 1)),
    ({"format": "acontext", "blob": {"parts": [TEXT]}}, "role"),
    *(({"format": "acontext", "blob": {"role": "user", "parts": parts}}, "parts") for parts in ("text", 5, {})),
    *((acontext(TEXT, item), "parts[1]") for item in (None, "text", 5, [])),
    *((acontext(TEXT, {"type": kind}), "parts[1].type") for kind in ("hologram", "", "Text", None, 5)),
    (acontext(TEXT, {"text": "no type"}), "parts[1].type"),
    *((acontext({"type": "text", "text": text}), "parts[0].text") for text in ("", None, 5, [])),
    *((acontext({"type": "thinking", "text": text}), "parts[0].text") for text in ("", None, 5, [])),
    (acontext({"type": "text"}), "parts[0].text"),
    *((acontext({"type": "image", "meta": meta}), "parts[0].meta") for meta in ("text", 5, [])),
    *((acontext({"type": "file", "file_field": field}), "parts[0].file_field") for field in (5, [], {})),
    (acontext({"type": "tool-call"}), "parts[0].meta"),
    (acontext({"type": "tool-call", "meta": {"name": "n"}}), "arguments"),
    (acontext({"type": "tool-call", "meta": {"arguments": "{}"}}), "name"),
    (acontext({"type": "tool-result", "text": "r"}), "tool_call_id"),
    (acontext({"type": "tool-result", "meta": {}}), "tool_call_id"),
    (acontext({"type": "data", "meta": {"type": "x"}}), "data_type"),
    *((acontext(TEXT, meta=meta), "meta") for meta in ("text", 5, [], {"a": "\0"})),
    # A file can come with a form only.
    (acontext({"type": "file", "file_field": "nothing"}), "missing file nothing"),
]


@pytest.mark.parametrize("body, field", WRONG_BLOBS)
def test_a_wrong_field_of_a_message_is_named(server, session, body, field):
    in_a_form = post_form(server, session.id, payload(body))
    for answer in (post(server, session.id, body), in_a_form):
        assert answer.status == 400
        said = answer.refusal()
        assert field in said
        # It says which message it has tried to read, except where the message is right but does not fit.
        assert body["format"] in said or "missing file" in said or "nobody" in said
    assert nothing_was_stored(server, session)


@pytest.mark.parametrize("where", ["blob", "content", "meta", "format"])
def test_json_that_is_nested_too_deeply_is_refused(server, session, where):
    def deep(levels):
        return b"[" * levels + b"]" * levels

    def body(levels):
        return {
            "blob": b'{"blob":%s}' % deep(levels),
            "content": b'{"blob":{"role":"user","content":"x","more":%s}}' % deep(levels),
            "meta": b'{"blob":{"role":"user","content":"x"},"meta":{"a":%s}}' % deep(levels),
            "format": b'{"blob":{"role":"user","content":"x"},"format":%s}' % deep(levels),
        }[where]

    for levels in (200, 100_000):
        answer = post(server, session.id, body(levels))
        assert (answer.status, "body:" in answer.refusal()) == (400, True)
        answer = post_form(server, session.id, payload(body(levels)))
        assert (answer.status, "payload" in answer.refusal()) == (400, True)
    assert nothing_was_stored(server, session)
    if where in ("content", "meta"):
        data(post(server, session.id, body(100)), 201)


def test_arguments_that_are_nested_deeply_as_text_are_text(server, client, session):
    arguments = "[" * 5000 + "]" * 5000
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    said = {"role": "assistant", "tool_calls": [call]}
    data(post(server, session.id, {"blob": said}), 201)
    assert shown(server, session.id, "openai") == [said]
    for format in ("anthropic", "gemini", "acontext"):
        assert len(shown(server, session.id, format)) == 1


def test_the_first_of_two_values_counts(server, session):
    data(post(server, session.id, encoded({"blob": HELLO}) + b"{} and more"), 201)
    assert shown(server, session.id, "openai") == [HELLO]


def test_keys_that_are_not_known_are_passed_over(server, session):
    data(post(server, session.id, {"blob": HELLO, "more": [1], "session_id": NOBODYS, "created_at": "1999"}), 201)
    (item,) = shown(server, session.id)
    assert item["session_id"] == session.id
    assert not item["created_at"].startswith("1999")


@pytest.mark.parametrize("absent", [{"format": None}, {"format": ""}, {"meta": None}, {}])
def test_null_means_left_out(server, session, absent):
    for answer in (
        post(server, session.id, {"blob": HELLO} | absent),
        post_form(server, session.id, payload({"blob": HELLO} | absent)),
    ):
        assert data(answer, 201)["meta"] == {}
    assert shown(server, session.id, "openai") == [HELLO] * 2


def test_a_stored_message_has_all_its_keys(server, session):
    """Also those that hold nothing: typed clients want them."""
    message = data(post(server, session.id, {"blob": {"role": "assistant"}}), 201)
    expected = {"parent_id": None, "task_id": None, "role": "assistant", "meta": {}, "parts": []}
    assert message == {
        **expected,
        "id": message["id"],
        "session_id": session.id,
        "session_task_process_status": "pending",
        "created_at": message["created_at"],
        "updated_at": message["created_at"],
    }
    got = data(get(server, session.id), 200)
    assert got == {
        "items": [{"role": "assistant"}],
        "ids": [message["id"]],
        "metas": [{}],
        "has_more": False,
        "this_time_tokens": 0,
        "edit_at_message_id": message["id"],
    }
    assert shown(server, session.id) == [message | {"meta": {"source_format": "openai"}}]


def test_an_empty_list_has_all_its_keys(server, session):
    for query in ("", "?limit=1&time_desc=true", "?format=acontext&with_events=true"):
        got = data(get(server, session.id, query), 200)
        assert got == {"items": [], "ids": [], "metas": [], "has_more": False, "this_time_tokens": 0}


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
def test_nul_is_kept_in_what_a_message_says(server, session, body, format):
    data(post(server, session.id, body), 201)
    assert shown(server, session.id, format) == [body["blob"]]
    for other in ("openai", "anthropic", "gemini", "acontext"):
        assert len(shown(server, session.id, other)) == 1


def test_nul_is_kept_in_parts_of_our_own(server, session):
    said = [{"type": "text", "text": "a\0b", "meta": {"c": "\0"}}]
    assert data(post(server, session.id, acontext(*said)), 201)["parts"] == said
    assert shown(server, session.id)[0]["parts"] == said


def test_nul_is_refused_in_what_is_patched(server, session):
    message = data(post(server, session.id, {"blob": HELLO, "meta": {"a": 1}}), 201)
    for meta in ({"a": "\0"}, {"a\0": 1}, {"a": {"b": ["\0"]}}):
        answer = patch(server, session.id, message["id"], {"meta": meta})
        assert (answer.status, "meta" in answer.refusal()) == (400, True)
    assert data(patch(server, session.id, message["id"], {"meta": {}}), 200) == {"meta": {"a": 1}}


# ----- forms -----


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_the_parts_of_a_form_may_come_in_any_order(server, session, order):
    form = [payload(with_files("b", "a")), part("a", b"x,y\n1,2\n", "a.csv"), part("b", b'{"b":1}', "b.json")]
    message = data(post_form(server, session.id, *(form[at] for at in order)), 201)
    assert [each["filename"] for each in message["parts"]] == ["b.json", "a.csv"]
    assert [each["asset"]["size_b"] for each in message["parts"]] == [7, 8]
    assert [each["asset"]["mime"].split(";")[0] for each in message["parts"]] == ["application/json", "text/csv"]
    assert shown(server, session.id)[0]["parts"] == message["parts"]


def test_a_file_that_nobody_asked_for_is_passed_over(server, session):
    secret = f"asked for by nobody {session.id}".encode()
    form = [part("extra", secret, "x.txt"), payload({"blob": HELLO}), part("more", secret, "y.txt")]
    assert data(post_form(server, session.id, *form), 201)["parts"] == [TEXT]
    sha256 = hashlib.sha256(secret).hexdigest()
    assert server.psql(f"select count(*) from blobs where sha256 = '{sha256}'") == "0"
    eventually(lambda: not server.files("tmp"), "the removal of what came in")


def test_of_two_files_in_one_field_the_first_counts(server, session):
    form = [payload(with_files("a")), part("a", b"first", "1.txt"), part("a", b"second", "2.txt")]
    (stored,) = data(post_form(server, session.id, *form), 201)["parts"]
    assert (stored["filename"], stored["asset"]["sha256"]) == ("1.txt", hashlib.sha256(b"first").hexdigest())


@pytest.mark.parametrize("format", ["openai", "anthropic", "gemini", "acontext"])
def test_a_form_carries_every_format(server, session, format):
    blob = {"role": "user", "parts": [{"text": "by form"}]}
    if format == "acontext":
        blob["parts"][0]["type"] = "text"
    if format in ("openai", "anthropic"):
        blob = {"role": "user", "content": "by form"}
    body = {"format": format, "blob": blob, "meta": {"via": "form"}}
    message = data(post_form(server, session.id, payload(body)), 201)
    assert (message["meta"], message["parts"]) == ({"via": "form"}, [{"type": "text", "text": "by form"}])


WRONG_FORMS = [
    # Without a message.
    ([part("a", b"a", "a.txt")], "failed to normalize openai message: blob"),
    ([payload(b"")], "failed to normalize openai message: blob"),
    ([payload(b"null")], "failed to normalize openai message: blob"),
    ([payload(b"{}")], "failed to normalize openai message: blob"),
    ([payload({"blob": None})], "failed to normalize openai message: blob"),
    ([payload({"format": "acontext"})], "failed to normalize acontext message: blob"),
    # With one that cannot be read.
    ([payload(b"{not json")], "invalid payload json"),
    ([payload(b"[]")], "invalid payload json"),
    ([payload(b'"text"')], "invalid payload json"),
    ([payload(b'{"blob":{"role":"user","content":"\xff"}}')], "payload"),
    ([payload(encoded({"blob": HELLO}) + b"more")], "invalid payload json"),
    ([payload({"blob": HELLO, "format": 5})], "invalid payload json"),
    ([payload({"blob": HELLO, "meta": [1]})], "invalid payload json"),
    ([payload({"blob": HELLO, "meta": "text"})], "invalid payload json"),
    ([payload({"blob": HELLO, "format": "xml"})], "invalid format"),
    ([payload({"blob": HELLO, "meta": {"k": "x" * 65529}})], "meta size exceeds 64KB limit"),
    ([payload({"blob": HELLO, "meta": {"k": "\0"}})], "meta"),
    # With two.
    ([payload({"blob": HELLO})] * 2, "payload: stands in the form twice"),
    ([payload(with_files("a")), part("a", b"a", "a.txt"), payload({"blob": HELLO})], "payload: stands"),
    # Without the file.
    ([payload(with_files("a"))], "missing file a"),
    ([payload(with_files("here", "gone")), part("here", b"a", "a.txt")], "missing file gone"),
    ([payload(with_files("a")), part("A", b"a", "a.txt")], "missing file a"),
    ([payload(with_files("a")), part("a ", b"a", "a.txt")], "missing file a"),
    # A text is no file.
    ([payload(with_files("a")), part("a", b"a")], "missing file a"),
    # With one whose name cannot be kept.
    ([payload(with_files("a")), part("a", b"a", "n" * 1025)], "a: "),
    ([payload(with_files("a")), part("a", b"a", "n" * 10_000 + ".txt")], "a: "),
    ([payload(with_files("a")), part("a", b"a", disposition="form-data; name=\"a\"; filename*=UTF-8''a%00b")], "a: "),
    ([payload(with_files("a")), part("a", b"a", disposition=b'form-data; name="a"; filename="\xff"')], "a: "),
]


@pytest.mark.parametrize("form, words", WRONG_FORMS)
def test_a_form_that_makes_no_sense_is_refused_by_name(server, session, form, words):
    answer = post_form(server, session.id, *form)
    assert answer.status == 400
    assert words in answer.refusal()
    assert nothing_was_stored(server, session)


def test_a_form_that_is_cut_is_no_message(server, session):
    body = upload(payload(with_files("a")), part("a", b"hello", "a.txt"))
    for cut in (body[:-3], body[: -len(BOUNDARY) - 6], body[:100], b"", b"no form at all"):
        answer = post(server, session.id, cut, {"Content-Type": FORM})
        assert answer.status == 400 and answer.refusal()
    answer = post(server, session.id, body, {"Content-Type": "multipart/form-data"})
    assert (answer.status, "Content-Type" in answer.refusal()) == (400, True)
    assert nothing_was_stored(server, session)
    eventually(lambda: not server.files("tmp"), "the removal of what came in")


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_hangs_up_in_a_file_has_stored_nothing(server, session, how):
    body = upload(payload(with_files("a")), part("a", os.urandom(2 * MIB), "half.bin"))
    wire = Wire(server)
    headers = {"Content-Type": FORM, "Content-Length": len(body)}
    wire.ask("POST", f"/api/v1/session/{session.id}/messages", headers)
    wire.send(body[:MIB])
    eventually(lambda: server.files("tmp"), "the upload on its way in")
    getattr(wire, how)()
    eventually(lambda: not server.files("tmp"), "the removal of what came in")
    assert nothing_was_stored(server, session)
    # The same form, whole.
    data(post(server, session.id, body, {"Content-Type": FORM}), 201)


@pytest.mark.parametrize(
    "name, kept",
    [
        ("größe 寿司 🍣.TXT", "größe 寿司 🍣.TXT"),
        ("from/elsewhere/../a.tar.GZ", "a.tar.GZ"),
        ("C:\\\\docs\\\\a.txt", "a.txt"),
        ("n" * 1024, "n" * 1024),
        ("..", ".."),
    ],
    ids=lambda value: value[:20],
)
def test_a_file_keeps_its_name_without_its_folder(server, session, name, kept):
    (stored,) = data(post_form(server, session.id, payload(with_files("a")), part("a", b"a", name)), 201)["parts"]
    assert stored["filename"] == kept
    key, sha256 = stored["asset"]["s3_key"], stored["asset"]["sha256"]
    # The public name has the last extension only, in lower case.
    extension = "." + kept.rpartition(".")[2].lower() if "." in kept else ""
    assert key.endswith(f"/{sha256}{extension}") and key.startswith(f"assets/{session.project_id}/")


# ----- limits -----


def test_a_thousand_parts_are_a_message_and_one_more_is_none(server, session):
    bodies = {
        "parts": lambda count: acontext(*[TEXT] * count),
        "gemini parts": lambda count: gemini(*[{"text": "x"}] * count),
        "content": lambda count: openai(role="user", content=[TEXT] * count),
        "anthropic content": lambda count: anthropic(role="user", content=[TEXT] * count),
    }
    for name, body in bodies.items():
        data(post(server, session.id, body(1000)), 201)
        for answer in (post(server, session.id, body(1001)), post_form(server, session.id, payload(body(1001)))):
            assert answer.status == 400
            assert name.split()[-1] in answer.refusal() and "1000" in answer.refusal()
    assert [len(item["parts"]) for item in shown(server, session.id)] == [1000] * 4


def test_a_thousand_tool_calls_are_a_message_and_one_more_is_none(server, session):
    """They are parts like any other."""

    def body(count):
        function = {"name": "f", "arguments": "{}"}
        calls = [{"id": f"c{number}", "type": "function", "function": function} for number in range(count)]
        return openai(role="assistant", tool_calls=calls)

    assert len(data(post(server, session.id, body(1000)), 201)["parts"]) == 1000
    answer = post(server, session.id, body(1001))
    assert answer.status == 400
    assert "tool_calls" in answer.refusal() and "1000" in answer.refusal()


def test_sixty_four_files_may_come_and_one_more_may_not(server, session):
    def form(count, named):
        files = [part(f"f{n}", f"content {n}".encode(), f"{n}.txt") for n in range(count)]
        return [payload(with_files(*(f"f{n}" for n in range(named)))), *files]

    message = data(post_form(server, session.id, *form(64, 64)), 201)
    assert [each["filename"] for each in message["parts"]] == [f"{n}.txt" for n in range(64)]
    # Whether anybody asks for it or not.
    for named in (65, 1):
        answer = post_form(server, session.id, *form(65, named))
        assert answer.status == 400
        assert "f64" in answer.refusal() and "64 files" in answer.refusal()
    assert len(shown(server, session.id)) == 1
    eventually(lambda: not server.files("tmp"), "the removal of what came in")


@pytest.mark.parametrize("asked_for", [True, False])
def test_a_file_over_sixteen_mebibytes_is_413(server, session, asked_for):
    message = with_files("big") if asked_for else {"blob": HELLO}
    answer = post_form(server, session.id, payload(message), part("big", b"\0" * (16 * MIB + 1), "big.bin"))
    assert answer.status == 413
    assert "16.00MB" in answer.refusal()
    assert nothing_was_stored(server, session)
    eventually(lambda: not server.files("tmp"), "the removal of what came in")


def test_a_message_over_128_mebibytes_is_413(server, session):
    fields = [f"f{n}" for n in range(9)]
    form = upload(payload(with_files(*fields)), *(part(field, b"\0" * (15 * MIB), "big.bin") for field in fields))
    with Wire(server) as wire:
        # In chunks, so that nobody knows at the beginning how much it will be.
        headers = {"Content-Type": FORM, "Transfer-Encoding": "chunked"}
        wire.ask("POST", f"/api/v1/session/{session.id}/messages", headers)
        # It may hang up before all has come, but not without an answer.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for start in range(0, len(form), MIB):
                chunk = form[start : start + MIB]
                wire.send(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            wire.send(b"0\r\n\r\n")
        answer = wire.answer("POST")
    assert answer.status == 413
    assert answer.refusal()
    assert nothing_was_stored(server, session)
    eventually(lambda: not server.files("tmp"), "the removal of what came in")


def test_a_body_over_32_mebibytes_is_413(server, session):
    body = b'{"blob":{"role":"user","content":"' + b"x" * (32 * MIB) + b'"}}'
    for answer in (post(server, session.id, body), post_form(server, session.id, payload(body))):
        assert answer.status == 413
        assert answer.refusal()
    assert nothing_was_stored(server, session)


def test_a_length_that_is_too_large_is_refused_before_the_body_comes(server, session):
    for content_type, length in (("application/json", 33 * MIB), (FORM, 200 * MIB)):
        with Wire(server) as wire:
            headers = {"Content-Type": content_type, "Content-Length": length}
            wire.ask("POST", f"/api/v1/session/{session.id}/messages", headers)
            # Not a byte of it was sent.
            answer = wire.answer()
        assert answer.status == 413
        assert answer.refusal()


def test_a_message_of_many_mebibytes_is_a_message(server, session):
    text = "ein langer Satz, der nicht endet, " * 300_000
    message = data(post(server, session.id, openai(role="user", content=text)), 201)
    assert message["parts"] == [{"type": "text", "text": text}]
    assert shown(server, session.id, "openai") == [{"role": "user", "content": text}]
    assert data(get(server, session.id), 200)["this_time_tokens"] > 1_000_000


def test_a_meta_that_is_large_when_it_is_written_differently_is_measured_as_sent(server, session):
    """Spaces do not count, and neither does how a character was escaped."""
    meta = b'{"k" : ' + b" " * 70_000 + b'"' + b"\\u0078" * 60_000 + b'"}'
    message = data(post(server, session.id, b'{"blob":{"role":"user","content":"x"},"meta":' + meta + b"}"), 201)
    assert message["meta"] == {"k": "x" * 60_000}


# ----- patches -----


@pytest.mark.parametrize(
    "body, field",
    [
        *((body, "body") for body in (b"", b"{", [], [{"kept": 0}], "text", 5)),
        *((body, "meta") for body in (None, {}, {"meta": None}, {"other": {}})),
        *(({"meta": meta}, "meta") for meta in ([], "x", 1, True)),
        ({"meta": {"k": "x" * 65529}}, "meta size exceeds 64KB limit"),
        (b'{"meta":{"a":' + b"[" * 200 + b"]" * 200 + b"}}", "body"),
    ],
)
def test_a_patch_that_makes_no_sense_is_refused_by_name(server, session, body, field):
    message = data(post(server, session.id, {"blob": HELLO, "meta": {"kept": 1}}), 201)
    answer = patch(server, session.id, message["id"], body)
    assert answer.status == 400
    assert data(get(server, session.id), 200)["metas"] == [{"kept": 1}]
    assert field in answer.refusal()


def test_patches_cannot_pile_up_beyond_every_limit(server, session):
    message = data(post(server, session.id, {"blob": HELLO}), 201)
    statuses = []
    for number in range(20):
        statuses.append(patch(server, session.id, message["id"], {"meta": {f"k{number}": "x" * 65_000}}).status)
    assert statuses == [200] * statuses.count(200) + [413] * statuses.count(413)
    assert 0 < statuses.count(413) < 20
    (meta,) = data(get(server, session.id), 200)["metas"]
    assert len(meta) == statuses.count(200)
    # It can be made smaller again.
    assert data(patch(server, session.id, message["id"], {"meta": dict.fromkeys(meta)}), 200) == {"meta": {}}


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
def test_a_question_that_makes_no_sense_is_refused_by_name(server, session, query, field):
    answer = get(server, session.id, f"?{query}")
    assert answer.status == 400
    assert field in answer.refusal()


READABLE = [
    *("limit=", "limit=%205%20", "limit=5&limit=x", "limit=0&cursor=garbage", "cursor=garbage", "limit=5&cursor="),
    *("format=", "time_desc=", "time_desc=1", "time_desc=T", "time_desc=True", "time_desc=f"),
    *("with_events=1", "with_events=true", "with_asset_public_url=0"),
    *("edit_strategies=", "edit_strategies=null", "edit_strategies=[]", "pin_editing_strategies_at_message=nothing"),
    "unknown=1&id=x",
]


@pytest.mark.parametrize("query", READABLE)
def test_a_question_is_read_as_clients_send_it(server, session, query):
    message = data(post(server, session.id, {"blob": HELLO}), 201)
    got = data(get(server, session.id, f"?{query}"), 200)
    assert (got["items"], got["ids"]) == ([HELLO], [message["id"]])


def test_questions_may_be_called_json(server, session):
    data(post(server, session.id, {"blob": HELLO}), 201)
    answer = exchange(server, "GET", f"/api/v1/session/{session.id}/messages?limit=1", JSON)
    assert data(answer, 200)["items"] == [HELLO]


def test_a_cursor_of_another_list_is_a_position(server, client, session):
    """It is as old as that session is: everything in a later one comes after it."""
    user = f"user-{uuid.uuid4()}"
    for _ in range(2):
        client.sessions.create(user=user)
    cursor = client.sessions.list(user=user, limit=1).next_cursor
    message = data(post(server, session.id, {"blob": HELLO}), 201)
    assert data(get(server, session.id, f"?limit=5&cursor={cursor}"), 200)["ids"] == [message["id"]]
    assert data(get(server, session.id, f"?limit=5&time_desc=true&cursor={cursor}"), 200)["ids"] == []


# ----- sessions that are not there -----


# Each is stored in a way of its own.
KINDS = {
    "short": {"blob": HELLO},
    "long": {"blob": {"role": "user", "content": "x" * 100_000}},
    "with a file": with_files("f"),
    "an answer": gemini({"functionResponse": {"name": "f", "response": {}}}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_for_a_session_that_is_not_there_is_404(server, session, kind):
    body = KINDS[kind]
    _, foreign_key = new_project(server)
    foreign = {"Authorization": f"Bearer {foreign_key}"}
    form = [payload(body), part("f", f"for nobody {session.id}".encode(), "a.txt")]
    for session_id, headers in ((NOBODYS, {}), (NIL, {}), (session.project_id, {}), (session.id, foreign)):
        answers = [post_form(server, session_id, *form, headers=headers)]
        if kind != "with a file":
            answers.append(post(server, session_id, body, JSON | headers))
        for answer in answers:
            assert (answer.status, answer.refusal()) == (404, "session not found")
    for answer in (post(server, "nonsense", body), post_form(server, "nonsense", *form)):
        assert (answer.status, "session_id" in answer.refusal()) == (400, True)
    assert nothing_was_stored(server, session)
    sha256 = hashlib.sha256(f"for nobody {session.id}".encode()).hexdigest()
    assert server.psql(f"select count(*) from blobs where sha256 = '{sha256}' and state = 'live'") == "0"
    assert server.psql(f"select count(*) from message_files where sha256 = '{sha256}'") == "0"


@pytest.mark.parametrize("key", [None, "Bearer sk-ac-wrong", "Bearer", "Basic abc"])
def test_a_message_wants_a_key_before_all_else(server, session, key):
    for session_id in (session.id, "nonsense"):
        for answer in (
            post(server, session_id, b"{broken", JSON | {"Authorization": key}),
            post_form(server, session_id, payload({"blob": HELLO}), headers={"Authorization": key}),
            patch(server, session_id, NOBODYS, {"meta": {}}, JSON | {"Authorization": key}),
            exchange(server, "GET", f"/api/v1/session/{session_id}/messages", {"Authorization": key}),
            exchange(server, "GET", f"/api/v1/session/{session_id}/asset/download?s3_key=x", {"Authorization": key}),
            exchange(server, "GET", f"/api/v1/session/{session_id}/token_counts", {"Authorization": key}),
        ):
            assert (answer.status, answer.refusal()) == (401, "Unauthorized")
    assert nothing_was_stored(server, session)


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
def test_there_are_no_other_ways_to_a_message(server, session, method, path):
    message = data(post(server, session.id, {"blob": HELLO}), 201)
    answer = exchange(server, method, f"/api/v1/session/{session.id}/{path.format(message['id'])}", JSON, b"{}")
    assert answer.status == 404
    assert answer.refusal()
    assert data(get(server, session.id), 200)["items"] == [HELLO]


# ----- downloads by the public name -----


@pytest.fixture
def stored(server, session):
    """A message with one file: its part."""
    form = [payload(with_files("f")), part("f", b"0123456789", "a.txt")]
    return data(post_form(server, session.id, *form), 201)["parts"][0]


def download(server, session_id, key, method="GET", **headers):
    path = f"/api/v1/session/{session_id}/asset/download?s3_key={key}"
    return exchange(server, method, path, {name.replace("_", "-"): value for name, value in headers.items()})


def test_a_file_is_downloaded_by_its_public_name(server, session, stored):
    key = stored["asset"]["s3_key"]
    answer = download(server, session.id, key)
    assert (answer.status, answer.body) == (200, b"0123456789")
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["ETag"] == f'"{stored["asset"]["sha256"]}"'
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert download(server, session.id, key, Range="bytes=2-5").body == b"2345"
    assert download(server, session.id, key, If_None_Match="*").status == 304
    assert download(server, session.id, key, "HEAD").headers["Content-Length"] == "10"


def test_a_file_is_downloaded_from_its_own_session_only(server, client, session, stored):
    key = stored["asset"]["s3_key"]
    elsewhere = client.sessions.create()
    assert download(server, elsewhere.id, key).status == 404
    assert download(server, NOBODYS, key).refusal() == "session not found"
    assert download(server, "nonsense", key).status == 400
    _, foreign_key = new_project(server)
    answer = download(server, session.id, key, Authorization=f"Bearer {foreign_key}")
    assert (answer.status, "does not belong to this project" in answer.refusal()) == (403, True)
    assert download(server, session.id, key).status == 200


def test_names_of_no_file_are_refused(server, session, stored):
    prefix = f"assets/{session.project_id}/"
    answer = download(server, session.id, "")
    assert (answer.status, "s3_key" in answer.refusal()) == (400, True)
    for foreign in (f"assets/{NOBODYS}/2026/01/01/x.txt", "x", "../../etc/passwd", prefix[:-1]):
        answer = download(server, session.id, foreign)
        assert (answer.status, "asset does not belong to this project" in answer.refusal()) == (403, True)
    for missing in (f"{prefix}2026/01/01/none.txt", f"{prefix}..%2F..", f"{prefix}%00", prefix, f"{prefix}%25"):
        answer = download(server, session.id, missing)
        assert (answer.status, bool(answer.refusal())) == (404, True)


# ----- other clients -----


@pytest.mark.parametrize("more", [{}, {"type": "text"}, {"format": "openai"}, {"meta": {"via": "cli"}}])
def test_the_command_line_sends_the_message_itself(server, session, more):
    message = data(post(server, session.id, {"role": "user", "content": "by hand", **more}), 201)
    assert (message["parts"], message["meta"]) == ([{"type": "text", "text": "by hand"}], more.get("meta", {}))
    assert shown(server, session.id, "openai") == [{"role": "user", "content": "by hand"}]


@pytest.mark.parametrize(
    "body", [{"role": "bot", "content": "x"}, {"role": "user", "content": None}, {"role": None, "content": "x"}]
)
def test_a_message_itself_is_checked_like_any_other(server, session, body):
    answer = post(server, session.id, body)
    assert answer.status == 400
    assert answer.refusal()
    assert nothing_was_stored(server, session)


def test_the_dashboard_sends_several_files_with_names_of_its_own(server, session):
    """Fields are ids that it made up, texts come before files, and every part says null where it has nothing."""
    fields = [f"file_{uuid.uuid4()}" for _ in range(3)]
    parts = [{"type": "text", "text": "see", "meta": None, "file_field": None}]
    parts += [{"type": "file", "text": None, "meta": None, "file_field": field} for field in fields]
    body = {"format": "acontext", "blob": {"role": "user", "meta": None, "parts": parts}}
    files = [part(field, f"file {n}".encode(), f"{n}.txt") for n, field in enumerate(fields)]
    message = data(post_form(server, session.id, payload(body), *files), 201)
    assert [each.get("filename") for each in message["parts"]] == [None, "0.txt", "1.txt", "2.txt"]
    assert all("file_field" not in each and None not in each.values() for each in message["parts"])
    got = data(get(server, session.id, "?limit=50&with_asset_public_url=true&with_events=true&format=acontext"), 200)
    for each in message["parts"][1:]:
        assert got["public_urls"][each["asset"]["sha256"]]["url"]
        assert got["public_urls"][each["asset"]["sha256"]]["expire_at"]


# ----- many at once -----


def test_many_connections_store_on_one_session(server, session):
    """Sixteen of them, twenty messages each, in several formats and sizes: one unbroken chain."""
    kinds = [
        openai(role="user", content="short"),
        anthropic(role="assistant", content=[{"type": "text", "text": "blocks"}]),
        gemini({"text": "gemini"}),
        openai(role="user", content="long " * 10_000),
    ]

    def work(thread):
        answers = []
        with Wire(server) as wire:
            for number in range(20):
                body = kinds[(thread + number) % len(kinds)] | {"meta": {"thread": thread, "number": number}}
                wire.ask("POST", f"/api/v1/session/{session.id}/messages", JSON, encoded(body))
                answers.append(data(wire.answer("POST"), 201))
        return answers

    with ThreadPoolExecutor(16) as pool:
        stored = [message for answers in pool.map(work, range(16)) for message in answers]
    items = shown(server, session.id)
    assert len(items) == 16 * 20
    assert {item["id"] for item in items} == {message["id"] for message in stored}
    assert [item["parent_id"] for item in items] == [None] + [item["id"] for item in items[:-1]]
    # Texts of the same form, but for the fraction of a second, whose trailing zeros are left out.
    times = [item["created_at"].rstrip("Z").partition(".") for item in items]
    times = [(second, fraction.ljust(6, "0")) for second, _, fraction in times]
    assert all(earlier < later for earlier, later in zip(times, times[1:]))
    for thread in range(16):
        metas = [item["meta"]["__user_meta__"] for item in items]
        assert [meta["number"] for meta in metas if meta["thread"] == thread] == list(range(20))
