"""Encrypted projects: the same work as on any other, and nothing in clear where it is stored, whatever is killed."""

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
from packing import add_skill, unpack
from support import ADMIN_TOKEN, PATIENCE, eventually, new_project, open_link, refused, temporary_home

MIB = 1 << 20
FORMATS = ["openai", "anthropic", "gemini", "acontext"]
ENCRYPTION, ENCRYPT, DECRYPT = "/api/v1/project/encryption", "/api/v1/project/encrypt", "/api/v1/project/decrypt"
IDLE = {"state": "idle", "error": None}
# The smallest PNG: one pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010804000000b51c0c02"
    "0000000b4944415478da6364f80f00010501012718e3660000000049454e44ae426082"
)
LINK = re.compile(r"http://[^ ]+/api/v1/material/[A-Za-z0-9_-]+")
PICTURE = base64.b64encode(PNG).decode()


class Project:
    """A project of its own with a compact key, which it is encrypted with."""

    def __init__(self, server):
        self.server = server
        self.id, self.key = new_project(server)
        # Stands in contents of this project and nowhere else.
        self.mark = f"marker-{uuid.uuid4().hex}"

    def client(self, key=None):
        return self.server.client(key or self.key)

    def send(self, method, path, key=None, server=None, **how):
        how["headers"] = {"Authorization": f"Bearer {key or self.key}", **how.get("headers", {})}
        origin = (server or self.server).origin
        return httpx.request(method, origin + path, trust_env=False, timeout=PATIENCE, **how)

    def ask_to(self, path):
        answer = self.send("POST", path)
        assert (answer.status_code, answer.json()["code"]) == (200, 0), answer.text

    def encryption(self):
        answer = self.send("GET", ENCRYPTION)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def when_idle(self):
        return eventually(lambda: (now := self.encryption())["state"] == "idle" and now, "the end of the conversion")

    def encrypt(self):
        self.ask_to(ENCRYPT)
        now = self.when_idle()
        assert now == {"enabled": True, "done": now["total"], "total": now["total"]} | IDLE
        return now

    def decrypt(self):
        self.ask_to(DECRYPT)
        now = self.when_idle()
        assert now == {"enabled": False, "done": now["total"], "total": now["total"]} | IDLE
        return now

    def count(self, what):
        """Messages or stored objects of the project: how many are in clear, and how many are sealed."""
        table, sealed = {
            "messages": ("messages x join sessions s on s.id = x.session_id", "x.encrypted_as"),
            "blobs": ("(select * from blobs where state = 'live') s", "s.encryption_format"),
        }[what]
        counts = f"count(*) filter (where {sealed} is null), count({sealed})"
        found = self.server.psql(f"select {counts} from {table} where s.project_id = '{self.id}'")
        return tuple(int(number) for number in found.split("|"))


@pytest.fixture
def project(server):
    return Project(server)


# ----- the same work as ever -----


def call(id, name, **arguments):
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"role": "assistant", "tool_calls": [{"id": id, "type": "function", "function": function}]}


# A conversation in which each format says something, with pictures and calls.
TALK = [
    ("openai", {"role": "system", "content": "Be brief."}),
    (
        "openai",
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Which train is this?"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}},
            ],
        },
    ),
    ("openai", call("a", "timetable", to="Vienna", by="night")),
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
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}},
            ],
        },
    ),
    (
        "gemini",
        {
            "role": "user",
            "parts": [
                {"text": "Book them, as on this picture."},
                {"inlineData": {"mimeType": "image/png", "data": PICTURE}},
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


class Belongings:
    """Something of everything that a project can have, made by the SDK."""

    def __init__(self, project):
        self.project = project
        with project.client() as client:
            self.session = client.sessions.create(user="alice")
            for format, blob in TALK:
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
            put(client, self.disk, "/notes.md", b"an earlier version")
            for path, content in FILES.items():
                put(client, self.disk, path, content)
            self.skill = add_skill(client, *SKILL.items(), user="alice")
            self.space = client.learning_spaces.create(user="alice")

    def look(self):
        """All that can be read of it, in which links are replaced by what they open and ids are left out."""
        with self.project.client() as client:
            return {
                "session": self.conversation(client, self.session.id),
                "copy": self.conversation(client, self.copy),
                "copied now": self.conversation(client, client.sessions.copy(self.session.id).new_session_id),
                "files": {path: self.file(client, path) for path in FILES},
                "folders": self.folders(client),
                "grep": {word: self.found(client, "grep", word) for word in ("needle", "buy m.lk", "an earlier", "x")},
                "glob": {query: self.found(client, "glob", query) for query in ("/a/*", "**/*.bin", "*.md")},
                "skill": self.skill_files(client, self.skill.id),
                "space": {
                    skill.name: self.skill_files(client, skill.id)
                    for skill in client.learning_spaces.list_skills(self.space.id)
                },
            }

    def conversation(self, client, session_id):
        def read(format, **how):
            got = client.sessions.get_messages(session_id, format=format, **how)
            urls = {sha256: url.url for sha256, url in (got.public_urls or {}).items()}
            items = [{key: item[key] for key in ("role", "parts")} if "parts" in item else item for item in got.items]
            # The public name of a file has its project in it.
            items = json.loads(json.dumps(items).replace(self.project.id, "project"))
            return opened(items), opened(urls), got.metas, got.this_time_tokens

        seen = {format: read(format) for format in FORMATS}
        seen |= {f"edited {n}": read("openai", edit_strategies=each) for n, each in enumerate(STRATEGIES)}
        seen["first"] = read("gemini", limit=3, time_desc=False)
        seen["tokens"] = client.sessions.get_token_counts(session_id).total_tokens
        return seen

    def file(self, client, path):
        folder, _, name = path.rpartition("/")
        got = client.artifacts.get(self.disk.id, file_path=f"{folder}/", filename=name)
        download = f"/api/v1/disk/{self.disk.id}/artifact/download?file_path={quote(path)}"
        whole = self.project.send("GET", download)
        part = self.project.send("GET", download, headers={"Range": "bytes=5-1048600"})
        # By its link, by the key, and a part of it: the same bytes.
        assert (whole.status_code, whole.content) == (200, FILES[path])
        assert part.content == FILES[path][5:1048601] or path == "/empty.txt"
        assert opened(got.public_url) == digest(FILES[path])
        if got.content:
            assert got.content.raw.encode() == FILES[path]
        return got.artifact.meta, got.content, digest(whole.content), whole.headers["etag"]

    def folders(self, client):
        listed = {path: client.artifacts.list(self.disk.id, path=path) for path in ("/", "/a/", "/a/b/")}
        return {path: (each.directories, names(each.artifacts)) for path, each in listed.items()}

    def found(self, client, how, query):
        find = {"grep": client.artifacts.grep_artifacts, "glob": client.artifacts.glob_artifacts}[how]
        return sorted(names(find(self.disk.id, query=query)))

    def skill_files(self, client, skill_id):
        packed = {path: digest(content) for path, content in unpack(client.skills.download_zip(skill_id)).items()}
        shown = {}
        for path in packed:
            got = client.skills.get_file(skill_id=skill_id, file_path=path)
            shown[path] = got.content, got.url and opened(got.url)
        return packed, shown


def digest(content):
    return hashlib.sha256(content).hexdigest()


def put(client, disk, path, content):
    folder, _, name = path.rpartition("/")
    return client.artifacts.upsert(disk.id, file=FileUpload(name, content), file_path=f"{folder}/")


def names(artifacts):
    return [artifact.path + artifact.filename for artifact in artifacts]


def opened(value):
    """The same, with the hash of what it opens in the place of each public link."""
    if isinstance(value, dict):
        return {key: opened(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [opened(inner) for inner in value]
    if isinstance(value, str):
        return LINK.sub(lambda link: digest(content_of(link[0])), value)
    return value


def content_of(link):
    answer = open_link(link)
    assert answer.status_code == 200, answer.text
    return answer.content


@pytest.fixture(scope="module")
def in_clear(server):
    """How everything looks on a project that was never encrypted."""
    seen = Belongings(Project(server)).look()
    # What is compared is all there.
    assert seen["grep"] == {
        "needle": ["/a/large.txt"],
        "buy m.lk": ["/notes.md"],
        "an earlier": [],
        "x": [],
    }
    assert len(seen["session"]["acontext"][0]) == len(TALK) + 2
    assert seen["session"] == seen["copy"] == seen["copied now"]
    assert set(seen["skill"][0]) == {"SKILL.md", *SKILL} and len(seen["space"]) == 2
    return seen


def test_what_is_made_while_encrypted_is_what_it_would_be_in_clear(project, in_clear):
    project.encrypt()
    belongings = Belongings(project)
    assert project.count("messages")[0] == project.count("blobs")[0] == 0
    assert belongings.look() == in_clear


def test_what_was_made_before_is_the_same_when_encrypted(project, in_clear):
    belongings = Belongings(project)
    project.encrypt()
    assert project.count("messages")[0] == project.count("blobs")[0] == 0
    assert belongings.look() == in_clear


def test_what_was_made_while_encrypted_is_the_same_when_decrypted(project, in_clear):
    project.encrypt()
    belongings = Belongings(project)
    project.decrypt()
    assert project.count("messages")[1] == project.count("blobs")[1] == 0
    assert belongings.look() == in_clear


def test_there_and_back_and_there_again(project, in_clear):
    belongings = Belongings(project)
    for step in (project.encrypt, project.decrypt, project.encrypt):
        assert step()["total"] > len(TALK)
        assert belongings.look() == in_clear


def test_a_call_that_waits_is_answered_in_the_other_form(project):
    """The names of waiting calls are sealed too, and the right one is found."""
    steps = itertools.cycle([project.encrypt, project.decrypt])
    with project.client() as client:
        session = client.sessions.create()
        for _ in range(3):
            asked = {"functionCall": {"name": "look", "args": {"at": "it"}}}
            client.sessions.store_message(session.id, blob={"role": "model", "parts": [asked]}, format="gemini")
            next(steps)()
            answer = {"role": "user", "parts": [{"functionResponse": {"name": "look", "response": {"seen": True}}}]}
            stored = client.sessions.store_message(session.id, blob=answer, format="gemini")
            items = client.sessions.get_messages(session.id, format="acontext").items
            assert stored.parts[0].meta["tool_call_id"] == items[-2]["parts"][0]["meta"]["id"]
            with refused(400, "functionResponse"):
                client.sessions.store_message(session.id, blob=answer, format="gemini")


def test_a_request_that_comes_again_in_the_other_form_is_answered_and_acts_no_more(project):
    with project.client() as client:
        session, disk = client.sessions.create(), client.disks.create()

    def send(number):
        headers = {"Idempotency-Key": f"request-{number}"}
        blob = {"blob": {"role": "user", "content": f"message {number}"}}
        message = project.send("POST", f"/api/v1/session/{session.id}/messages", headers=headers, json=blob)
        files = {"file": (f"{number}.txt", b"content")}
        file = project.send("POST", f"/api/v1/disk/{disk.id}/artifact", headers=headers, files=files)
        return message, file

    first = [send(0)]
    for number, step in enumerate([project.encrypt, project.decrypt, project.encrypt], start=1):
        step()
        for before, again in zip(sum(first, ()), sum(map(send, range(number)), ()), strict=True):
            assert (before.status_code, again.status_code, again.headers["idempotent-replayed"]) == (201, 201, "true")
            assert again.content == before.content
        first.append(send(number))
    with project.client() as client:
        assert len(client.sessions.get_messages(session.id).ids) == len(first)


# ----- nothing in clear -----


def unwrapped(server, key):
    """The master key inside of a compact key."""
    body = base64.urlsafe_b64decode(key.removeprefix("sk-ac-"))
    assert (len(body), body[0]) == (57, 1)
    secret, wrapped = body[1:17].hex(), body[17:]
    pepper = (server.data / "pepper").read_text().strip()
    # HKDF-SHA256 of one block.
    extracted = hmac.digest(f"{pepper}-master-key-wrap".encode(), f"{secret}{pepper}".encode(), "sha256")
    wrapping = hmac.digest(extracted, f"{pepper} master key wrapping".encode() + b"\1", "sha256")
    command = ["openssl", "enc", "-d", "-id-aes256-wrap", "-K", wrapping.hex(), "-iv", "a6" * 8]
    return subprocess.run(command, input=wrapped, capture_output=True, check=True, timeout=PATIENCE).stdout


def spellings(secret):
    """How these bytes may be written: as they are, in base64 wherever they begin, and each of these in hex."""
    found = {secret}
    for shift in range(3):
        # Of the first and the last characters some bits belong to the neighbours.
        text = base64.b64encode(b"\0" * shift + secret)
        text = text[4 if shift else 0 : len(text) // 4 * 4 - 4]
        found |= {text, text.replace(b"+", b"-").replace(b"/", b"_")}
    return found | {each.hex().encode() for each in found}


def stored(server):
    """Everything that the server keeps: tables, objects, what is on its way in, and the log."""
    tables = server.psql("select tablename from pg_tables where schemaname = 'public'").splitlines()
    assert {"messages", "blobs", "jobs", "idempotency_records", "artifact_versions"} <= set(tables)
    for table in tables:
        yield f"table {table}", server.psql(f'copy "{table}" to stdout').encode()
    for folder in ("objects", "tmp"):
        for path in server.files(folder):
            # The sweep may be at work.
            with suppress(FileNotFoundError):
                yield f"file in {folder}", path.read_bytes()
    yield "log", server.log().encode()


def traces(server, secrets):
    """Where which of these secrets is found: pairs of the name of a secret and a place."""
    wanted = {name: spellings(secret) for name, secret in secrets.items()}
    return {
        (name, place)
        for place, content in stored(server)
        for name, texts in wanted.items()
        if any(text in content for text in texts)
    }


class Marked:
    """Content of every kind in which a word stands that is nowhere else, another one in each kind."""

    def __init__(self, project):
        self.project, self.secrets, self.places = project, {}, {}
        word = self.word
        with project.client() as client:
            session = client.sessions.create()
            store = client.sessions.store_message
            store(session.id, blob={"role": "user", "content": word("message", "messages")})
            store(session.id, blob={"role": "user", "content": word("long message", "messages") + " and more" * 50_000})
            store(session.id, blob=call("a", "look", at=word("arguments", "messages")))
            store(session.id, blob={"role": "tool", "tool_call_id": "a", "content": word("result", "messages")})
            asked = {"functionCall": {"name": word("waiting call", "messages"), "args": {}}}
            store(session.id, blob={"role": "model", "parts": [asked]}, format="gemini")
            inline = base64.b64encode(b"%PDF-1.4 " + word("inline file", "messages").encode() + b"-" * 50_000).decode()
            file = {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{inline}"}}
            store(session.id, blob={"role": "user", "content": [file]})
            part = {"type": "file", "file_field": "f"}
            for name, size in [("file of a message", 0), ("large file of a message", 2 * MIB)]:
                content = word(name, "objects").encode() + os.urandom(size)
                how = {"format": "acontext", "file_field": "f", "file": FileUpload("f.bin", content)}
                store(session.id, blob={"role": "user", "parts": [part]}, **how)
            headers = {"Idempotency-Key": str(uuid.uuid4())}
            body = {"blob": {"role": "user", "content": word("message with a kept answer", "messages")}}
            path = f"/api/v1/session/{session.id}/messages"
            assert project.send("POST", path, headers=headers, json=body).status_code == 201
            client.sessions.copy(session.id)
            deleted = client.sessions.create()
            file = FileUpload("f.bin", word("file of a deleted session", "objects").encode())
            part = {"role": "user", "parts": [part]}
            store(deleted.id, blob=part, format="acontext", file_field="f", file=file)
            client.sessions.delete(deleted.id)

            self.disk = client.disks.create()
            put(client, self.disk, "/a.txt", word("earlier version", "objects").encode())
            put(client, self.disk, "/a.txt", word("small file", "objects").encode())
            large = os.urandom(MIB) + word("large file", "objects").encode() + os.urandom(MIB)
            put(client, self.disk, "/large.bin", large)
            put(client, self.disk, "/gone.txt", word("deleted file", "objects").encode())
            client.artifacts.delete(self.disk.id, file_path="/", filename="gone.txt")
            text = word("file of a skill", "objects")
            large = b"\0" * MIB + word("large file of a skill", "objects").encode()
            self.skill = add_skill(client, ("a.md", text), ("large.bin", large))

    def word(self, name, place):
        word = f"marker-{uuid.uuid4().hex}"
        self.secrets[name], self.places[name] = word.encode(), place
        return word

    def read(self):
        """So that whatever is written down when something is read is there, too."""
        with self.project.client() as client:
            for name in ("small file", "large file"):
                assert len(client.artifacts.grep_artifacts(self.disk.id, query=self.secrets[name].decode())) <= 1
            opened(client.artifacts.get(self.disk.id, file_path="/", filename="large.bin").public_url)
            client.skills.download_zip(self.skill.id)
            for session in client.sessions.list(limit=200).items:
                for format in FORMATS:
                    client.sessions.get_messages(session.id, format=format)


# There is work that waits, with the key that it will need; the log says more than usual.
WAITING = {"LLM_SDK": "mock", "SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS": "3600", "LOG_LEVEL": "debug"}


def test_what_is_encrypted_is_nowhere_in_clear(start):
    server = start(**WAITING)
    project = Project(server)
    before = Marked(project)
    found = traces(server, before.secrets)
    # Before that, it is: so it would be found.
    for name, place in before.places.items():
        assert (name, "table messages" if place == "messages" else "file in objects") in found, name

    project.encrypt()
    assert traces(server, before.secrets) == set()
    after = Marked(project)
    for marked in (before, after):
        marked.read()
    assert traces(server, before.secrets | after.secrets) == set()
    assert project.count("messages")[0] == project.count("blobs")[0] == 0

    # And what was read is not left when it is over, but for what was wanted: everything in clear.
    project.decrypt()
    assert {name for name, _ in traces(server, after.secrets)} == set(after.secrets)
    project.encrypt()
    assert traces(server, before.secrets | after.secrets) == set()
    server.stop()
    assert [path for path in server.files("tmp")] == []


def test_the_keys_are_nowhere_to_be_found(start):
    server = start(**WAITING)
    project = Project(server)
    Marked(project)
    project.encrypt()
    Marked(project).read()
    replaced = project.key
    headers = {"Idempotency-Key": "the-key-of-this-rotation"}
    answer = project.send("PUT", "/admin/v1/project/secret_key", headers=headers)
    assert answer.status_code == 200, answer.text
    project.key = answer.json()["data"]["secret_key"]
    Marked(project).read()

    secrets = {}
    for name, key in [("replaced", replaced), ("new", project.key)]:
        body = key.removeprefix("sk-ac-")
        raw = base64.urlsafe_b64decode(body)
        secrets[f"{name} key"] = body.encode()
        secrets[f"secret of the {name} key"] = raw[1:17]
        secrets[f"secret of the {name} key as text"] = raw[1:17].hex().encode()
        secrets[f"wrapped key in the {name} key"] = raw[17:]
        secrets[f"master key in the {name} key"] = unwrapped(server, key)
    master = secrets["master key in the new key"]
    assert len(master) == 32 and secrets["master key in the replaced key"] == master
    # It is the one that was sealed with.
    check = hmac.digest(master, b"acontextd key check, first form " + uuid.UUID(project.id).bytes, "sha256")[:16]
    shown = server.psql(f"select encode(master_key_check_value, 'hex') from projects where id = '{project.id}'")
    assert shown == check.hex()
    # Work that waits has it with it.
    of_project = f"project_id = '{project.id}' and encrypted_kek is not null"
    assert int(server.psql(f"select count(*) from jobs where {of_project}")) > 0
    assert traces(server, secrets) == set()

    project.decrypt()
    assert int(server.psql(f"select count(*) from jobs where {of_project}")) == 0
    assert traces(server, secrets) == set()


# ----- killed on the way -----


# Jobs of a process that was killed are taken over soon, and requests do not wait for conversions.
HASTY = {
    "ACONTEXTD_JOB_LEASE": "1s",
    "ACONTEXTD_CONVERSION_WAIT": "1ms",
    "ACONTEXTD_FILE_VERSIONS": "1000000",
}


def same_port(server):
    """Those who write go on with the next server."""
    return {"API_EXPORT_PORT": str(server.port)}


def fill(project, sessions=30, messages=20, files=150):
    """Enough for a conversion to take a while."""
    with project.client() as client:
        disk = client.disks.create()
        talks = [client.sessions.create() for _ in range(sessions)]

        def say(talk):
            for number in range(messages):
                blob = {"role": "user", "content": f"{project.mark} {number} " + "word " * 2000 * (number % 5 == 4)}
                client.sessions.store_message(talk.id, blob=blob)

        def store(number):
            content = f"{project.mark} {number}".encode() + os.urandom(MIB * (number % 20 == 19))
            put(client, disk, f"/{number}.bin", content)
            return content

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(say, talks))
            contents = list(pool.map(store, range(files)))
    return disk, talks, contents


class Writer:
    """Stores messages and files, one after the other, and sends each again until it is answered."""

    def __init__(self, project, shared, number):
        self.project, self.number = project, number
        with project.client() as client:
            self.disk, self.session, self.shared = client.disks.create(), client.sessions.create(), shared
        self.numbers = itertools.count()
        self.messages, self.files, self.wrong = [], [], []
        self.resent = 0

    def work(self, enough):
        with httpx.Client(trust_env=False, timeout=PATIENCE) as http:
            # The pause leaves something of the processor to the conversion.
            while not enough.wait(0.1) and not self.wrong:
                self.write(http, next(self.numbers))

    def write(self, http, number):
        text = f"{self.project.mark} of {self.number}: {number}"
        session = self.shared if number % 3 == 0 else self.session
        body = {"blob": {"role": "user", "content": text}}
        if self.send(http, f"/session/{session.id}/messages", f"m-{self.number}-{number}", json=body):
            self.messages.append((session.id, text))
        # Of five names, so that there are earlier versions.
        name, content = f"{number % 5}.bin", text.encode() + b"-" * (MIB + MIB // 2) * (number % 10 == 9)
        files = {"file": (name, content)}
        if self.send(http, f"/disk/{self.disk.id}/artifact", f"f-{self.number}-{number}", files=files):
            self.files.append((name, content))

    def send(self, http, path, key, **how):
        headers = {"Authorization": f"Bearer {self.project.key}", "Idempotency-Key": key}

        def answer():
            try:
                return http.post(self.project.server.base_url + path, headers=headers, **how)
            except httpx.TransportError:
                # The server was killed: the next one will be asked.
                self.resent += 1
                return None

        answer = eventually(answer, "an answer to a request that is sent again")
        if answer.status_code != 201:
            self.wrong.append(f"{path}: {answer.status_code} {answer.text}")
        return answer.status_code == 201

    def assert_nothing_is_lost_or_double(self):
        assert self.wrong == []
        project = self.project
        with project.client() as client:
            for session in (self.session, self.shared):
                found = [item["content"] for item in client.sessions.get_messages(session.id).items]
                mine = [text for text in found if text.startswith(f"{project.mark} of {self.number}:")]
                assert mine == [text for at, text in self.messages if at == session.id]
            newest = dict(self.files)
            for name, content in newest.items():
                path = f"/api/v1/disk/{self.disk.id}/artifact/download?file_path=/{name}"
                answer = project.send("GET", path)
                assert (answer.status_code, answer.content) == (200, content)
        versions = project.server.psql(
            f"select filename, sha256 from artifact_versions where disk_id = '{self.disk.id}' order by from_revision"
        )
        stored = [tuple(line.split("|")) for line in versions.splitlines()]
        assert stored == [(name, digest(content)) for name, content in self.files]


@contextmanager
def at_work(writers):
    """All of them write until the block ends, and have something answered in it."""
    enough = threading.Event()
    threads = [threading.Thread(target=writer.work, args=(enough,)) for writer in writers]
    before = [len(writer.files) for writer in writers]
    for thread in threads:
        thread.start()
    try:
        yield
        eventually(
            lambda: all(w.wrong or len(w.files) > n for w, n in zip(writers, before, strict=True)), "an answer for each"
        )
    finally:
        enough.set()
        for thread in threads:
            thread.join()
    assert sum((writer.wrong for writer in writers), []) == []


def is_idle(server, project):
    """Whether the conversion has ended; asks the database, so that no request brings the key."""
    return server.psql(f"select finished_at is not null from encryption_conversions where project_id = '{project.id}'") == "t"


def assert_form(server, project, sealed):
    """All content is in this form, and nothing is left of the other one."""
    for what in ("messages", "blobs"):
        plain, closed = project.count(what)
        assert ((plain, closed > 0) if sealed else (closed, plain > 0)) == (0, True), what
    # Rows of what was removed wait for the sweep, the objects do not.
    dead = server.psql(f"select object_key from blobs where project_id = '{project.id}' and (encryption_format is null) = {sealed}")
    dead = {key.rpartition("/")[2] for key in dead.split()}
    eventually(lambda: dead.isdisjoint(path.name for path in server.files("objects")), "the end of them", seconds=5)
    if sealed:
        # An upload that was refused its form may still be about to be removed.
        mark = {"mark": project.mark.encode()}
        eventually(lambda: not traces(server, mark), "the end of what is in clear", seconds=5)


def half_way(project, share):
    """Waits until this share of the conversion is done: whether it had not ended by then."""

    def look():
        now = project.encryption()
        return now["state"] == "idle" and "ended" or now["total"] and now["done"] >= share * now["total"] and "at work"

    return eventually(look, "progress of a conversion") == "at work"


def test_a_conversion_that_is_killed_goes_on_and_loses_nothing(start):
    """Kills at moments that no two runs have in common, while others write."""
    dice = random.Random()
    server = start(**HASTY)
    project = Project(server)
    disk, talks, contents = fill(project)
    with project.client() as client:
        shared = client.sessions.create()
    writers = [Writer(project, shared, number) for number in range(3)]
    hits = {True: 0, False: 0}
    for seals, kills in [(True, 2), (False, 1), (True, 1), (False, 2)]:
        shares = sorted(dice.random() * 0.9 for _ in range(kills))
        with at_work(writers):
            project.ask_to(ENCRYPT if seals else DECRYPT)
            for share in shares:
                hits[seals] += half_way(project, share)
                server.kill()
                server = project.server = start(**HASTY, **same_port(server))
            project.when_idle()
        assert project.encryption() | {"done": 0, "total": 0} == {"enabled": seals, "done": 0, "total": 0} | IDLE
        assert_form(server, project, seals)
        for writer in writers:
            writer.assert_nothing_is_lost_or_double()
    # At least two of three kills came in the middle.
    assert min(hits.values()) >= 2, hits
    with project.client() as client:
        for talk in talks:
            found = client.sessions.get_messages(talk.id).items
            said = [item["content"].split()[:2] for item in found]
            assert said == [[project.mark, str(number)] for number in range(20)]
    for number, content in enumerate(contents):
        path = f"/api/v1/disk/{disk.id}/artifact/download?file_path=/{number}.bin"
        assert project.send("GET", path).content == content
    server.stop()


@pytest.mark.parametrize("seals", [True, False], ids=["encrypting", "decrypting"])
def test_a_conversion_that_is_killed_needs_nobody_to_go_on(start, seals):
    """Nobody asks the new server for anything: the job has its key with it."""
    server = start(**HASTY)
    project = Project(server)
    fill(project)
    if not seals:
        project.encrypt()
    project.ask_to(ENCRYPT if seals else DECRYPT)
    assert half_way(project, 0.1)
    server.kill()
    server = project.server = start(**HASTY, **same_port(server))
    eventually(lambda: is_idle(server, project), "the end of the conversion")
    assert_form(server, project, seals)
    server.stop()


def test_what_is_answered_while_a_project_goes_to_and_fro_is_stored(start):
    """A conversion that gives way to the next one leaves no transaction open that others would be rolled back with."""
    server = start(**HASTY)
    project = Project(server)
    with project.client() as client:
        session, disk = client.sessions.create(), client.disks.create()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: put(client, disk, f"/{number}.txt", os.urandom(50)), range(200)))
    answered, enough = [], threading.Event()

    def work():
        """Events: what one statement stores, it stores outside of a transaction."""
        body = {"type": "text", "data": {"text": "noted"}}
        path = f"{server.base_url}/session/{session.id}/events"
        with httpx.Client(trust_env=False, timeout=PATIENCE) as http:
            while not enough.is_set():
                stored = http.post(path, headers={"Authorization": f"Bearer {project.key}"}, json=body)
                answered.append(stored.json()["data"]["id"])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(40):
            half_way(project, random.random() * 0.3)
            project.ask_to(DECRYPT if number % 2 else ENCRYPT)
            latest = answered[-100:]
            found = server.psql("select id from session_events order by created_at desc limit 400").split()
            # What has not been answered yet may be among the found ones, but not the other way round.
            assert set(latest) <= set(found)
    finally:
        enough.set()
        for thread in threads:
            thread.join()
    assert "already a transaction in progress" not in server.log()
    server.stop()


# ----- two processes -----


@pytest.fixture
def two(start):
    """Two servers on one database and the same objects: the second one uses what belongs to the first."""
    with temporary_home() as folder:
        first = start(folder)
        second_home = folder / "second"
        second_home.mkdir()
        (second_home / "data").mkdir()
        (second_home / "data" / "objects").symlink_to(first.data / "objects")
        second = start(
            second_home,
            DATABASE_URL=first.dsn,
            ROOT_SECRET_PEPPER=(first.data / "pepper").read_text().strip(),
        )
        yield first, second
        second.stop()
        first.stop()


def test_a_replaced_key_is_refused_by_every_process_within_a_second(two):
    for first, second in (two, two[::-1]):
        project = Project(first)
        belongings = Belongings(project)
        project.encrypt()
        seen = belongings.look()
        old = project.key
        # The other process has verified it, and remembers that.
        assert project.send("GET", ENCRYPTION, server=second).status_code == 200
        answer = project.send("PUT", "/admin/v1/project/secret_key")
        answered = time.monotonic()
        assert answer.status_code == 200, answer.text
        eventually(lambda: project.send("GET", ENCRYPTION, old, second).status_code == 401, "the end of the old key")
        assert time.monotonic() - answered < 1
        assert project.send("GET", ENCRYPTION, old, first).status_code == 401
        project.key = answer.json()["data"]["secret_key"]
        assert project.key != old
        for project.server in two[::-1]:
            assert belongings.look() == seen
        assert project.count("messages")[0] == project.count("blobs")[0] == 0


def test_what_one_process_encrypts_the_other_stores_sealed(two):
    """Nobody stores in clear any more when the answer is there, in whatever process and however lately it was asked."""
    first, second = two
    project = Project(first)
    with project.client() as client:
        session, disk = client.sessions.create(), client.disks.create()
    for number, path in enumerate([ENCRYPT, DECRYPT, ENCRYPT]):
        # The other process knows the project as it was.
        assert project.send("GET", ENCRYPTION, server=second).status_code == 200
        project.ask_to(path)
        with second.client(project.key) as client:
            client.sessions.store_message(session.id, blob={"role": "user", "content": f"message {number}"})
            put(client, disk, f"/{number}.txt", f"file {number}".encode())
        in_other_form = 0 if path == ENCRYPT else 1
        project.when_idle()
        assert project.count("messages")[in_other_form] == project.count("blobs")[in_other_form] == 0
    with project.client() as client:
        assert [item["content"] for item in client.sessions.get_messages(session.id).items] == [
            f"message {number}" for number in range(3)
        ]


# ----- wrong use -----


def refusal(answer):
    said = answer.json()
    assert said["code"] == answer.status_code >= 400
    return answer.status_code, said["msg"]


@pytest.mark.parametrize("path", [ENCRYPT, DECRYPT])
def test_an_old_style_key_encrypts_nothing(server, project, path):
    status, said = refusal(project.send("POST", path, server.key))
    assert status == 400 and "API key required" in said
    shown = project.send("GET", ENCRYPTION, server.key).json()["data"]
    assert shown == {"enabled": False, "done": 0, "total": 0} | IDLE


def test_what_is_not_encrypted_is_not_decrypted(project):
    for _ in range(2):
        status, said = refusal(project.send("POST", DECRYPT))
        assert status == 400 and "project encryption is not enabled" in said
        project.encrypt()
        project.decrypt()


def test_what_is_encrypted_may_be_encrypted_again(project):
    belongings = Belongings(project)
    project.encrypt()
    seen = belongings.look()
    project.encrypt()
    assert belongings.look() == seen


def test_several_that_encrypt_at_once_are_all_answered(project):
    belongings = Belongings(project)
    seen = belongings.look()
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: project.send("POST", ENCRYPT), range(6)))
    assert [answer.status_code for answer in answers] == [200] * 6
    assert project.when_idle()["error"] is None
    assert project.count("messages")[0] == project.count("blobs")[0] == 0
    assert belongings.look() == seen


def test_the_settings_tell_whether_a_project_is_encrypted(project):
    with project.client() as client:
        for step, enabled in [(project.encrypt, True), (project.decrypt, False)]:
            step()
            assert client.project.get_configs().model_dump()["encryption_enabled"] is enabled


def test_the_key_of_a_deleted_project_opens_nothing(server, project):
    project.encrypt()
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    gone = httpx.delete(f"{server.origin}/admin/v1/project/{project.id}", headers=headers, trust_env=False)
    assert gone.status_code == 200, gone.text
    for method, path in [("POST", ENCRYPT), ("POST", DECRYPT), ("GET", ENCRYPTION)]:
        assert refusal(project.send(method, path))[0] == 401


def test_a_key_with_another_master_key_opens_nothing(server, project):
    """A key whose secret is right and whose other half is another project's."""
    project.encrypt()
    other = Project(server)
    mine, others = (base64.urlsafe_b64decode(key.removeprefix("sk-ac-")) for key in (project.key, other.key))
    forged = "sk-ac-" + base64.urlsafe_b64encode(mine[:17] + others[17:]).decode()
    for method, path in [("POST", ENCRYPT), ("POST", DECRYPT), ("GET", ENCRYPTION)]:
        assert refusal(project.send(method, path, forged))[0] == 401


def test_an_encrypted_projects_things_are_not_there_for_others(server, project):
    belongings = Belongings(project)
    project.encrypt()
    for key in (Project(server).key, server.key):
        for path, status in [
            (f"/api/v1/session/{belongings.session.id}/messages", 404),
            (f"/api/v1/session/{belongings.session.id}/token_counts", 404),
            (f"/api/v1/disk/{belongings.disk.id}/artifact?file_path=/notes.md", 403),
            (f"/api/v1/disk/{belongings.disk.id}/artifact/download?file_path=/notes.md", 404),
            (f"/api/v1/disk/{belongings.disk.id}/artifact/grep?query=milk", 403),
            (f"/api/v1/agent_skills/{belongings.skill.id}", 404),
            (f"/api/v1/agent_skills/{belongings.skill.id}/download_zip", 404),
        ]:
            answer = project.send("GET", path, key)
            assert refusal(answer)[0] in (403, 404), path
            assert b"milk" not in answer.content.replace(b"query=milk", b"")


def test_the_operator_cannot_give_an_encrypted_project_another_master_key(server, project):
    belongings = Belongings(project)
    project.encrypt()
    seen = belongings.look()
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    path = f"{server.origin}/admin/v1/project/{project.id}/secret_key"
    status, said = refusal(httpx.put(path, headers=headers, trust_env=False))
    assert status == 400 and "encrypted" in said
    assert belongings.look() == seen
