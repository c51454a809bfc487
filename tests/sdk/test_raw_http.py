"""Raw HTTP, which the SDK cannot send: unusual requests, partial downloads, disconnects, and hidden headers."""

import hashlib
import json
import os
import socket
from urllib.parse import quote, unquote, urlsplit

import pytest

from acontext import FileUpload
from support import wait_until, new_project, raises_error
from raw_http import BOUNDARY, FORM, RawConnection, exchange, request_head, form_part, form_body

CONTENT = b"0123456789"
ETAG = f'"{hashlib.sha256(CONTENT).hexdigest()}"'
JSON = {"Content-Type": "application/json"}
UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"


def file_names(client, disk):
    return [artifact.path + artifact.filename for artifact in client.artifacts.glob_artifacts(disk.id, query="*")]


def send_form(server, disk, *parts):
    with RawConnection(server) as connection:
        body = form_body(*parts)
        connection.post_upload(disk.id, body)
        connection.send(body)
        return connection.read_response()


# ----- request ids -----


def request_log_lines(server, request_id):
    return [line for line in server.log_lines() if line.get("request.id") == request_id]


@pytest.mark.parametrize("path", ["/api/v1/ping", "/health", "/ready", "/nowhere", "/api/v1/material/none"])
def test_every_response_has_a_unique_request_id(server, path):
    ids = {exchange(server, "GET", path).headers["X-Request-Id"] for _ in range(3)}
    assert None not in ids and len(ids) == 3


def test_the_request_id_of_a_client_is_returned_and_logged(server):
    for path, key in [("/api/v1/ping", server.key), ("/api/v1/disk", "sk-ac-wrong"), ("/nowhere", "")]:
        request_id = f"sent-by-a-proxy/{path}"
        headers = {"X-Request-Id": request_id, "Authorization": f"Bearer {key}"}
        response = exchange(server, "GET", path, headers)
        assert response.headers.get_all("X-Request-Id") == [request_id]
        (line,) = wait_until(lambda: request_log_lines(server, request_id), "the request is logged")
        assert (line["method"], line["path"], line["status"]) == ("GET", path, response.status)
        assert line["duration_ms"] >= 0


@pytest.mark.parametrize("sent", ["two words", "x" * 129, "größe", ""])
def test_an_invalid_request_id_is_replaced(server, sent):
    received = exchange(server, "GET", "/health", {"X-Request-Id": sent}).headers["X-Request-Id"]
    assert received and received != sent and received.isascii()


def test_the_log_has_a_line_for_each_request_and_no_secrets(server, client, disk):
    client.artifacts.upsert(disk.id, file=FileUpload("secret.txt", b"secret-in-a-file"), meta={"a": "secret-in-meta"})
    link = client.artifacts.get(disk.id, file_path="/", filename="secret.txt").public_url
    token = link.rpartition("/")[2]
    exchange(server, "GET", urlsplit(link).path)
    exchange(server, "GET", urlsplit(link).path + "/")
    exchange(server, "GET", f"/api/v1/materials/{token}")
    exchange(server, "GET", "/api/v1/ping", {"Authorization": "Bearer sk-ac-secret-key-that-is-wrong"})
    exchange(server, "POST", "/api/v1/disk", JSON, b'{"user": ["secret-in-an-invalid-body"]}')
    search = f"/api/v1/disk/{disk.id}/artifact/grep?query=secret-in-a-query"
    exchange(server, "GET", search, {"X-Request-Id": "the-last"})
    (last,) = wait_until(lambda: request_log_lines(server, "the-last"), "the request is logged")
    assert last["project.id"] == disk.project_id
    for secret in ("secret-in", "sk-ac-", token[:40], token[-40:]):
        assert secret not in server.log()


# ----- downloads and links -----


@pytest.fixture(params=["download", "link"])
def store_file(request, server, client, disk):
    """Stores a file, and returns a function that requests it: with the API key, or by its signed URL without one."""

    def store(name="a.txt", content=CONTENT):
        assert send_form(server, disk, form_part("file", content, filename=name)).status == 201
        if request.param == "download":
            path = f"/api/v1/disk/{disk.id}/artifact/download?file_path={quote('/' + name)}"
            key = f"Bearer {server.key}"
        else:
            artifact = client.artifacts.get(disk.id, file_path="/", filename=name, with_content=False)
            path, key = urlsplit(artifact.public_url).path, None

        def send_request(method="GET", **headers):
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            return exchange(server, method, path, {"Authorization": key, **headers})

        return send_request

    return store


def test_a_download_returns_the_file(store_file):
    response = store_file()()
    assert (response.status, response.body) == (200, CONTENT)
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert response.headers["Content-Length"] == "10"
    assert response.headers["ETag"] == ETAG
    assert response.headers["Accept-Ranges"] == "bytes"


def test_head_returns_the_headers_of_get(store_file):
    send_request = store_file()
    varying_headers = ("X-Request-Id", "Date")
    with_body, without = send_request(), send_request("HEAD")
    assert without.status == 200
    assert [header for header in without.headers.items() if header[0].title() not in varying_headers] == [
        header for header in with_body.headers.items() if header[0].title() not in varying_headers
    ]


def test_head_sends_no_body(server, client, disk):
    """A client would read a body as the beginning of the next response."""
    client.artifacts.upsert(disk.id, file=FileUpload("a.txt", CONTENT))
    with RawConnection(server) as connection:
        for _ in range(2):
            connection.send_request("HEAD", f"/api/v1/disk/{disk.id}/artifact/download?file_path=/a.txt")
            assert connection.read_response("HEAD").status == 200
        connection.send_request("GET", "/api/v1/ping")
        assert connection.read_response().json()["msg"] == "pong"


@pytest.mark.parametrize(
    "requested, content, content_range",
    [
        ("bytes=2-5", b"2345", "bytes 2-5/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=-100", CONTENT, "bytes 0-9/10"),
        ("bytes=8-100", b"89", "bytes 8-9/10"),
        ("bytes=0-0", b"0", "bytes 0-0/10"),
    ],
)
def test_only_the_requested_range_is_returned(store_file, requested, content, content_range):
    response = store_file()(Range=requested)
    assert (response.status, response.body) == (206, content)
    assert response.headers["Content-Range"] == content_range
    assert response.headers["ETag"] == ETAG


def test_a_range_in_the_middle_of_a_large_file(store_file):
    content = os.urandom(3 << 20)
    response = store_file("large.bin", content)(Range="bytes=1000000-2500000")
    assert (response.status, response.body == content[1000000:2500001]) == (206, True)


@pytest.mark.parametrize("requested", ["bytes=10-", "bytes=10-20", "bytes=-0"])
def test_a_range_outside_of_the_file_is_416(store_file, requested):
    response = store_file()(Range=requested)
    assert response.status == 416
    assert response.headers["Content-Range"] == "bytes */10"


@pytest.mark.parametrize("requested", ["bytes=5-2", "bytes=x-y", "lines=1-2", "bytes", "2-5"])
def test_an_invalid_range_is_ignored(store_file, requested):
    response = store_file()(Range=requested)
    assert (response.status, response.body) == (200, CONTENT)


def test_a_range_of_a_changed_file_returns_the_whole_file(store_file):
    send_request = store_file()
    assert send_request(Range="bytes=2-5", If_Range=ETAG).status == 206
    assert send_request(Range="bytes=2-5", If_Range='"another"').body == CONTENT


@pytest.mark.parametrize("tags", [ETAG, f"W/{ETAG}", f'"another", {ETAG}', "*"])
def test_content_that_the_client_has_is_not_sent_again(store_file, tags):
    response = store_file()(If_None_Match=tags)
    assert (response.status, response.body) == (304, b"")
    assert response.headers["ETag"] == ETAG


@pytest.mark.parametrize("tags", ['"another"', f'W/"x{ETAG[1:]}', ETAG.strip('"')])
def test_content_that_the_client_does_not_have_is_sent(store_file, tags):
    response = store_file()(If_None_Match=tags)
    assert (response.status, response.body) == (200, CONTENT)


def test_an_empty_file_is_an_empty_response(store_file):
    send_request = store_file("empty.txt", b"")
    response = send_request()
    assert (response.status, response.headers["Content-Length"], response.body) == (200, "0", b"")
    assert send_request("HEAD").status == 200
    assert send_request(Range="bytes=0-").status in (200, 416)


@pytest.mark.parametrize("name", ["größe 寿司 🍣.txt", "a;b=c, d.txt", "it's 100%.txt", "back\\slash.txt"])
def test_a_filename_is_preserved(store_file, name):
    disposition = store_file(name)().headers["Content-Disposition"]
    charset, _, encoded = disposition.partition("filename*=")[2].split("'")
    assert (charset.upper(), unquote(encoded, errors="strict")) == ("UTF-8", name)
    # For clients that do not support `filename*`.
    ascii_name = disposition.partition('filename="')[2]
    assert ascii_name.isascii() and "\\" not in ascii_name


def test_a_filename_cannot_inject_headers(server, disk):
    # Quotes and line breaks, encoded as the standard allows.
    disposition = "form-data; name=\"file\"; filename*=UTF-8''a%22%0D%0ASet-Cookie%3A%20a%3Db%0D%0A%0D%0Ab.txt"
    upload = send_form(server, disk, form_part("file", CONTENT, disposition=disposition))
    if upload.status == 400:
        return
    name = upload.json()["data"]["filename"]
    assert name == 'a"\r\nSet-Cookie: a=b\r\n\r\nb.txt'
    response = exchange(server, "GET", f"/api/v1/disk/{disk.id}/artifact/download?file_path={quote('/' + name)}")
    assert (response.status, response.body) == (200, CONTENT)
    assert response.headers["Set-Cookie"] is None
    assert response.headers["Content-Disposition"].count('"') == 2


@pytest.mark.parametrize(
    "name, content, kind",
    [
        ("page.html", b"<!DOCTYPE html><script>alert(1)</script>", "attachment"),
        # The content determines the type, not the name: it is a page.
        ("page.txt", b"<html><script>alert(1)</script></html>", "attachment"),
        ("image.svg", b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "attachment"),
        ("page.xhtml", b'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"></html>', "attachment"),
        ("code.js", b"alert(1)\n", "attachment"),
        ("notes.md", b"# Notes\n", "inline"),
        ("raw.bin", b"\0\1\2", "inline"),
    ],
)
def test_active_content_is_never_executed_on_our_origin(store_file, name, content, kind):
    send_request = store_file(name, content)
    range_response, unchanged_response = send_request(Range="bytes=0-1"), send_request(If_None_Match="*")
    for response in (send_request(), send_request("HEAD"), range_response, unchanged_response):
        assert response.status in (200, 206, 304)
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Content-Security-Policy"] == "sandbox"
        assert response.headers["Content-Disposition"].startswith(f"{kind};")


def test_a_download_requires_a_key_and_a_signed_url_does_not(server, client, disk):
    client.artifacts.upsert(disk.id, file=FileUpload("a.txt", CONTENT))
    path = f"/api/v1/disk/{disk.id}/artifact/download?file_path=/a.txt"
    for key in (None, "Bearer sk-ac-wrong", f"Basic {server.key}", "Bearer"):
        assert exchange(server, "GET", path, {"Authorization": key}).error_message() == "Unauthorized"
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
    assert (missing.status, missing.error_message()) == (404, "artifact not found")


@pytest.mark.parametrize("token", ["none", "%00", "%FF", "x" * 5000, "..%2F..%2Fdisk", "="])
def test_an_invalid_signed_url_is_404(server, token):
    response = exchange(server, "GET", f"/api/v1/material/{token}", {"Authorization": None})
    # A token that is not valid text may be a different error.
    assert response.status == 404 or (token == "%FF" and response.status == 400)
    assert response.error_message()


# ----- disconnects -----


@pytest.mark.parametrize("disconnect", ["close", "reset"])
@pytest.mark.parametrize("stopped_at", ["in the file", "before the end of the form", "in the fields"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_disconnect_during_an_upload_leaves_nothing(server, client, disk, disconnect, stopped_at, framing):
    content = os.urandom(2 << 20)
    body = form_body(form_part("file", content, filename="half.bin"), form_part("file_path", b"/later/"))
    sent = {
        "in the file": body[: 1 << 20],
        "before the end of the form": body[: -len(BOUNDARY) - 6],
        "in the fields": body[: body.index(b"/later/") + 3],
    }[stopped_at]
    objects = server.files("objects")
    connection = RawConnection(server)
    headers = {"Content-Type": FORM, "Expect": "100-continue"}
    if framing == "length":
        headers["Content-Length"] = len(body)
    else:
        headers["Transfer-Encoding"] = "chunked"
        sent = b"%x\r\n%s\r\n" % (len(sent), sent)
    connection.send_request("POST", f"/api/v1/disk/{disk.id}/artifact", headers)
    assert connection.read_response().status == 100
    connection.send(sent)
    wait_until(lambda: server.files("tmp"), "the upload has a temporary file")
    getattr(connection, disconnect)()
    wait_until(lambda: not server.files("tmp"), "the temporary files are deleted")
    assert file_names(client, disk) == []
    assert server.psql(f"select count(*) from artifacts where disk_id = '{disk.id}'") == "0"
    assert server.psql(f"select count(*) from artifact_versions where disk_id = '{disk.id}'") == "0"
    assert server.psql(f"select count(*) from blobs where sha256 = '{hashlib.sha256(content).hexdigest()}'") == "0"
    assert server.files("objects") == objects
    # The complete upload is stored.
    assert send_form(server, disk, form_part("file", content, filename="half.bin")).status == 201


def test_a_disconnect_does_not_change_the_previous_content(server, client, disk):
    client.artifacts.upsert(disk.id, file=FileUpload("a.txt", b"the previous one"))
    body = form_body(form_part("file", b"x" * (1 << 20), filename="a.txt"))
    connection = RawConnection(server)
    connection.post_upload(disk.id, body)
    connection.send(body[: 1 << 19])
    wait_until(lambda: server.files("tmp"), "the upload has a temporary file")
    connection.reset()
    wait_until(lambda: not server.files("tmp"), "the temporary files are deleted")
    assert client.artifacts.get(disk.id, file_path="/", filename="a.txt").content.raw == "the previous one"


def test_a_file_is_stored_if_the_client_does_not_wait(server, client, disk):
    """The upload is complete, so the file is stored even if the client does not read the response."""
    body = form_body(form_part("file", CONTENT * 50_000, filename="a.txt"))
    connection = RawConnection(server)
    connection.post_upload(disk.id, body)
    connection.send(body)
    connection.socket.shutdown(socket.SHUT_WR)
    wait_until(lambda: file_names(client, disk) == ["/a.txt"], "the file is stored")
    connection.close()
    assert client.artifacts.get(disk.id, file_path="/", filename="a.txt").content.raw == (CONTENT * 50_000).decode()


def test_a_disconnect_during_a_download_is_harmless(server, client, disk):
    client.artifacts.upsert(disk.id, file=FileUpload("large.bin", os.urandom(8 << 20)))
    for _ in range(5):
        connection = RawConnection(server)
        connection.send_request("GET", f"/api/v1/disk/{disk.id}/artifact/download?file_path=/large.bin")
        connection.reader.read(1000)
        connection.reset()
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
def test_a_body_that_is_not_a_json_object_is_rejected(server, client, body):
    before = server.psql("select count(*) from disks")
    response = exchange(server, "POST", "/api/v1/disk", JSON, body)
    assert response.status == 400
    assert "body" in response.error_message() or "user" in response.error_message()
    assert server.psql("select count(*) from disks") == before
    assert client.ping() == "pong"


def test_too_deeply_nested_metadata_is_rejected(server, client, disk):
    deep = b'{"a":' * 10_000 + b"1" + b"}" * 10_000
    response = send_form(server, disk, form_part("meta", deep), form_part("file", CONTENT, filename="a.txt"))
    assert (response.status, "meta" in response.error_message()) == (400, True)
    assert file_names(client, disk) == []
    client.artifacts.upsert(disk.id, file=FileUpload("a.txt", CONTENT))
    body = json.dumps({"file_path": "/a.txt", "meta": deep.decode()}).encode()
    response = exchange(server, "PUT", f"/api/v1/disk/{disk.id}/artifact", JSON, body)
    assert (response.status, "meta" in response.error_message()) == (400, True)
    nested = {"a": 1}
    for _ in range(100):
        nested = {"a": nested}
    updated = client.artifacts.update(disk.id, file_path="/", filename="a.txt", meta=nested)
    assert updated.artifact.meta["a"] == nested["a"]


def test_deeply_nested_json_in_a_file_is_accepted(server, client, disk):
    content = b"[" * 100_000 + b"]" * 100_000
    client.artifacts.upsert(disk.id, file=FileUpload("deep.json", content))
    artifact = client.artifacts.get(disk.id, file_path="/", filename="deep.json")
    assert exchange(server, "GET", urlsplit(artifact.public_url).path).body == content


@pytest.mark.parametrize("meta", [b"[]", b"1", b'"a"', b"{", b"{'a': 1}", b'{"a": 1} x', b'{"n": 1e99999999}'])
def test_metadata_that_is_not_a_json_object_is_rejected(server, client, disk, meta):
    response = send_form(server, disk, form_part("meta", meta), form_part("file", CONTENT, filename="a.txt"))
    assert (response.status, "meta" in response.error_message()) == (400, True)
    assert file_names(client, disk) == []


@pytest.mark.parametrize("meta", [None, 1, {"a": 1}, "", "nothing"])
def test_an_update_requires_metadata_as_a_string(server, client, disk, meta):
    client.artifacts.upsert(disk.id, file=FileUpload("a.txt", CONTENT), meta={"unchanged": True})
    body = json.dumps({"file_path": "/a.txt", "meta": meta}).encode()
    response = exchange(server, "PUT", f"/api/v1/disk/{disk.id}/artifact", JSON, body)
    assert (response.status, "meta" in response.error_message()) == (400, True)
    assert client.artifacts.list(disk.id).artifacts[0].meta["unchanged"] is True


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "multipart/form-data", "multipart/mixed", None]
)
def test_an_upload_that_is_not_a_form_is_rejected(server, client, disk, content_type):
    body = form_body(form_part("file", CONTENT, filename="a.txt"))
    headers = {"Content-Type": content_type}
    response = exchange(server, "POST", f"/api/v1/disk/{disk.id}/artifact", headers, body)
    assert (response.status, response.error_message()) == (400, "file is required")
    assert file_names(client, disk) == []


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [form_part("file_path", b"/docs/")],
        # A text field is not a file.
        [form_part("file", CONTENT)],
        [form_part("file", CONTENT, filename="")],
        [form_part("other", CONTENT, filename="a.txt")],
    ],
    ids=["nothing", "only a field", "no file", "no name", "another field"],
)
def test_a_form_without_a_file_is_rejected(server, client, disk, parts):
    response = send_form(server, disk, *parts)
    assert (response.status, response.error_message()) == (400, "file is required")
    assert file_names(client, disk) == []


@pytest.mark.parametrize("name", ["file", "file_path", "meta"])
def test_a_repeated_field_is_rejected(server, client, disk, name):
    parts = {
        "file": form_part("file", CONTENT, filename="a.txt"),
        "file_path": form_part("file_path", b"/docs/"),
        "meta": form_part("meta", b"{}"),
    }
    response = send_form(server, disk, *parts.values(), parts[name])
    assert response.status == 400
    assert f"{name}:" in response.error_message()
    assert file_names(client, disk) == []


def test_fields_may_have_any_order_and_others_are_ignored(server, client, disk):
    response = send_form(
        server,
        disk,
        form_part("file", CONTENT, filename="a.txt"),
        form_part("unknown", b"x"),
        form_part("meta", b'{"a": 1}'),
        form_part("file_path", b"/docs/"),
    )
    assert response.status == 201
    assert response.json()["data"]["meta"]["a"] == 1
    assert file_names(client, disk) == ["/docs/a.txt"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no form at all",
        b"--" + BOUNDARY,
        form_body(form_part("file", CONTENT, filename="a.txt"))[:-4],
        form_body(form_part("file", CONTENT, filename="a.txt")).replace(b"\r\n\r\n", b"\r\n"),
        b"--" + BOUNDARY + b"\r\n" + b"X-Long: " + b"x" * 100_000 + b"\r\n\r\n",
    ],
    ids=["empty", "words", "a boundary", "no final boundary", "no end of headers", "long header"],
)
def test_a_broken_form_is_rejected(server, client, disk, body):
    with RawConnection(server) as connection:
        connection.post_upload(disk.id, body)
        connection.send(body)
        response = connection.read_response()
    assert response.status == 400
    assert response.error_message()
    assert file_names(client, disk) == []


def test_a_form_with_too_many_or_large_fields_is_rejected(server, client, disk):
    many = [form_part(f"field{number}", b"x") for number in range(1000)]
    response = send_form(server, disk, *many, form_part("file", CONTENT, filename="a.txt"))
    assert response.status == 400
    large = send_form(server, disk, form_part("meta", b" " * (2 << 20)), form_part("file", CONTENT, filename="a.txt"))
    assert (large.status, "meta" in large.error_message()) == (413, True)
    assert file_names(client, disk) == []


def test_metadata_has_a_size_limit(server, client, disk):
    large = b'{"a": "' + b"x" * (1 << 20) + b'"}'
    body = json.dumps({"file_path": "/a.txt", "meta": large.decode()}).encode()
    client.artifacts.upsert(disk.id, file=FileUpload("a.txt", CONTENT))
    response = exchange(server, "PUT", f"/api/v1/disk/{disk.id}/artifact", JSON, body)
    assert response.status in (400, 413)
    assert "meta" in response.error_message()
    assert file_names(client, disk) == ["/a.txt"]


# ----- characters -----


def test_the_error_names_the_field_that_contains_nul(server, client, disk):
    client.artifacts.upsert(disk.id, file=FileUpload("a.txt", CONTENT), meta={"unchanged": True})
    artifact = f"/api/v1/disk/{disk.id}/artifact"
    file = form_part("file", CONTENT, filename="b.txt")
    nul_meta = json.dumps({"a": ["\0"]}).encode()
    nul_key = json.dumps({"a": {"\0": 1}}).encode()
    nul_name = form_part("file", CONTENT, disposition="form-data; name=\"file\"; filename*=UTF-8''a%00b.txt")
    nul_update = json.dumps({"file_path": "/a.txt", "meta": nul_meta.decode()}).encode()
    nul_path = json.dumps({"file_path": "/a\0.txt", "meta": "{}"}).encode()
    for field, response in [
        ("user", exchange(server, "POST", "/api/v1/disk", JSON, json.dumps({"user": "a\0b"}).encode())),
        ("user", exchange(server, "GET", "/api/v1/disk?user=a%00b")),
        ("meta", send_form(server, disk, form_part("meta", nul_meta), file)),
        ("meta", send_form(server, disk, form_part("meta", nul_key), file)),
        ("meta", exchange(server, "PUT", artifact, JSON, nul_update)),
        ("file_path", exchange(server, "PUT", artifact, JSON, nul_path)),
        ("file_path", send_form(server, disk, form_part("file_path", b"/a\0b/"), file)),
        ("file_path", exchange(server, "GET", f"{artifact}?file_path=/a%00.txt")),
        ("file_path", exchange(server, "DELETE", f"{artifact}?file_path=/a%00.txt")),
        ("file", send_form(server, disk, nul_name)),
        ("path", exchange(server, "GET", f"{artifact}/ls?path=/a%00/")),
    ]:
        assert response.status == 400
        assert f"{field}:" in response.error_message()
    for search in ("grep", "glob"):
        # A search stores nothing: it may find nothing or be rejected.
        assert exchange(server, "GET", f"{artifact}/{search}?query=a%00").status in (200, 400)
    assert file_names(client, disk) == ["/a.txt"]
    assert client.artifacts.list(disk.id).artifacts[0].meta["unchanged"] is True


def test_values_that_are_not_utf_8_are_rejected(server, client, disk):
    artifact = f"/api/v1/disk/{disk.id}/artifact"
    file = form_part("file", CONTENT, filename="a.txt")
    raw_name = form_part("file", CONTENT, disposition=b'form-data; name="file"; filename="\xff.txt"')
    escaped_name = form_part("file", CONTENT, disposition="form-data; name=\"file\"; filename*=UTF-8''%FF")
    for field, response in [
        ("file", send_form(server, disk, raw_name)),
        ("file", send_form(server, disk, escaped_name)),
        ("file_path", send_form(server, disk, form_part("file_path", b"/\xff/"), file)),
        ("meta", send_form(server, disk, form_part("meta", b'{"a": "\xff"}'), file)),
        ("file_path", exchange(server, "GET", f"{artifact}?file_path=/%FF.txt")),
        ("user", exchange(server, "GET", "/api/v1/disk?user=%FF")),
        ("query", exchange(server, "GET", f"{artifact}/glob?query=%FF")),
        ("disk_id", exchange(server, "GET", "/api/v1/disk/%FF/artifact/ls")),
    ]:
        assert response.status == 400
        assert f"{field}:" in response.error_message()
    assert file_names(client, disk) == []


@pytest.mark.parametrize("name", ["..", "../a.txt/..", "..\\a.txt", "C:\\a.txt", "\\\\server\\a.txt", "."])
def test_a_filename_that_is_a_path_is_rejected(server, client, disk, name):
    response = send_form(server, disk, form_part("file", CONTENT, filename=name))
    assert response.status == 400
    assert "file:" in response.error_message()
    assert file_names(client, disk) == []


def test_parameters_of_other_clients_are_accepted(server, client, disk):
    """A JSON content type on requests without a body, `path` in place of `file_path`, a slash at the end."""
    artifact = f"/api/v1/disk/{disk.id}/artifact"
    for name in ("a.txt", "b.txt"):
        client.artifacts.upsert(disk.id, file=FileUpload(name, CONTENT))
    assert exchange(server, "GET", f"{artifact}?file_path=/a.txt", JSON).status == 200
    assert exchange(server, "DELETE", f"{artifact}?file_path=/a.txt", JSON).status == 200
    assert exchange(server, "DELETE", f"{artifact}?path=/b.txt", JSON).status == 200
    assert file_names(client, disk) == []
    listed = exchange(server, "GET", f"/api/v1/disk/?id={disk.id}", JSON).json()["data"]["items"]
    assert [item["id"] for item in listed] == [disk.id]
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
def test_the_error_names_an_invalid_parameter(server, disk, field, value, path):
    artifact = f"/api/v1/disk/{disk.id}/artifact"
    url = {
        "disk": "/api/v1/disk?",
        "artifact": f"{artifact}?file_path=/a.txt&",
        "grep": f"{artifact}/grep?query=a&",
        "glob": f"{artifact}/glob?query=a&",
    }[path]
    response = exchange(server, "GET", f"{url}{field}={value}")
    assert response.status == 400
    assert f"{field}:" in response.error_message()


@pytest.mark.parametrize("limit", ["", "%2020%20", "20&limit=999"], ids=["empty", "with spaces", "the first of two"])
def test_a_limit_is_read_as_clients_send_it(server, disk, limit):
    assert exchange(server, "GET", f"/api/v1/disk?limit={limit}").status == 200


def test_a_disk_id_may_have_other_spellings(server, disk):
    for disk_id in (disk.id.upper(), disk.id.replace("-", ""), f"urn:uuid:{disk.id}", f"%7B{disk.id}%7D"):
        assert exchange(server, "GET", f"/api/v1/disk/{disk_id}/artifact/ls").status == 200


# ----- sizes -----


def test_a_too_large_content_length_is_rejected_before_the_body(server, disk):
    for path, content_type in [(f"/api/v1/disk/{disk.id}/artifact", FORM), ("/api/v1/disk", "application/json")]:
        with RawConnection(server) as connection:
            connection.send_request("POST", path, {"Content-Type": content_type, "Content-Length": 100 << 20})
            # No byte of the body has been sent.
            response = connection.read_response()
        assert response.status == 413
        assert response.error_message()


def test_a_too_large_file_is_rejected_before_its_end(server, client, disk):
    """The client does not send the length: it sends chunks, and never the last one."""
    with RawConnection(server) as connection:
        headers = {"Content-Type": FORM, "Transfer-Encoding": "chunked"}
        connection.send_request("POST", f"/api/v1/disk/{disk.id}/artifact", headers)
        beginning = form_body(form_part("file", b"", filename="a.bin")).partition(b"\r\n--")[0]
        mebibyte = b"%x\r\n%s\r\n" % (1 << 20, b"\0" * (1 << 20))
        connection.send(b"%x\r\n%s\r\n" % (len(beginning), beginning))
        for _ in range(17):
            connection.send(mebibyte)
        response = connection.read_response()
    assert (response.status, response.error_message()) == (413, "file size exceeds maximum allowed size of 16.00MB")
    assert file_names(client, disk) == []
    wait_until(lambda: not server.files("tmp"), "the temporary files are deleted")


@pytest.mark.parametrize(
    "path, header",
    [
        ("/api/v1/ping", "x" * (200 << 10)),
        ("/api/v1/ping", "x" * (5 << 20)),
        ("/api/v1/ping?" + "x" * (70 << 10), ""),
    ],
    ids=["a header", "a huge header", "a query"],
)
def test_a_request_head_far_over_64_kib_is_rejected(server, path, header):
    with RawConnection(server) as connection:
        try:
            connection.send_request("GET", path, {"X-Large": header})
            assert connection.read_response().status in (413, 414, 431)
        except (BrokenPipeError, ConnectionResetError):
            # The server rejected the request while the client was still sending it.
            assert len(header) > 1 << 20
    assert exchange(server, "GET", "/api/v1/ping").status == 200


def test_a_request_head_below_64_kib_is_accepted(server):
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
        response = exchange(server, method, path)
        assert response.status == 404, (method, path)
        assert response.error_message()


def test_pipelined_requests_are_answered_in_order(server):
    with RawConnection(server) as connection:
        connection.send(
            b"".join(
                request_head("GET", path, {"Host": "localhost", "Authorization": f"Bearer {server.key}"})
                for path in ("/api/v1/ping", "/nowhere", "/health", "/api/v1/disk?limit=1")
            )
        )
        assert [connection.read_response().status for _ in range(4)] == [200, 404, 200, 200]


def test_the_body_of_a_rejected_request_is_not_executed(server, client, disk):
    """The server must never read the body of a rejected upload as the next request."""
    headers = {"Host": "localhost", "Authorization": f"Bearer {server.key}"}
    inner = request_head("DELETE", f"/api/v1/disk/{disk.id}", headers)
    for path in (f"/api/v1/disk/{UNKNOWN_ID}/artifact", "/nowhere", "/health", "/api/v1/disk"):
        with RawConnection(server) as connection:
            connection.send_request("POST", path, {"Authorization": "Bearer wrong", "Content-Type": FORM}, inner)
            assert connection.read_response().status in (401, 404)
            try:
                connection.send_request("GET", "/api/v1/ping")
                assert connection.read_response().json()["msg"] == "pong"
            except (AssertionError, BrokenPipeError, ConnectionResetError):
                assert connection.is_closed()
    assert file_names(client, disk) == []


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
def test_garbage_is_rejected_and_harmless(server, garbage):
    """The garbage is sent alone, and after a valid request that gets its response first."""
    with RawConnection(server) as bystander:
        for before in (b"", request_head("GET", "/health", {"Host": "localhost"})):
            with RawConnection(server) as connection:
                connection.send(before + garbage)
                if before:
                    assert connection.read_response().status == 200
                received = read_to_end(connection)
                assert received == b"" or 400 <= int(received.split()[1]) < 500, received
        bystander.send_request("GET", "/api/v1/ping")
        assert bystander.read_response().json()["msg"] == "pong"


def read_to_end(connection):
    """Ends the sending side, and returns everything that the server sends before it closes the connection."""
    try:
        connection.socket.shutdown(socket.SHUT_WR)
        return connection.reader.read()
    except OSError:
        # The server closed the connection before it had read everything.
        return b""


@pytest.mark.parametrize(
    "headers, is_next",
    [
        # The body has one possible end, and the next request follows.
        ({"Transfer-Encoding": "chunked"}, True),
        # The body has two possible ends. A proxy may choose the other one, so the rest must not be read as a request.
        ({"Content-Length": "4", "Transfer-Encoding": "chunked"}, False),
        ({"Transfer-Encoding": "chunked, identity"}, False),
        ({"Transfer-Encoding": "identity, chunked, identity"}, False),
    ],
    ids=["one end", "length and chunks", "chunks inside", "chunks in the middle"],
)
def test_no_request_is_smuggled_in_after_a_body(server, headers, is_next):
    body = b"0\r\n\r\n" + request_head("GET", "/health", {"Host": "localhost", "X-Request-Id": "smuggled"})
    with RawConnection(server) as connection:
        connection.send_request("POST", "/api/v1/disk", {"Authorization": "Bearer wrong", **headers})
        connection.send(body)
        assert connection.read_response().status in (400, 401)
        if is_next:
            assert connection.read_response().headers["X-Request-Id"] == "smuggled"
        else:
            assert connection.is_closed()


@pytest.mark.parametrize(
    "body", [b"zz\r\n", b"5\r\nabc", b"-1\r\n", b"ffffffffffffffffff\r\nx", b"3\r\nabcdef\r\n0\r\n\r\n"]
)
def test_broken_chunks_are_rejected(server, client, disk, body):
    with RawConnection(server) as connection:
        headers = {"Content-Type": FORM, "Transfer-Encoding": "chunked"}
        connection.send_request("POST", f"/api/v1/disk/{disk.id}/artifact", headers)
        connection.send(body)
        received = read_to_end(connection)
    assert received == b"" or received.startswith(b"HTTP/1.1 400"), received
    assert file_names(client, disk) == []


def test_many_connections_are_served(server, disk):
    """Many connections are open, and most of them are idle."""
    idle = [RawConnection(server) for _ in range(300)]
    try:
        for connection in idle[::10]:
            connection.send_request("GET", f"/api/v1/disk/{disk.id}/artifact/ls")
        assert [connection.read_response().status for connection in idle[::10]] == [200] * 30
    finally:
        for connection in idle:
            connection.close()


def test_the_server_still_works_after_all_these_tests(server, client):
    """None of the requests above has caused a panic or a server error."""
    with raises_error(401), server.client("sk-ac-wrong") as other:
        other.ping()
    assert client.ping() == "pong"
    assert [line for line in server.log_lines() if line["level"] == "ERROR"] == []
    assert "panicked" not in server.log()
