"""What the SDK cannot say: odd requests, partial downloads, hang-ups, and headers that it does not show."""

import hashlib
import json
import os
import socket
from urllib.parse import quote, unquote, urlsplit

import pytest

from acontext import FileUpload
from support import eventually, new_project, refused
from wire import BOUNDARY, FORM, Wire, exchange, head, part, upload

CONTENT = b"0123456789"
ETAG = f'"{hashlib.sha256(CONTENT).hexdigest()}"'
JSON = {"Content-Type": "application/json"}
NOBODYS = "00000000-0000-4000-8000-000000000000"


def names(client, disk):
    return [artifact.path + artifact.filename for artifact in client.artifacts.glob_artifacts(disk.id, query="*")]


def send_form(server, disk, *parts):
    with Wire(server) as wire:
        body = upload(*parts)
        wire.post_upload(disk.id, body)
        wire.send(body)
        return wire.answer()


# ----- the id of a request -----


def log_lines(server, request_id):
    return [line for line in server.log_lines() if line.get("request.id") == request_id]


@pytest.mark.parametrize("path", ["/api/v1/ping", "/health", "/ready", "/nowhere", "/api/v1/material/none"])
def test_every_answer_has_an_id_of_its_own(server, path):
    ids = {exchange(server, "GET", path).headers["X-Request-Id"] for _ in range(3)}
    assert None not in ids and len(ids) == 3


def test_the_id_that_was_sent_is_answered_and_logged(server):
    for path, key in [("/api/v1/ping", server.key), ("/api/v1/disk", "sk-ac-wrong"), ("/nowhere", "")]:
        sent = f"sent-by-a-proxy/{path}"
        headers = {"X-Request-Id": sent, "Authorization": f"Bearer {key}"}
        answer = exchange(server, "GET", path, headers)
        assert answer.headers.get_all("X-Request-Id") == [sent]
        (line,) = eventually(lambda: log_lines(server, sent), "its line in the log")
        assert (line["method"], line["path"], line["status"]) == ("GET", path, answer.status)
        assert line["duration_ms"] >= 0


@pytest.mark.parametrize("sent", ["two words", "x" * 129, "größe", ""])
def test_an_id_that_is_none_is_not_taken_over(server, sent):
    answered = exchange(server, "GET", "/health", {"X-Request-Id": sent}).headers["X-Request-Id"]
    assert answered and answered != sent and answered.isascii()


def test_the_log_has_a_line_for_each_request_and_no_secrets(server, client, disk):
    client.artifacts.upsert(disk.id, file=FileUpload("secret.txt", b"secret-in-a-file"), meta={"a": "secret-in-meta"})
    link = client.artifacts.get(disk.id, file_path="/", filename="secret.txt").public_url
    token = link.rpartition("/")[2]
    exchange(server, "GET", urlsplit(link).path)
    exchange(server, "GET", urlsplit(link).path + "/")
    exchange(server, "GET", f"/api/v1/materials/{token}")
    exchange(server, "GET", "/api/v1/ping", {"Authorization": "Bearer sk-ac-secret-key-that-is-wrong"})
    exchange(server, "POST", "/api/v1/disk", JSON, b'{"user": ["secret-in-a-refused-body"]}')
    search = f"/api/v1/disk/{disk.id}/artifact/grep?query=secret-in-a-query"
    exchange(server, "GET", search, {"X-Request-Id": "the-last"})
    (last,) = eventually(lambda: log_lines(server, "the-last"), "its line in the log")
    assert last["project.id"] == disk.project_id
    for secret in ("secret-in", "sk-ac-", token[:40], token[-40:]):
        assert secret not in server.log()


# ----- downloads and links -----


@pytest.fixture(params=["download", "link"])
def stored(request, server, client, disk):
    """Stores a file and returns how to ask for it: with the key, or by its public link without one."""

    def store(name="a.txt", content=CONTENT):
        assert send_form(server, disk, part("file", content, filename=name)).status == 201
        if request.param == "download":
            path = f"/api/v1/disk/{disk.id}/artifact/download?file_path={quote('/' + name)}"
            key = f"Bearer {server.key}"
        else:
            got = client.artifacts.get(disk.id, file_path="/", filename=name, with_content=False)
            path, key = urlsplit(got.public_url).path, None

        def ask(method="GET", **headers):
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            return exchange(server, method, path, {"Authorization": key, **headers})

        return ask

    return store


def test_a_download_is_the_file(stored):
    answer = stored()()
    assert (answer.status, answer.body) == (200, CONTENT)
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.headers["Content-Length"] == "10"
    assert answer.headers["ETag"] == ETAG
    assert answer.headers["Accept-Ranges"] == "bytes"


def test_head_answers_the_headers_of_get(stored):
    ask = stored()
    ours = ("X-Request-Id", "Date")
    with_body, without = ask(), ask("HEAD")
    assert without.status == 200
    assert [each for each in without.headers.items() if each[0].title() not in ours] == [
        each for each in with_body.headers.items() if each[0].title() not in ours
    ]


def test_head_sends_no_body(server, client, disk):
    """A body would be taken for the beginning of the next answer."""
    client.artifacts.upsert(disk.id, file=FileUpload("a.txt", CONTENT))
    with Wire(server) as wire:
        for _ in range(2):
            wire.ask("HEAD", f"/api/v1/disk/{disk.id}/artifact/download?file_path=/a.txt")
            assert wire.answer("HEAD").status == 200
        wire.ask("GET", "/api/v1/ping")
        assert wire.answer().json()["msg"] == "pong"


@pytest.mark.parametrize(
    "asked, sent, shown",
    [
        ("bytes=2-5", b"2345", "bytes 2-5/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=-100", CONTENT, "bytes 0-9/10"),
        ("bytes=8-100", b"89", "bytes 8-9/10"),
        ("bytes=0-0", b"0", "bytes 0-0/10"),
    ],
)
def test_a_range_is_answered_alone(stored, asked, sent, shown):
    answer = stored()(Range=asked)
    assert (answer.status, answer.body) == (206, sent)
    assert answer.headers["Content-Range"] == shown
    assert answer.headers["ETag"] == ETAG


def test_a_range_in_the_middle_of_a_large_file(stored):
    content = os.urandom(3 << 20)
    answer = stored("large.bin", content)(Range="bytes=1000000-2500000")
    assert (answer.status, answer.body == content[1000000:2500001]) == (206, True)


@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=10-20", "bytes=-0"])
def test_a_range_outside_of_the_file_is_416(stored, asked):
    answer = stored()(Range=asked)
    assert answer.status == 416
    assert answer.headers["Content-Range"] == "bytes */10"


@pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=x-y", "lines=1-2", "bytes", "2-5"])
def test_a_range_that_is_none_is_ignored(stored, asked):
    answer = stored()(Range=asked)
    assert (answer.status, answer.body) == (200, CONTENT)


def test_a_range_of_a_file_that_has_changed_is_the_whole_file(stored):
    ask = stored()
    assert ask(Range="bytes=2-5", If_Range=ETAG).status == 206
    assert ask(Range="bytes=2-5", If_Range='"another"').body == CONTENT


@pytest.mark.parametrize("tags", [ETAG, f"W/{ETAG}", f'"another", {ETAG}', "*"])
def test_what_the_client_has_is_not_sent_again(stored, tags):
    answer = stored()(If_None_Match=tags)
    assert (answer.status, answer.body) == (304, b"")
    assert answer.headers["ETag"] == ETAG


@pytest.mark.parametrize("tags", ['"another"', f'W/"x{ETAG[1:]}', ETAG.strip('"')])
def test_what_the_client_has_not_is_sent(stored, tags):
    answer = stored()(If_None_Match=tags)
    assert (answer.status, answer.body) == (200, CONTENT)


def test_an_empty_file_is_an_empty_answer(stored):
    ask = stored("empty.txt", b"")
    answer = ask()
    assert (answer.status, answer.headers["Content-Length"], answer.body) == (200, "0", b"")
    assert ask("HEAD").status == 200
    assert ask(Range="bytes=0-").status in (200, 416)


@pytest.mark.parametrize("name", ["größe 寿司 🍣.txt", "a;b=c, d.txt", "it's 100%.txt", "back\\slash.txt"])
def test_a_name_arrives_as_it_is(stored, name):
    shown = stored(name)().headers["Content-Disposition"]
    charset, _, encoded = shown.partition("filename*=")[2].split("'")
    assert (charset.upper(), unquote(encoded, errors="strict")) == ("UTF-8", name)
    # For clients that know the old form only.
    plain = shown.partition('filename="')[2]
    assert plain.isascii() and "\\" not in plain


def test_a_name_cannot_leave_its_header(server, disk):
    # Quotes and line ends, the way the standard lets a client send them.
    disposition = "form-data; name=\"file\"; filename*=UTF-8''a%22%0D%0ASet-Cookie%3A%20a%3Db%0D%0A%0D%0Ab.txt"
    stored = send_form(server, disk, part("file", CONTENT, disposition=disposition))
    if stored.status == 400:
        return
    name = stored.json()["data"]["filename"]
    assert name == 'a"\r\nSet-Cookie: a=b\r\n\r\nb.txt'
    answer = exchange(server, "GET", f"/api/v1/disk/{disk.id}/artifact/download?file_path={quote('/' + name)}")
    assert (answer.status, answer.body) == (200, CONTENT)
    assert answer.headers["Set-Cookie"] is None
    assert answer.headers["Content-Disposition"].count('"') == 2


@pytest.mark.parametrize(
    "name, content, kind",
    [
        ("page.html", b"<!DOCTYPE html><script>alert(1)</script>", "attachment"),
        # Names say nothing: the content is a page.
        ("page.txt", b"<html><script>alert(1)</script></html>", "attachment"),
        ("image.svg", b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "attachment"),
        ("page.xhtml", b'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"></html>', "attachment"),
        ("code.js", b"alert(1)\n", "attachment"),
        ("notes.md", b"# Notes\n", "inline"),
        ("raw.bin", b"\0\1\2", "inline"),
    ],
)
def test_what_browsers_execute_is_not_shown_on_our_origin(stored, name, content, kind):
    ask = stored(name, content)
    for answer in (ask(), ask("HEAD"), ask(Range="bytes=0-1"), ask(If_None_Match="*")):
        assert answer.status in (200, 206, 304)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Security-Policy"] == "sandbox"
        assert answer.headers["Content-Disposition"].startswith(f"{kind};")


def test_a_download_wants_a_key_and_a_link_does_not(server, client, disk):
    client.artifacts.upsert(disk.id, file=FileUpload("a.txt", CONTENT))
    path = f"/api/v1/disk/{disk.id}/artifact/download?file_path=/a.txt"
    for key in (None, "Bearer sk-ac-wrong", f"Basic {server.key}", "Bearer"):
        assert exchange(server, "GET", path, {"Authorization": key}).refusal() == "Unauthorized"
        assert exchange(server, "HEAD", path, {"Authorization": key}).status == 401
    link = urlsplit(client.artifacts.get(disk.id, file_path="/", filename="a.txt").public_url).path
    for key in (None, "Bearer sk-ac-wrong", "nonsense"):
        assert exchange(server, "GET", link, {"Authorization": key}).body == CONTENT


def test_a_download_of_another_project_is_403(server, disk, client):
    client.artifacts.upsert(disk.id, file=FileUpload("a.txt", CONTENT))
    _, key = new_project(server)
    for name in ("a.txt", "missing.txt"):
        path = f"/api/v1/disk/{disk.id}/artifact/download?file_path=/{name}"
        assert exchange(server, "GET", path, {"Authorization": f"Bearer {key}"}).status == 403
    missing = exchange(server, "GET", f"/api/v1/disk/{disk.id}/artifact/download?file_path=/missing.txt")
    assert (missing.status, missing.refusal()) == (404, "artifact not found")


@pytest.mark.parametrize("token", ["none", "%00", "%FF", "x" * 5000, "..%2F..%2Fdisk", "="])
def test_a_link_that_is_none_is_404(server, token):
    answer = exchange(server, "GET", f"/api/v1/material/{token}", {"Authorization": None})
    # What is not even text may be told apart.
    assert answer.status == 404 or (token == "%FF" and answer.status == 400)
    assert answer.refusal()


# ----- hanging up -----


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("cut", ["in the file", "before the end of the form", "in the fields"])
@pytest.mark.parametrize("announced", ["by length", "in chunks"])
def test_a_client_that_hangs_up_leaves_nothing(server, client, disk, how, cut, announced):
    content = os.urandom(2 << 20)
    body = upload(part("file", content, filename="half.bin"), part("file_path", b"/later/"))
    sent = {
        "in the file": body[: 1 << 20],
        "before the end of the form": body[: -len(BOUNDARY) - 6],
        "in the fields": body[: body.index(b"/later/") + 3],
    }[cut]
    objects = server.files("objects")
    wire = Wire(server)
    headers = {"Content-Type": FORM, "Expect": "100-continue"}
    if announced == "by length":
        headers["Content-Length"] = len(body)
    else:
        headers["Transfer-Encoding"] = "chunked"
        sent = b"%x\r\n%s\r\n" % (len(sent), sent)
    wire.ask("POST", f"/api/v1/disk/{disk.id}/artifact", headers)
    assert wire.answer().status == 100
    wire.send(sent)
    eventually(lambda: server.files("tmp"), "the upload on its way in")
    getattr(wire, how)()
    eventually(lambda: not server.files("tmp"), "the removal of what came in")
    assert names(client, disk) == []
    assert server.psql(f"select count(*) from artifacts where disk_id = '{disk.id}'") == "0"
    assert server.psql(f"select count(*) from artifact_versions where disk_id = '{disk.id}'") == "0"
    assert server.psql(f"select count(*) from blobs where sha256 = '{hashlib.sha256(content).hexdigest()}'") == "0"
    assert server.files("objects") == objects
    # The same upload, whole.
    assert send_form(server, disk, part("file", content, filename="half.bin")).status == 201


def test_a_client_that_hangs_up_keeps_the_former_content(server, client, disk):
    client.artifacts.upsert(disk.id, file=FileUpload("a.txt", b"the former one"))
    body = upload(part("file", b"x" * (1 << 20), filename="a.txt"))
    wire = Wire(server)
    wire.post_upload(disk.id, body)
    wire.send(body[: 1 << 19])
    eventually(lambda: server.files("tmp"), "the upload on its way in")
    wire.reset()
    eventually(lambda: not server.files("tmp"), "the removal of what came in")
    assert client.artifacts.get(disk.id, file_path="/", filename="a.txt").content.raw == "the former one"


def test_a_client_that_does_not_wait_for_the_answer_has_stored_its_file(server, client, disk):
    """All bytes came: then it does not matter who listens."""
    body = upload(part("file", CONTENT * 50_000, filename="a.txt"))
    wire = Wire(server)
    wire.post_upload(disk.id, body)
    wire.send(body)
    wire.socket.shutdown(socket.SHUT_WR)
    eventually(lambda: names(client, disk) == ["/a.txt"], "the file")
    wire.close()
    assert client.artifacts.get(disk.id, file_path="/", filename="a.txt").content.raw == (CONTENT * 50_000).decode()


def test_a_reader_that_hangs_up_harms_nobody(server, client, disk):
    client.artifacts.upsert(disk.id, file=FileUpload("large.bin", os.urandom(8 << 20)))
    for _ in range(5):
        wire = Wire(server)
        wire.ask("GET", f"/api/v1/disk/{disk.id}/artifact/download?file_path=/large.bin")
        wire.reader.read(1000)
        wire.reset()
    assert client.ping() == "pong"


# ----- bodies -----


@pytest.mark.parametrize(
    "body",
    [
        b'{"user": "alice"',
        b'{"user": "alice}',
        b'{"user": ',
        b"{",
        b"\xff\xfe",
        b'{"user": "\xff"}',
        b"{'user': 'alice'}",
        b'{"user": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"user": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}",
        b"[" * 10_000,
        b"[]",
        b'"user"',
        b'{"user": 1}',
        b'{"user": {"name": "alice"}}',
    ],
    ids=lambda body: repr(body[:24]),
)
def test_a_body_that_is_no_json_object_is_refused(server, client, body):
    before = server.psql("select count(*) from disks")
    answer = exchange(server, "POST", "/api/v1/disk", JSON, body)
    assert answer.status == 400
    assert "body" in answer.refusal() or "user" in answer.refusal()
    assert server.psql("select count(*) from disks") == before
    assert client.ping() == "pong"


def test_meta_may_not_be_deep_beyond_measure(server, client, disk):
    deep = b'{"a":' * 10_000 + b"1" + b"}" * 10_000
    answer = send_form(server, disk, part("meta", deep), part("file", CONTENT, filename="a.txt"))
    assert (answer.status, "meta" in answer.refusal()) == (400, True)
    assert names(client, disk) == []
    client.artifacts.upsert(disk.id, file=FileUpload("a.txt", CONTENT))
    body = json.dumps({"file_path": "/a.txt", "meta": deep.decode()}).encode()
    answer = exchange(server, "PUT", f"/api/v1/disk/{disk.id}/artifact", JSON, body)
    assert (answer.status, "meta" in answer.refusal()) == (400, True)
    nested = {"a": 1}
    for _ in range(100):
        nested = {"a": nested}
    updated = client.artifacts.update(disk.id, file_path="/", filename="a.txt", meta=nested)
    assert updated.artifact.meta["a"] == nested["a"]


def test_deep_json_in_a_file_is_just_a_file(server, client, disk):
    content = b"[" * 100_000 + b"]" * 100_000
    client.artifacts.upsert(disk.id, file=FileUpload("deep.json", content))
    got = client.artifacts.get(disk.id, file_path="/", filename="deep.json")
    assert exchange(server, "GET", urlsplit(got.public_url).path).body == content


@pytest.mark.parametrize("meta", [b"[]", b"1", b'"a"', b"{", b"{'a': 1}", b'{"a": 1} x', b'{"n": 1e99999999}'])
def test_meta_that_is_no_json_object_is_refused(server, client, disk, meta):
    answer = send_form(server, disk, part("meta", meta), part("file", CONTENT, filename="a.txt"))
    assert (answer.status, "meta" in answer.refusal()) == (400, True)
    assert names(client, disk) == []


@pytest.mark.parametrize("meta", [None, 1, {"a": 1}, "", "nothing"])
def test_an_update_wants_meta_as_text(server, client, disk, meta):
    client.artifacts.upsert(disk.id, file=FileUpload("a.txt", CONTENT), meta={"kept": True})
    body = json.dumps({"file_path": "/a.txt", "meta": meta}).encode()
    answer = exchange(server, "PUT", f"/api/v1/disk/{disk.id}/artifact", JSON, body)
    assert (answer.status, "meta" in answer.refusal()) == (400, True)
    assert client.artifacts.list(disk.id).artifacts[0].meta["kept"] is True


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "multipart/form-data", "multipart/mixed", None]
)
def test_an_upload_that_is_no_form_is_refused(server, client, disk, content_type):
    body = upload(part("file", CONTENT, filename="a.txt"))
    headers = {"Content-Type": content_type}
    answer = exchange(server, "POST", f"/api/v1/disk/{disk.id}/artifact", headers, body)
    assert (answer.status, answer.refusal()) == (400, "file is required")
    assert names(client, disk) == []


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [part("file_path", b"/docs/")],
        # A text field is no file.
        [part("file", CONTENT)],
        [part("file", CONTENT, filename="")],
        [part("other", CONTENT, filename="a.txt")],
    ],
    ids=["nothing", "only a field", "no file", "no name", "another field"],
)
def test_a_form_without_a_file_is_refused(server, client, disk, parts):
    answer = send_form(server, disk, *parts)
    assert (answer.status, answer.refusal()) == (400, "file is required")
    assert names(client, disk) == []


@pytest.mark.parametrize("name", ["file", "file_path", "meta"])
def test_a_field_that_stands_twice_is_refused(server, client, disk, name):
    parts = {
        "file": part("file", CONTENT, filename="a.txt"),
        "file_path": part("file_path", b"/docs/"),
        "meta": part("meta", b"{}"),
    }
    answer = send_form(server, disk, *parts.values(), parts[name])
    assert answer.status == 400
    assert f"{name}:" in answer.refusal()
    assert names(client, disk) == []


def test_fields_come_in_any_order_and_others_are_ignored(server, client, disk):
    answer = send_form(
        server,
        disk,
        part("file", CONTENT, filename="a.txt"),
        part("unknown", b"x"),
        part("meta", b'{"a": 1}'),
        part("file_path", b"/docs/"),
    )
    assert answer.status == 201
    assert answer.json()["data"]["meta"]["a"] == 1
    assert names(client, disk) == ["/docs/a.txt"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no form at all",
        b"--" + BOUNDARY,
        upload(part("file", CONTENT, filename="a.txt"))[:-4],
        upload(part("file", CONTENT, filename="a.txt")).replace(b"\r\n\r\n", b"\r\n"),
        b"--" + BOUNDARY + b"\r\n" + b"X-Long: " + b"x" * 100_000 + b"\r\n\r\n",
    ],
    ids=["empty", "words", "a beginning", "no end", "no headers' end", "endless header"],
)
def test_a_broken_form_is_refused(server, client, disk, body):
    with Wire(server) as wire:
        wire.post_upload(disk.id, body)
        wire.send(body)
        answer = wire.answer()
    assert answer.status == 400
    assert answer.refusal()
    assert names(client, disk) == []


def test_a_form_with_endless_fields_is_refused(server, client, disk):
    many = [part(f"field{number}", b"x") for number in range(1000)]
    answer = send_form(server, disk, *many, part("file", CONTENT, filename="a.txt"))
    assert answer.status == 400
    large = send_form(server, disk, part("meta", b" " * (2 << 20)), part("file", CONTENT, filename="a.txt"))
    assert (large.status, "meta" in large.refusal()) == (413, True)
    assert names(client, disk) == []


def test_meta_has_a_limit(server, client, disk):
    large = b'{"a": "' + b"x" * (1 << 20) + b'"}'
    body = json.dumps({"file_path": "/a.txt", "meta": large.decode()}).encode()
    client.artifacts.upsert(disk.id, file=FileUpload("a.txt", CONTENT))
    answer = exchange(server, "PUT", f"/api/v1/disk/{disk.id}/artifact", JSON, body)
    assert answer.status in (400, 413)
    assert "meta" in answer.refusal()
    assert names(client, disk) == ["/a.txt"]


# ----- characters -----


def test_nul_is_refused_by_name(server, client, disk):
    client.artifacts.upsert(disk.id, file=FileUpload("a.txt", CONTENT), meta={"kept": True})
    artifact = f"/api/v1/disk/{disk.id}/artifact"
    file = part("file", CONTENT, filename="b.txt")
    nul_meta = json.dumps({"a": ["\0"]}).encode()
    nul_key = json.dumps({"a": {"\0": 1}}).encode()
    nul_name = part("file", CONTENT, disposition="form-data; name=\"file\"; filename*=UTF-8''a%00b.txt")
    nul_update = json.dumps({"file_path": "/a.txt", "meta": nul_meta.decode()}).encode()
    nul_path = json.dumps({"file_path": "/a\0.txt", "meta": "{}"}).encode()
    for field, answer in [
        ("user", exchange(server, "POST", "/api/v1/disk", JSON, json.dumps({"user": "a\0b"}).encode())),
        ("user", exchange(server, "GET", "/api/v1/disk?user=a%00b")),
        ("meta", send_form(server, disk, part("meta", nul_meta), file)),
        ("meta", send_form(server, disk, part("meta", nul_key), file)),
        ("meta", exchange(server, "PUT", artifact, JSON, nul_update)),
        ("file_path", exchange(server, "PUT", artifact, JSON, nul_path)),
        ("file_path", send_form(server, disk, part("file_path", b"/a\0b/"), file)),
        ("file_path", exchange(server, "GET", f"{artifact}?file_path=/a%00.txt")),
        ("file_path", exchange(server, "DELETE", f"{artifact}?file_path=/a%00.txt")),
        ("file", send_form(server, disk, nul_name)),
        ("path", exchange(server, "GET", f"{artifact}/ls?path=/a%00/")),
    ]:
        assert answer.status == 400
        assert f"{field}:" in answer.refusal()
    for search in ("grep", "glob"):
        # Nothing is stored; it finds nothing or is refused.
        assert exchange(server, "GET", f"{artifact}/{search}?query=a%00").status in (200, 400)
    assert names(client, disk) == ["/a.txt"]
    assert client.artifacts.list(disk.id).artifacts[0].meta["kept"] is True


def test_names_that_are_no_utf_8_are_refused(server, client, disk):
    artifact = f"/api/v1/disk/{disk.id}/artifact"
    file = part("file", CONTENT, filename="a.txt")
    raw_name = part("file", CONTENT, disposition=b'form-data; name="file"; filename="\xff.txt"')
    escaped_name = part("file", CONTENT, disposition="form-data; name=\"file\"; filename*=UTF-8''%FF")
    for field, answer in [
        ("file", send_form(server, disk, raw_name)),
        ("file", send_form(server, disk, escaped_name)),
        ("file_path", send_form(server, disk, part("file_path", b"/\xff/"), file)),
        ("meta", send_form(server, disk, part("meta", b'{"a": "\xff"}'), file)),
        ("file_path", exchange(server, "GET", f"{artifact}?file_path=/%FF.txt")),
        ("user", exchange(server, "GET", "/api/v1/disk?user=%FF")),
        ("query", exchange(server, "GET", f"{artifact}/glob?query=%FF")),
        ("disk_id", exchange(server, "GET", "/api/v1/disk/%FF/artifact/ls")),
    ]:
        assert answer.status == 400
        assert f"{field}:" in answer.refusal()
    assert names(client, disk) == []


@pytest.mark.parametrize("name", ["..", "../a.txt/..", "..\\a.txt", "C:\\a.txt", "\\\\server\\a.txt", "."])
def test_a_name_that_leads_elsewhere_is_refused(server, client, disk, name):
    answer = send_form(server, disk, part("file", CONTENT, filename=name))
    assert answer.status == 400
    assert "file:" in answer.refusal()
    assert names(client, disk) == []


def test_parameters_may_come_as_other_clients_send_them(server, client, disk):
    """A JSON content type on requests without a body, `path` in place of `file_path`, a slash at the end."""
    artifact = f"/api/v1/disk/{disk.id}/artifact"
    for name in ("a.txt", "b.txt"):
        client.artifacts.upsert(disk.id, file=FileUpload(name, CONTENT))
    assert exchange(server, "GET", f"{artifact}?file_path=/a.txt", JSON).status == 200
    assert exchange(server, "DELETE", f"{artifact}?file_path=/a.txt", JSON).status == 200
    assert exchange(server, "DELETE", f"{artifact}?path=/b.txt", JSON).status == 200
    assert names(client, disk) == []
    listed = exchange(server, "GET", f"/api/v1/disk/?id={disk.id}", JSON).json()["data"]["items"]
    assert [each["id"] for each in listed] == [disk.id]
    assert exchange(server, "POST", "/api/v1/disk", JSON).status == 201
    assert exchange(server, "DELETE", f"/api/v1/disk/{disk.id}/", JSON).status == 200


@pytest.mark.parametrize(
    "field, value, path",
    [
        ("limit", "abc", "disk"),
        ("limit", "1.5", "disk"),
        ("limit", "99999999999999999999", "disk"),
        ("time_desc", "maybe", "disk"),
        ("id", "not-an-id", "disk"),
        ("expire", "soon", "artifact"),
        ("with_content", "maybe", "artifact"),
        ("with_public_url", "2", "artifact"),
        ("limit", "abc", "grep"),
        ("limit", "abc", "glob"),
    ],
)
def test_a_parameter_that_cannot_be_read_is_named(server, disk, field, value, path):
    artifact = f"/api/v1/disk/{disk.id}/artifact"
    url = {
        "disk": "/api/v1/disk?",
        "artifact": f"{artifact}?file_path=/a.txt&",
        "grep": f"{artifact}/grep?query=a&",
        "glob": f"{artifact}/glob?query=a&",
    }[path]
    answer = exchange(server, "GET", f"{url}{field}={value}")
    assert answer.status == 400
    assert f"{field}:" in answer.refusal()


@pytest.mark.parametrize("limit", ["", "%2020%20", "20&limit=999"], ids=["empty", "with spaces", "the first of two"])
def test_a_parameter_is_read_as_clients_send_it(server, disk, limit):
    assert exchange(server, "GET", f"/api/v1/disk?limit={limit}").status == 200


def test_a_disk_id_may_be_spelled_in_other_ways(server, disk):
    for spelled in (disk.id.upper(), disk.id.replace("-", ""), f"urn:uuid:{disk.id}", f"%7B{disk.id}%7D"):
        assert exchange(server, "GET", f"/api/v1/disk/{spelled}/artifact/ls").status == 200


# ----- sizes -----


def test_a_length_that_is_too_large_is_refused_before_the_body_comes(server, disk):
    for path, content_type in [(f"/api/v1/disk/{disk.id}/artifact", FORM), ("/api/v1/disk", "application/json")]:
        with Wire(server) as wire:
            wire.ask("POST", path, {"Content-Type": content_type, "Content-Length": 100 << 20})
            # Not a byte of it was sent.
            answer = wire.answer()
        assert answer.status == 413
        assert answer.refusal()


def test_a_file_that_is_too_large_is_refused_before_its_end(server, client, disk):
    """Its length is not announced: it comes in chunks, and never ends."""
    with Wire(server) as wire:
        headers = {"Content-Type": FORM, "Transfer-Encoding": "chunked"}
        wire.ask("POST", f"/api/v1/disk/{disk.id}/artifact", headers)
        beginning = upload(part("file", b"", filename="a.bin")).partition(b"\r\n--")[0]
        mebibyte = b"%x\r\n%s\r\n" % (1 << 20, b"\0" * (1 << 20))
        wire.send(b"%x\r\n%s\r\n" % (len(beginning), beginning))
        for _ in range(17):
            wire.send(mebibyte)
        answer = wire.answer()
    assert (answer.status, answer.refusal()) == (413, "file size exceeds maximum allowed size of 16.00MB")
    assert names(client, disk) == []
    eventually(lambda: not server.files("tmp"), "the removal of what came in")


@pytest.mark.parametrize(
    "path, header",
    [
        ("/api/v1/ping", "x" * (200 << 10)),
        ("/api/v1/ping", "x" * (5 << 20)),
        ("/api/v1/ping?" + "x" * (70 << 10), ""),
    ],
    ids=["a header", "an endless header", "a query"],
)
def test_a_head_far_over_64_kib_is_refused(server, path, header):
    with Wire(server) as wire:
        try:
            wire.ask("GET", path, {"X-Large": header})
            assert wire.answer().status in (413, 414, 431)
        except (BrokenPipeError, ConnectionResetError):
            # It was refused while it was still being sent.
            assert len(header) > 1 << 20
    assert exchange(server, "GET", "/api/v1/ping").status == 200


def test_a_head_below_64_kib_is_read(server):
    assert exchange(server, "GET", "/api/v1/ping", {"X-Large": "x" * (60 << 10)}).status == 200


# ----- the protocol -----


def test_unknown_paths_and_methods_are_404_in_the_envelope(server):
    for method, path in [
        ("GET", "/nowhere"),
        ("GET", "/api/v1/nowhere"),
        ("PUT", "/api/v1/ping"),
        ("POST", "/api/v1/ping"),
        ("DELETE", "/health"),
        ("PATCH", "/api/v1/disk"),
        ("POST", "/api/v1/material/none"),
        ("BREW", "/api/v1/disk"),
        ("OPTIONS", "/api/v1/disk"),
    ]:
        answer = exchange(server, method, path)
        assert answer.status == 404, (method, path)
        assert answer.refusal()


def test_requests_in_a_row_are_answered_in_a_row(server):
    with Wire(server) as wire:
        wire.send(
            b"".join(
                head("GET", path, {"Host": "localhost", "Authorization": f"Bearer {server.key}"})
                for path in ("/api/v1/ping", "/nowhere", "/health", "/api/v1/disk?limit=1")
            )
        )
        assert [wire.answer().status for _ in range(4)] == [200, 404, 200, 200]


def test_the_body_of_a_refused_request_is_not_the_next_request(server, client, disk):
    """What a refused upload carries must never be executed."""
    inner = head("DELETE", f"/api/v1/disk/{disk.id}", {"Host": "localhost", "Authorization": f"Bearer {server.key}"})
    for path in (f"/api/v1/disk/{NOBODYS}/artifact", "/nowhere", "/health", "/api/v1/disk"):
        with Wire(server) as wire:
            wire.ask("POST", path, {"Authorization": "Bearer wrong", "Content-Type": FORM}, inner)
            assert wire.answer().status in (401, 404)
            try:
                wire.ask("GET", "/api/v1/ping")
                assert wire.answer().json()["msg"] == "pong"
            except (AssertionError, BrokenPipeError, ConnectionResetError):
                assert wire.is_closed()
    assert names(client, disk) == []


GARBAGE = {
    "words": b"hello there\r\n\r\n",
    "random bytes": bytes(range(256)) * 16,
    "zeros": b"\0" * 1000,
    "line ends": b"\r\n" * 1000 + b"x\r\n\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303") + os.urandom(194),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0",
    "another version": b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
    "a bad header": b"GET /health HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
    "a header with a line end": b"GET /health HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
    "a bad length": b"POST /api/v1/disk HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    "two lengths": b"POST /api/v1/disk HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "an unknown transfer encoding": b"POST /api/v1/disk HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x\r\n\r\n",
    "too many headers": b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_refused_and_harms_nobody(server, garbage):
    """Alone, and after a request that is fine and gets its answer first."""
    with Wire(server) as bystander:
        for before in (b"", head("GET", "/health", {"Host": "localhost"})):
            with Wire(server) as wire:
                wire.send(before + garbage)
                if before:
                    assert wire.answer().status == 200
                said = rest(wire)
                assert said == b"" or 400 <= int(said.split()[1]) < 500, said
        bystander.ask("GET", "/api/v1/ping")
        assert bystander.answer().json()["msg"] == "pong"


def rest(wire):
    """Says that nothing more comes; everything that the server still says before it hangs up."""
    try:
        wire.socket.shutdown(socket.SHUT_WR)
        return wire.reader.read()
    except OSError:
        # It has hung up on what it did not want to read.
        return b""


@pytest.mark.parametrize(
    "headers, is_next",
    [
        # One end, and what follows it is the next request.
        ({"Transfer-Encoding": "chunked"}, True),
        # Two ends: who forwards this may see the other one, and what follows must not be taken for a request.
        ({"Content-Length": "4", "Transfer-Encoding": "chunked"}, False),
        ({"Transfer-Encoding": "chunked, identity"}, False),
        ({"Transfer-Encoding": "identity, chunked, identity"}, False),
    ],
    ids=["one end", "length and chunks", "chunks inside", "chunks in the middle"],
)
def test_no_request_is_smuggled_in_behind_a_body(server, headers, is_next):
    body = b"0\r\n\r\n" + head("GET", "/health", {"Host": "localhost", "X-Request-Id": "smuggled"})
    with Wire(server) as wire:
        wire.ask("POST", "/api/v1/disk", {"Authorization": "Bearer wrong", **headers})
        wire.send(body)
        assert wire.answer().status in (400, 401)
        if is_next:
            assert wire.answer().headers["X-Request-Id"] == "smuggled"
        else:
            assert wire.is_closed()


@pytest.mark.parametrize(
    "body", [b"zz\r\n", b"5\r\nabc", b"-1\r\n", b"ffffffffffffffffff\r\nx", b"3\r\nabcdef\r\n0\r\n\r\n"]
)
def test_broken_chunks_are_refused(server, client, disk, body):
    with Wire(server) as wire:
        wire.ask("POST", f"/api/v1/disk/{disk.id}/artifact", {"Content-Type": FORM, "Transfer-Encoding": "chunked"})
        wire.send(body)
        said = rest(wire)
    assert said == b"" or said.startswith(b"HTTP/1.1 400"), said
    assert names(client, disk) == []


def test_a_crowd_is_served(server, disk):
    """Many connections at once, most of them doing nothing."""
    idle = [Wire(server) for _ in range(300)]
    try:
        for wire in idle[::10]:
            wire.ask("GET", f"/api/v1/disk/{disk.id}/artifact/ls")
        assert [wire.answer().status for wire in idle[::10]] == [200] * 30
    finally:
        for wire in idle:
            wire.close()


def test_the_server_is_the_same_after_all_this(server, client):
    """Whatever the tests above have sent, no handler has panicked and nothing was a fault of the server."""
    with refused(401), server.client("sk-ac-wrong") as other:
        other.ping()
    assert client.ping() == "pong"
    assert [line for line in server.log_lines() if line["level"] == "ERROR"] == []
    assert "panicked" not in server.log()
