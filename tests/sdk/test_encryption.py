"""Encrypted projects: all requests work as usual, nothing is stored as plaintext, and kills lose no data."""

import base64
import hashlib
import hmac
import itertools
import json
import os
import random
import re
import subprocess
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from urllib.parse import quote

import httpx
import pytest

from acontext import FileUpload
from support import ADMIN_TOKEN, TIMEOUT, new_project, open_link, temporary_home, wait_until
from zip_fixtures import add_skill, unpack

MIB = 1 << 20
FORMATS = ["openai", "anthropic", "gemini", "acontext"]
ENCRYPTION, ENCRYPT, DECRYPT = "/api/v1/project/encryption", "/api/v1/project/encrypt", "/api/v1/project/decrypt"
IDLE = {"state": "idle", "error": None}
# The smallest PNG: one pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010804000000b51c0c02"
    "0000000b4944415478da6364f80f00010501012718e3660000000049454e44ae426082"
)
LINK_REGEX = re.compile(r"http://[^ ]+/api/v1/material/[A-Za-z0-9_-]+")
PNG_BASE64 = base64.b64encode(PNG).decode()


class Project:
    """A new project with a compact key, which contains the master key for its encryption."""

    def __init__(self, server):
        self.server = server
        self.id, self.key = new_project(server)
        # The contents of this project contain this text, and nothing else does.
        self.marker = f"marker-{uuid.uuid4().hex}"

    def client(self, key=None):
        return self.server.client(key or self.key)

    def send(self, method, path, key=None, server=None, **options):
        options["headers"] = {"Authorization": f"Bearer {key or self.key}", **options.get("headers", {})}
        origin = (server or self.server).origin
        return httpx.request(method, origin + path, trust_env=False, timeout=TIMEOUT, **options)

    def request_conversion(self, path):
        response = self.send("POST", path)
        assert (response.status_code, response.json()["code"]) == (200, 0), response.text

    def encryption(self):
        response = self.send("GET", ENCRYPTION)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    def wait_until_idle(self):
        return wait_until(
            lambda: (state := self.encryption())["state"] == "idle" and state, "the conversion has ended"
        )

    def encrypt(self):
        self.request_conversion(ENCRYPT)
        state = self.wait_until_idle()
        assert state == {"enabled": True, "done": state["total"], "total": state["total"]} | IDLE
        return state

    def decrypt(self):
        self.request_conversion(DECRYPT)
        state = self.wait_until_idle()
        assert state == {"enabled": False, "done": state["total"], "total": state["total"]} | IDLE
        return state

    def count_formats(self, kind):
        """Returns how many messages or blobs of the project are plaintext, and how many are encrypted."""
        table, format_column = {
            "messages": ("messages x join sessions s on s.id = x.session_id", "x.encrypted_as"),
            "blobs": ("(select * from blobs where state = 'live') s", "s.encryption_format"),
        }[kind]
        counts = f"count(*) filter (where {format_column} is null), count({format_column})"
        row = self.server.psql(f"select {counts} from {table} where s.project_id = '{self.id}'")
        return tuple(int(number) for number in row.split("|"))


@pytest.fixture
def project(server):
    return Project(server)


# ----- equal responses with and without encryption -----


def tool_call_message(id, name, **arguments):
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"role": "assistant", "tool_calls": [{"id": id, "type": "function", "function": function}]}


# A conversation with messages in each format, which contain images and tool calls.
MESSAGES = [
    ("openai", {"role": "system", "content": "Be brief."}),
    (
        "openai",
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Which train is this?"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG_BASE64}"}},
            ],
        },
    ),
    ("openai", tool_call_message("a", "timetable", to="Vienna", by="night")),
    ("openai", {"role": "tool", "tool_call_id": "a", "content": "The 21:04 from platform nine, every day but Sunday."}),
    (
        "anthropic",
        {"role": "assistant", "content": [{"type": "tool_use", "id": "b", "name": "seats", "input": {"n": 2}}]},
    ),
    (
        "anthropic",
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "b", "content": "Berths 15 and 16 are free. a\0b"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG_BASE64}},
            ],
        },
    ),
    (
        "gemini",
        {
            "role": "user",
            "parts": [
                {"text": "Book them, as on this picture."},
                {"inlineData": {"mimeType": "image/png", "data": PNG_BASE64}},
            ],
        },
    ),
    (
        "gemini",
        {"role": "model", "parts": [{"functionCall": {"id": "c", "name": "book", "args": {"berths": [15, 16]}}}]},
    ),
    ("openai", {"role": "user", "content": "A long story. " * 20_000}),
]
FILES = {
    "/empty.txt": b"",
    "/notes.md": b"# Notes\n\nBuy milk.\n",
    "/a/table.csv": b"name,age\nalice,30\n",
    "/a/b/bytes.bin": bytes(range(256)) * 100,
    "/a/large.bin": b"\0" + random.Random(1).randbytes(3 * MIB),
    "/a/large.txt": b"many lines of words\n" * 100_000 + b"and the needle\n",
}
SKILL = {"scripts/run.py": b"print('run')\n", "img/logo.png": PNG, "data/large.bin": b"\0" + b"x" * (2 * MIB)}
STRATEGIES = [
    [{"type": "remove_tool_result", "params": {"keep_recent_n_tool_results": 1}}],
    [{"type": "remove_tool_call_params", "params": {"keep_recent_n_tool_calls": 1}}],
    [{"type": "token_limit", "params": {"limit_tokens": 1000}}],
    [{"type": "middle_out", "params": {"token_reduce_to": 1000}}],
]


class ProjectContents:
    """Creates every kind of content of a project with the SDK."""

    def __init__(self, project):
        self.project = project
        with project.client() as client:
            self.session = client.sessions.create(user="alice")
            for format, blob in MESSAGES:
                client.sessions.store_message(self.session.id, blob=blob, format=format)
            for name, content in [("ticket.pdf", b"%PDF-1.4 a ticket"), ("scan.bin", FILES["/a/large.bin"])]:
                client.sessions.store_message(
                    self.session.id,
                    blob={"role": "user", "parts": [{"type": "file", "file_field": "f"}]},
                    format="acontext",
                    file_field="f",
                    file=FileUpload(name, content),
                )
            self.copy = client.sessions.copy(self.session.id).new_session_id
            self.disk = client.disks.create(user="alice")
            store_file(client, self.disk, "/notes.md", b"an earlier version")
            for path, content in FILES.items():
                store_file(client, self.disk, path, content)
            self.skill = add_skill(client, *SKILL.items(), user="alice")
            self.space = client.learning_spaces.create(user="alice")

    def read_everything(self):
        """Returns everything that can be read. Links are replaced by hashes of their contents, and ids are omitted."""
        with self.project.client() as client:
            return {
                "session": self.read_session(client, self.session.id),
                "copy": self.read_session(client, self.copy),
                "new copy": self.read_session(client, client.sessions.copy(self.session.id).new_session_id),
                "files": {path: self.read_file(client, path) for path in FILES},
                "directories": self.list_directories(client),
                "grep": {word: self.search(client, "grep", word) for word in ("needle", "buy m.lk", "an earlier", "x")},
                "glob": {query: self.search(client, "glob", query) for query in ("/a/*", "**/*.bin", "*.md")},
                "skill": self.read_skill(client, self.skill.id),
                "space": {
                    skill.name: self.read_skill(client, skill.id)
                    for skill in client.learning_spaces.list_skills(self.space.id)
                },
            }

    def read_session(self, client, session_id):
        def read(format, **options):
            page = client.sessions.get_messages(session_id, format=format, **options)
            urls = {sha256: url.url for sha256, url in (page.public_urls or {}).items()}
            items = [{key: item[key] for key in ("role", "parts")} if "parts" in item else item for item in page.items]
            # The object key of an asset contains the id of its project.
            items = json.loads(json.dumps(items).replace(self.project.id, "project"))
            return resolve_links(items), resolve_links(urls), page.metas, page.this_time_tokens

        pages = {format: read(format) for format in FORMATS}
        pages |= {f"edited {n}": read("openai", edit_strategies=each) for n, each in enumerate(STRATEGIES)}
        pages["first"] = read("gemini", limit=3, time_desc=False)
        pages["tokens"] = client.sessions.get_token_counts(session_id).total_tokens
        return pages

    def read_file(self, client, path):
        directory, _, name = path.rpartition("/")
        response = client.artifacts.get(self.disk.id, file_path=f"{directory}/", filename=name)
        download = f"/api/v1/disk/{self.disk.id}/artifact/download?file_path={quote(path)}"
        whole = self.project.send("GET", download)
        part = self.project.send("GET", download, headers={"Range": "bytes=5-1048600"})
        # A download with the key, a range of it, and the public link return the same bytes.
        assert (whole.status_code, whole.content) == (200, FILES[path])
        assert part.content == FILES[path][5:1048601] or path == "/empty.txt"
        assert resolve_links(response.public_url) == sha256_hex(FILES[path])
        if response.content:
            assert response.content.raw.encode() == FILES[path]
        return response.artifact.meta, response.content, sha256_hex(whole.content), whole.headers["etag"]

    def list_directories(self, client):
        listed = {path: client.artifacts.list(self.disk.id, path=path) for path in ("/", "/a/", "/a/b/")}
        return {path: (each.directories, full_paths(each.artifacts)) for path, each in listed.items()}

    def search(self, client, method, query):
        search = {"grep": client.artifacts.grep_artifacts, "glob": client.artifacts.glob_artifacts}[method]
        return sorted(full_paths(search(self.disk.id, query=query)))

    def read_skill(self, client, skill_id):
        archive = {path: sha256_hex(content) for path, content in unpack(client.skills.download_zip(skill_id)).items()}
        files = {}
        for path in archive:
            response = client.skills.get_file(skill_id=skill_id, file_path=path)
            files[path] = response.content, response.url and resolve_links(response.url)
        return archive, files


def sha256_hex(content):
    return hashlib.sha256(content).hexdigest()


def store_file(client, disk, path, content):
    directory, _, name = path.rpartition("/")
    return client.artifacts.upsert(disk.id, file=FileUpload(name, content), file_path=f"{directory}/")


def full_paths(artifacts):
    return [artifact.path + artifact.filename for artifact in artifacts]


def resolve_links(value):
    """Returns the value with each public link replaced by the hash of the content that it serves."""
    if isinstance(value, dict):
        return {key: resolve_links(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [resolve_links(inner) for inner in value]
    if isinstance(value, str):
        return LINK_REGEX.sub(lambda link: sha256_hex(download(link[0])), value)
    return value


def download(link):
    response = open_link(link)
    assert response.status_code == 200, response.text
    return response.content


@pytest.fixture(scope="module")
def expected_contents(server):
    """What can be read from a project that was never encrypted."""
    expected = ProjectContents(Project(server)).read_everything()
    # The comparison covers all contents.
    assert expected["grep"] == {
        "needle": ["/a/large.txt"],
        "buy m.lk": ["/notes.md"],
        "an earlier": [],
        "x": [],
    }
    assert len(expected["session"]["acontext"][0]) == len(MESSAGES) + 2
    assert expected["session"] == expected["copy"] == expected["new copy"]
    assert set(expected["skill"][0]) == {"SKILL.md", *SKILL} and len(expected["space"]) == 2
    return expected


def test_content_created_while_encrypted_reads_the_same(project, expected_contents):
    project.encrypt()
    contents = ProjectContents(project)
    assert project.count_formats("messages")[0] == project.count_formats("blobs")[0] == 0
    assert contents.read_everything() == expected_contents


def test_content_reads_the_same_after_encryption(project, expected_contents):
    contents = ProjectContents(project)
    project.encrypt()
    assert project.count_formats("messages")[0] == project.count_formats("blobs")[0] == 0
    assert contents.read_everything() == expected_contents


def test_encrypted_content_reads_the_same_after_decryption(project, expected_contents):
    project.encrypt()
    contents = ProjectContents(project)
    project.decrypt()
    assert project.count_formats("messages")[1] == project.count_formats("blobs")[1] == 0
    assert contents.read_everything() == expected_contents


def test_content_reads_the_same_after_each_of_three_conversions(project, expected_contents):
    contents = ProjectContents(project)
    for step in (project.encrypt, project.decrypt, project.encrypt):
        assert step()["total"] > len(MESSAGES)
        assert contents.read_everything() == expected_contents


def test_pending_call_gets_its_response_after_a_conversion(project):
    """The names of pending calls are encrypted too, and the right call is found."""
    conversions = itertools.cycle([project.encrypt, project.decrypt])
    with project.client() as client:
        session = client.sessions.create()
        for _ in range(3):
            call = {"functionCall": {"name": "look", "args": {"at": "it"}}}
            client.sessions.store_message(session.id, blob={"role": "model", "parts": [call]}, format="gemini")
            next(conversions)()
            response = {"role": "user", "parts": [{"functionResponse": {"name": "look", "response": {"seen": True}}}]}
            message = client.sessions.store_message(session.id, blob=response, format="gemini")
            items = client.sessions.get_messages(session.id, format="acontext").items
            assert message.parts[0].meta["tool_call_id"] == items[-2]["parts"][0]["meta"]["id"]
            # The call is no longer pending.
            message = client.sessions.store_message(session.id, blob=response, format="gemini")
            assert "tool_call_id" not in message.parts[0].meta


def test_a_response_is_replayed_after_a_conversion(project):
    with project.client() as client:
        session, disk = client.sessions.create(), client.disks.create()

    def send(number):
        headers = {"Idempotency-Key": f"request-{number}"}
        blob = {"blob": {"role": "user", "content": f"message {number}"}}
        message = project.send("POST", f"/api/v1/session/{session.id}/messages", headers=headers, json=blob)
        files = {"file": (f"{number}.txt", b"content")}
        file = project.send("POST", f"/api/v1/disk/{disk.id}/artifact", headers=headers, files=files)
        return message, file

    first_responses = [send(0)]
    for number, step in enumerate([project.encrypt, project.decrypt, project.encrypt], start=1):
        step()
        for first, again in zip(sum(first_responses, ()), sum(map(send, range(number)), ()), strict=True):
            assert (first.status_code, again.status_code, again.headers["idempotent-replayed"]) == (201, 201, "true")
            assert again.content == first.content
        first_responses.append(send(number))
    with project.client() as client:
        assert len(client.sessions.get_messages(session.id).ids) == len(first_responses)


# ----- no plaintext and no keys in storage -----


def unwrap_master_key(server, key):
    """Returns the master key that a compact key contains."""
    body = base64.urlsafe_b64decode(key.removeprefix("sk-ac-"))
    assert (len(body), body[0]) == (57, 1)
    secret, wrapped = body[1:17].hex(), body[17:]
    pepper = (server.data / "pepper").read_text().strip()
    # HKDF-SHA256 with an output of one block.
    extracted = hmac.digest(f"{pepper}-master-key-wrap".encode(), f"{secret}{pepper}".encode(), "sha256")
    wrapping_key = hmac.digest(extracted, f"{pepper} master key wrapping".encode() + b"\1", "sha256")
    command = ["openssl", "enc", "-d", "-id-aes256-wrap", "-K", wrapping_key.hex(), "-iv", "a6" * 8]
    return subprocess.run(command, input=wrapped, capture_output=True, check=True, timeout=TIMEOUT).stdout


def encodings(secret):
    """Returns encodings of these bytes: raw, in base64 at each of the three alignments, and each of these in hex."""
    texts = {secret}
    for shift in range(3):
        # Some bits of the first and the last characters belong to the adjacent bytes.
        text = base64.b64encode(b"\0" * shift + secret)
        text = text[4 if shift else 0 : len(text) // 4 * 4 - 4]
        texts |= {text, text.replace(b"+", b"-").replace(b"/", b"_")}
    return texts | {each.hex().encode() for each in texts}


def stored_data(server):
    """Yields everything that the server stores: tables, objects, temporary files of uploads, and the log."""
    tables = server.psql("select tablename from pg_tables where schemaname = 'public'").splitlines()
    assert {"messages", "blobs", "jobs", "idempotency_records", "artifact_versions"} <= set(tables)
    for table in tables:
        yield f"table {table}", server.psql(f'copy "{table}" to stdout').encode()
    for directory in ("objects", "tmp"):
        for path in server.files(directory):
            # The sweep may delete the file now.
            with suppress(FileNotFoundError):
                yield f"file in {directory}", path.read_bytes()
    yield "log", server.log().encode()


def find_secrets(server, secrets):
    """Returns where these secrets are stored: pairs of the name of a secret and a location."""
    texts_by_name = {name: encodings(secret) for name, secret in secrets.items()}
    return {
        (name, location)
        for location, content in stored_data(server)
        for name, texts in texts_by_name.items()
        if any(text in content for text in texts)
    }


class MarkedContents:
    """Creates every kind of content, each with a different unique marker."""

    def __init__(self, project):
        self.project, self.secrets, self.locations = project, {}, {}
        marker = self.new_marker
        with project.client() as client:
            session = client.sessions.create()
            store = client.sessions.store_message
            store(session.id, blob={"role": "user", "content": marker("message", "messages")})
            text = marker("long message", "messages") + " and more" * 50_000
            store(session.id, blob={"role": "user", "content": text})
            store(session.id, blob=tool_call_message("a", "look", at=marker("arguments", "messages")))
            store(session.id, blob={"role": "tool", "tool_call_id": "a", "content": marker("result", "messages")})
            pending_call = {"functionCall": {"name": marker("pending call", "messages"), "args": {}}}
            store(session.id, blob={"role": "model", "parts": [pending_call]}, format="gemini")
            pdf = b"%PDF-1.4 " + marker("inline file", "messages").encode() + b"-" * 50_000
            inline = base64.b64encode(pdf).decode()
            file = {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{inline}"}}
            store(session.id, blob={"role": "user", "content": [file]})
            part = {"type": "file", "file_field": "f"}
            for name, size in [("file of a message", 0), ("large file of a message", 2 * MIB)]:
                content = marker(name, "objects").encode() + os.urandom(size)
                options = {"format": "acontext", "file_field": "f", "file": FileUpload("f.bin", content)}
                store(session.id, blob={"role": "user", "parts": [part]}, **options)
            headers = {"Idempotency-Key": str(uuid.uuid4())}
            body = {"blob": {"role": "user", "content": marker("message with an idempotency record", "messages")}}
            path = f"/api/v1/session/{session.id}/messages"
            assert project.send("POST", path, headers=headers, json=body).status_code == 201
            client.sessions.copy(session.id)
            deleted = client.sessions.create()
            file = FileUpload("f.bin", marker("file of a deleted session", "objects").encode())
            part = {"role": "user", "parts": [part]}
            store(deleted.id, blob=part, format="acontext", file_field="f", file=file)
            client.sessions.delete(deleted.id)

            self.disk = client.disks.create()
            store_file(client, self.disk, "/a.txt", marker("earlier version", "objects").encode())
            store_file(client, self.disk, "/a.txt", marker("small file", "objects").encode())
            large = os.urandom(MIB) + marker("large file", "objects").encode() + os.urandom(MIB)
            store_file(client, self.disk, "/large.bin", large)
            store_file(client, self.disk, "/deleted.txt", marker("deleted file", "objects").encode())
            client.artifacts.delete(self.disk.id, file_path="/", filename="deleted.txt")
            text = marker("file of a skill", "objects")
            large = b"\0" * MIB + marker("large file of a skill", "objects").encode()
            self.skill = add_skill(client, ("a.md", text), ("large.bin", large))

    def new_marker(self, name, location):
        marker = f"marker-{uuid.uuid4().hex}"
        self.secrets[name], self.locations[name] = marker.encode(), location
        return marker

    def read_all(self):
        """Reads everything, so that data which is stored when content is read exists too."""
        with self.project.client() as client:
            for name in ("small file", "large file"):
                assert len(client.artifacts.grep_artifacts(self.disk.id, query=self.secrets[name].decode())) <= 1
            resolve_links(client.artifacts.get(self.disk.id, file_path="/", filename="large.bin").public_url)
            client.skills.download_zip(self.skill.id)
            for session in client.sessions.list(limit=200).items:
                for format in FORMATS:
                    client.sessions.get_messages(session.id, format=format)


# Jobs with the wrapped master key wait in the queue, and the log is more detailed than usual.
DELAYED_OBSERVATION = {"LLM_SDK": "mock", "SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS": "3600", "LOG_LEVEL": "debug"}


def test_encrypted_content_is_nowhere_stored_as_plaintext(start_server):
    server = start_server(**DELAYED_OBSERVATION)
    project = Project(server)
    before = MarkedContents(project)
    locations = find_secrets(server, before.secrets)
    # The search finds all markers before the encryption.
    for name, location in before.locations.items():
        assert (name, "table messages" if location == "messages" else "file in objects") in locations, name

    project.encrypt()
    assert find_secrets(server, before.secrets) == set()
    after = MarkedContents(project)
    for marked in (before, after):
        marked.read_all()
    assert find_secrets(server, before.secrets | after.secrets) == set()
    assert project.count_formats("messages")[0] == project.count_formats("blobs")[0] == 0

    # After decryption everything is plaintext again, and another encryption leaves no plaintext.
    project.decrypt()
    assert {name for name, _ in find_secrets(server, after.secrets)} == set(after.secrets)
    project.encrypt()
    assert find_secrets(server, before.secrets | after.secrets) == set()
    server.stop()
    assert [path for path in server.files("tmp")] == []


def test_project_keys_and_master_keys_are_not_stored(start_server):
    server = start_server(**DELAYED_OBSERVATION)
    project = Project(server)
    MarkedContents(project)
    project.encrypt()
    MarkedContents(project).read_all()
    rotated = project.key
    headers = {"Idempotency-Key": "the-key-of-this-rotation"}
    response = project.send("PUT", "/admin/v1/project/secret_key", headers=headers)
    assert response.status_code == 200, response.text
    project.key = response.json()["data"]["secret_key"]
    MarkedContents(project).read_all()

    secrets = {}
    for name, key in [("rotated", rotated), ("new", project.key)]:
        body = key.removeprefix("sk-ac-")
        raw = base64.urlsafe_b64decode(body)
        secrets[f"{name} key"] = body.encode()
        secrets[f"secret of the {name} key"] = raw[1:17]
        secrets[f"secret of the {name} key as text"] = raw[1:17].hex().encode()
        secrets[f"wrapped key in the {name} key"] = raw[17:]
        secrets[f"master key in the {name} key"] = unwrap_master_key(server, key)
    master = secrets["master key in the new key"]
    assert len(master) == 32 and secrets["master key in the rotated key"] == master
    # It is the master key with which the content is encrypted.
    check_value = hmac.digest(master, b"acontextd key check, first form " + uuid.UUID(project.id).bytes, "sha256")[:16]
    stored_value = server.psql(f"select encode(master_key_check_value, 'hex') from projects where id = '{project.id}'")
    assert stored_value == check_value.hex()
    # Waiting jobs contain it, encrypted.
    condition = f"project_id = '{project.id}' and encrypted_kek is not null"
    assert int(server.psql(f"select count(*) from jobs where {condition}")) > 0
    assert find_secrets(server, secrets) == set()

    project.decrypt()
    assert int(server.psql(f"select count(*) from jobs where {condition}")) == 0
    assert find_secrets(server, secrets) == set()


# ----- kills during a conversion -----


# Jobs of a killed process are reclaimed soon, and requests do not wait for conversions.
FAST_RECOVERY = {
    "ACONTEXTD_JOB_LEASE": "1s",
    "ACONTEXTD_CONVERSION_WAIT": "1ms",
    "ACONTEXTD_FILE_VERSIONS": "1000000",
}


def same_port(server):
    """Returns the setting for the port of this server, so that clients reach the next server at the same address."""
    return {"API_EXPORT_PORT": str(server.port)}


def fill_project(project, sessions=30, messages=20, files=150):
    """Creates so much content that a conversion takes a while."""
    with project.client() as client:
        disk = client.disks.create()
        session_list = [client.sessions.create() for _ in range(sessions)]

        def store_messages(session):
            for number in range(messages):
                blob = {"role": "user", "content": f"{project.marker} {number} " + "word " * 2000 * (number % 5 == 4)}
                client.sessions.store_message(session.id, blob=blob)

        def store_numbered_file(number):
            content = f"{project.marker} {number}".encode() + os.urandom(MIB * (number % 20 == 19))
            store_file(client, disk, f"/{number}.bin", content)
            return content

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(store_messages, session_list))
            contents = list(pool.map(store_numbered_file, range(files)))
    return disk, session_list, contents


class Writer:
    """Stores messages and files in turn, and retries each request until there is a response."""

    def __init__(self, project, shared, number):
        self.project, self.number = project, number
        with project.client() as client:
            self.disk, self.session, self.shared = client.disks.create(), client.sessions.create(), shared
        self.numbers = itertools.count()
        self.messages, self.files, self.errors = [], [], []
        self.retries = 0

    def write_until(self, stop):
        with httpx.Client(trust_env=False, timeout=TIMEOUT) as http:
            # The pause leaves processor time for the conversion.
            while not stop.wait(0.1) and not self.errors:
                self.write(http, next(self.numbers))

    def write(self, http, number):
        text = f"{self.project.marker} of {self.number}: {number}"
        session = self.shared if number % 3 == 0 else self.session
        body = {"blob": {"role": "user", "content": text}}
        if self.send(http, f"/session/{session.id}/messages", f"m-{self.number}-{number}", json=body):
            self.messages.append((session.id, text))
        # There are only five names, so that files get several versions.
        name, content = f"{number % 5}.bin", text.encode() + b"-" * (MIB + MIB // 2) * (number % 10 == 9)
        files = {"file": (name, content)}
        if self.send(http, f"/disk/{self.disk.id}/artifact", f"f-{self.number}-{number}", files=files):
            self.files.append((name, content))

    def send(self, http, path, key, **options):
        headers = {"Authorization": f"Bearer {self.project.key}", "Idempotency-Key": key}

        def try_request():
            try:
                return http.post(self.project.server.base_url + path, headers=headers, **options)
            except httpx.TransportError:
                # The server was killed, and the next one will receive the request.
                self.retries += 1
                return None

        response = wait_until(try_request, "a retried request has a response")
        if response.status_code != 201:
            self.errors.append(f"{path}: {response.status_code} {response.text}")
        return response.status_code == 201

    def assert_nothing_is_lost_or_duplicated(self):
        assert self.errors == []
        project = self.project
        with project.client() as client:
            for session in (self.session, self.shared):
                texts = [item["content"] for item in client.sessions.get_messages(session.id).items]
                own_texts = [text for text in texts if text.startswith(f"{project.marker} of {self.number}:")]
                assert own_texts == [text for session_id, text in self.messages if session_id == session.id]
            newest = dict(self.files)
            for name, content in newest.items():
                path = f"/api/v1/disk/{self.disk.id}/artifact/download?file_path=/{name}"
                response = project.send("GET", path)
                assert (response.status_code, response.content) == (200, content)
        versions = project.server.psql(
            f"select filename, sha256 from artifact_versions where disk_id = '{self.disk.id}' order by from_revision"
        )
        stored = [tuple(line.split("|")) for line in versions.splitlines()]
        assert stored == [(name, sha256_hex(content)) for name, content in self.files]


@contextmanager
def writing(writers):
    """Lets all writers write until the block ends and each has stored something during it."""
    stop = threading.Event()
    threads = [threading.Thread(target=writer.write_until, args=(stop,)) for writer in writers]
    before = [len(writer.files) for writer in writers]
    for thread in threads:
        thread.start()
    try:
        yield
        wait_until(
            lambda: all(w.errors or len(w.files) > n for w, n in zip(writers, before, strict=True)),
            "each writer has a response",
        )
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert sum((writer.errors for writer in writers), []) == []


def conversion_has_ended(server, project):
    """Reads the state from the database, because a request would provide the server with the key."""
    statement = f"select finished_at is not null from encryption_conversions where project_id = '{project.id}'"
    return server.psql(statement) == "t"


def assert_storage_format(server, project, encrypted):
    """Checks that all content has this storage format, and that no data in the other one is left."""
    for kind in ("messages", "blobs"):
        plaintext_count, encrypted_count = project.count_formats(kind)
        if encrypted:
            assert (plaintext_count, encrypted_count > 0) == (0, True), kind
        else:
            assert (encrypted_count, plaintext_count > 0) == (0, True), kind
    # Rows of deleted blobs exist until the sweep, but their objects do not.
    condition = f"project_id = '{project.id}' and (encryption_format is null) = {encrypted}"
    dead_keys = server.psql(f"select object_key from blobs where {condition}").split()
    dead_names = {key.rpartition("/")[2] for key in dead_keys}
    wait_until(
        lambda: dead_names.isdisjoint(path.name for path in server.files("objects")),
        "objects in the other format are deleted",
        seconds=5,
    )
    if encrypted:
        # An upload that was rejected because of its storage format may not be deleted yet.
        marker = {"marker": project.marker.encode()}
        wait_until(lambda: not find_secrets(server, marker), "no plaintext is left", seconds=5)


def wait_for_progress(project, share):
    """Waits until this share of the conversion is done. Returns False if the conversion has already ended."""

    def progress():
        state = project.encryption()
        if state["state"] == "idle":
            return "ended"
        return state["total"] and state["done"] >= share * state["total"] and "running"

    return wait_until(progress, "a part of the conversion is done") == "running"


def test_a_killed_conversion_continues_and_loses_nothing(start_server):
    """Kills the server at random times while clients write."""
    rng = random.Random()
    server = start_server(**FAST_RECOVERY)
    project = Project(server)
    disk, sessions, contents = fill_project(project)
    with project.client() as client:
        shared = client.sessions.create()
    writers = [Writer(project, shared, number) for number in range(3)]
    kills = {True: 0, False: 0}
    # A slow machine may notice the progress only after the conversion has ended. Such a conversion does not count.
    for encrypt in itertools.islice(itertools.cycle([True, False]), 20):
        shares = sorted(rng.random() * 0.9 for _ in range(2))
        with writing(writers):
            project.request_conversion(ENCRYPT if encrypt else DECRYPT)
            for share in shares:
                if not wait_for_progress(project, share):
                    break
                server.kill()
                kills[encrypt] += 1
                server = project.server = start_server(**FAST_RECOVERY, **same_port(server))
            project.wait_until_idle()
        assert project.encryption() | {"done": 0, "total": 0} == {"enabled": encrypt, "done": 0, "total": 0} | IDLE
        assert_storage_format(server, project, encrypt)
        for writer in writers:
            writer.assert_nothing_is_lost_or_duplicated()
        if min(kills.values()) >= 2:
            break
    assert min(kills.values()) >= 2, kills
    with project.client() as client:
        for session in sessions:
            items = client.sessions.get_messages(session.id).items
            starts = [item["content"].split()[:2] for item in items]
            assert starts == [[project.marker, str(number)] for number in range(20)]
    for number, content in enumerate(contents):
        path = f"/api/v1/disk/{disk.id}/artifact/download?file_path=/{number}.bin"
        assert project.send("GET", path).content == content
    server.stop()


@pytest.mark.parametrize("encrypt", [True, False], ids=["encrypting", "decrypting"])
def test_a_killed_conversion_continues_without_a_request(start_server, encrypt):
    """The new server receives no requests of the project: the job contains the key."""
    server = start_server(**FAST_RECOVERY)
    project = Project(server)
    # So much that the conversion has not ended when its progress is noticed.
    fill_project(project, files=400)
    if not encrypt:
        project.encrypt()
    project.request_conversion(ENCRYPT if encrypt else DECRYPT)
    assert wait_for_progress(project, 0.1)
    server.kill()
    server = project.server = start_server(**FAST_RECOVERY, **same_port(server))
    wait_until(lambda: conversion_has_ended(server, project), "the conversion has ended")
    assert_storage_format(server, project, encrypt)
    server.stop()


def test_writes_during_alternating_conversions_are_stored(start_server):
    """A conversion that the next one cancels must not leave a transaction open that rolls back other writes."""
    server = start_server(**FAST_RECOVERY)
    project = Project(server)
    with project.client() as client:
        session, disk = client.sessions.create(), client.disks.create()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: store_file(client, disk, f"/{number}.txt", os.urandom(50)), range(200)))
    event_ids, stop = [], threading.Event()

    def add_events():
        """Adds events, because the server inserts them with one statement outside of a transaction."""
        body = {"type": "text", "data": {"text": "noted"}}
        path = f"{server.base_url}/session/{session.id}/events"
        with httpx.Client(trust_env=False, timeout=TIMEOUT) as http:
            while not stop.is_set():
                response = http.post(path, headers={"Authorization": f"Bearer {project.key}"}, json=body)
                event_ids.append(response.json()["data"]["id"])

    threads = [threading.Thread(target=add_events) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(40):
            wait_for_progress(project, random.random() * 0.3)
            project.request_conversion(DECRYPT if number % 2 else ENCRYPT)
            latest_ids = event_ids[-100:]
            stored_ids = server.psql("select id from session_events order by created_at desc limit 400").split()
            # Events may be stored before their response, but every event with a response must be stored.
            assert set(latest_ids) <= set(stored_ids)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert "already a transaction in progress" not in server.log()
    server.stop()


# ----- two processes -----


@pytest.fixture
def servers(start_server):
    """Two servers that share the database and the object store of the first one."""
    with temporary_home() as directory:
        first = start_server(directory)
        second_home = directory / "second"
        second_home.mkdir()
        (second_home / "data").mkdir()
        (second_home / "data" / "objects").symlink_to(first.data / "objects")
        second = start_server(
            second_home,
            DATABASE_URL=first.dsn,
            ROOT_SECRET_PEPPER=(first.data / "pepper").read_text().strip(),
        )
        yield first, second
        second.stop()
        first.stop()


def test_a_rotated_key_is_invalid_everywhere_within_a_second(servers):
    for first, second in (servers, servers[::-1]):
        project = Project(first)
        contents = ProjectContents(project)
        project.encrypt()
        expected = contents.read_everything()
        old = project.key
        # The other process verifies the key and caches it.
        assert project.send("GET", ENCRYPTION, server=second).status_code == 200
        response = project.send("PUT", "/admin/v1/project/secret_key")
        rotated_at = time.monotonic()
        assert response.status_code == 200, response.text
        wait_until(
            lambda: project.send("GET", ENCRYPTION, old, second).status_code == 401, "the rotated key is rejected"
        )
        assert time.monotonic() - rotated_at < 1
        assert project.send("GET", ENCRYPTION, old, first).status_code == 401
        project.key = response.json()["data"]["secret_key"]
        assert project.key != old
        for project.server in servers[::-1]:
            assert contents.read_everything() == expected
        assert project.count_formats("messages")[0] == project.count_formats("blobs")[0] == 0


def test_all_processes_use_a_new_storage_format_immediately(servers):
    """After the response no process stores plaintext, even if it read the old setting just before."""
    first, second = servers
    project = Project(first)
    with project.client() as client:
        session, disk = client.sessions.create(), client.disks.create()
    for number, path in enumerate([ENCRYPT, DECRYPT, ENCRYPT]):
        # The other process caches the project with its old setting.
        assert project.send("GET", ENCRYPTION, server=second).status_code == 200
        project.request_conversion(path)
        with second.client(project.key) as client:
            client.sessions.store_message(session.id, blob={"role": "user", "content": f"message {number}"})
            store_file(client, disk, f"/{number}.txt", f"file {number}".encode())
        other_format = 0 if path == ENCRYPT else 1
        project.wait_until_idle()
        assert project.count_formats("messages")[other_format] == project.count_formats("blobs")[other_format] == 0
    with project.client() as client:
        assert [item["content"] for item in client.sessions.get_messages(session.id).items] == [
            f"message {number}" for number in range(3)
        ]


# ----- errors -----


def error_message(response):
    body = response.json()
    assert body["code"] == response.status_code >= 400
    return response.status_code, body["msg"]


@pytest.mark.parametrize("path", [ENCRYPT, DECRYPT])
def test_encryption_with_a_legacy_key_is_400(server, project, path):
    status, message = error_message(project.send("POST", path, server.key))
    assert status == 400 and "API key required" in message
    state = project.send("GET", ENCRYPTION, server.key).json()["data"]
    assert state == {"enabled": False, "done": 0, "total": 0} | IDLE


def test_decryption_of_an_unencrypted_project_is_400(project):
    for _ in range(2):
        status, message = error_message(project.send("POST", DECRYPT))
        assert status == 400 and "project encryption is not enabled" in message
        project.encrypt()
        project.decrypt()


def test_encryption_of_an_encrypted_project_succeeds(project):
    contents = ProjectContents(project)
    project.encrypt()
    expected = contents.read_everything()
    project.encrypt()
    assert contents.read_everything() == expected


def test_concurrent_encryption_requests_all_succeed(project):
    contents = ProjectContents(project)
    expected = contents.read_everything()
    with ThreadPoolExecutor(6) as pool:
        responses = list(pool.map(lambda _: project.send("POST", ENCRYPT), range(6)))
    assert [response.status_code for response in responses] == [200] * 6
    assert project.wait_until_idle()["error"] is None
    assert project.count_formats("messages")[0] == project.count_formats("blobs")[0] == 0
    assert contents.read_everything() == expected


def test_settings_contain_whether_a_project_is_encrypted(project):
    with project.client() as client:
        for step, enabled in [(project.encrypt, True), (project.decrypt, False)]:
            step()
            assert client.project.get_configs().model_dump()["encryption_enabled"] is enabled


def test_the_key_of_a_deleted_project_is_invalid(server, project):
    project.encrypt()
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    response = httpx.delete(f"{server.origin}/admin/v1/project/{project.id}", headers=headers, trust_env=False)
    assert response.status_code == 200, response.text
    for method, path in [("POST", ENCRYPT), ("POST", DECRYPT), ("GET", ENCRYPTION)]:
        assert error_message(project.send(method, path))[0] == 401


def test_a_key_with_another_master_key_is_invalid(server, project):
    """The key has the right secret, and the wrapped master key of another project."""
    project.encrypt()
    other = Project(server)
    own_parts, other_parts = (base64.urlsafe_b64decode(key.removeprefix("sk-ac-")) for key in (project.key, other.key))
    forged = "sk-ac-" + base64.urlsafe_b64encode(own_parts[:17] + other_parts[17:]).decode()
    for method, path in [("POST", ENCRYPT), ("POST", DECRYPT), ("GET", ENCRYPTION)]:
        assert error_message(project.send(method, path, forged))[0] == 401


def test_other_projects_cannot_read_an_encrypted_project(server, project):
    contents = ProjectContents(project)
    project.encrypt()
    for key in (Project(server).key, server.key):
        for path, status in [
            (f"/api/v1/session/{contents.session.id}/messages", 404),
            (f"/api/v1/session/{contents.session.id}/token_counts", 404),
            (f"/api/v1/disk/{contents.disk.id}/artifact?file_path=/notes.md", 403),
            (f"/api/v1/disk/{contents.disk.id}/artifact/download?file_path=/notes.md", 404),
            (f"/api/v1/disk/{contents.disk.id}/artifact/grep?query=milk", 403),
            (f"/api/v1/agent_skills/{contents.skill.id}", 404),
            (f"/api/v1/agent_skills/{contents.skill.id}/download_zip", 404),
        ]:
            response = project.send("GET", path, key)
            assert error_message(response)[0] in (403, 404), path
            assert b"milk" not in response.content.replace(b"query=milk", b"")


def test_key_reset_of_an_encrypted_project_is_400(server, project):
    contents = ProjectContents(project)
    project.encrypt()
    expected = contents.read_everything()
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    path = f"{server.origin}/admin/v1/project/{project.id}/secret_key"
    status, message = error_message(httpx.put(path, headers=headers, trust_env=False))
    assert status == 400 and "encrypted" in message
    assert contents.read_everything() == expected
