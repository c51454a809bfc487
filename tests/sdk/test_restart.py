"""Starting, stopping, crashing and starting again; settings; the private Postgres."""

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from acontext import FileUpload
from support import (
    ADMIN_TOKEN,
    DEFAULT_KEY,
    PATIENCE,
    PROGRAM,
    Server,
    environment,
    eventually,
    open_link,
    refused,
    run,
    temporary_home,
)
from wire import Wire, part, upload

CONTENTS = {"empty.txt": b"", "small.txt": b"small", "large.bin": bytes(range(256)) * 4096}


class Stored:
    """A disk with files, remembered together with their links and all that was said about them."""

    def __init__(self, server):
        self.key = server.key
        with server.client() as client:
            self.disk = client.disks.create(user="alice")
            for name, content in CONTENTS.items():
                client.artifacts.upsert(self.disk.id, file=FileUpload(name, content), file_path="/a/", meta={"n": name})
            self.seen = self.look(client)
        self.links = {name: got.public_url for name, got in self.seen.items()}

    def look(self, client):
        at = {"file_path": "/a/"}
        return {name: client.artifacts.get(self.disk.id, **at, filename=name) for name in CONTENTS}

    def assert_still_there(self, server, key=None):
        with server.client(key or self.key) as client:
            assert client.disks.list(user="alice", limit=200).items[-1] == self.disk
            for name, got in self.look(client).items():
                assert (got.artifact, got.content) == (self.seen[name].artifact, self.seen[name].content)
            # And it can be worked with.
            client.artifacts.upsert(self.disk.id, file=FileUpload("later.txt", b"later"))
        for name, link in self.links.items():
            opened = open_link(link)
            assert (opened.status_code, opened.content) == (200, CONTENTS[name])


def same_port(server):
    """Links name it."""
    return {"API_EXPORT_PORT": str(server.port)}


def pepper(server):
    return (server.data / "pepper").read_bytes()


def postmaster(server):
    lock = server.data / "postgres" / "data" / "postmaster.pid"
    return int(lock.read_text().splitlines()[0])


# ----- stop and start -----


def test_everything_is_there_after_a_stop(start):
    first = start()
    stored, kept = Stored(first), pepper(first)
    first.stop()
    second = start(**same_port(first))
    stored.assert_still_there(second)
    assert pepper(second) == kept
    second.stop(signal.SIGINT)
    third = start(**same_port(first))
    stored.assert_still_there(third)
    assert pepper(third) == kept


def test_everything_is_there_after_a_kill(start):
    first = start()
    stored, kept = Stored(first), pepper(first)
    first.kill()
    # At once: the Postgres of the first one may still be ending.
    second = start(**same_port(first))
    stored.assert_still_there(second)
    assert pepper(second) == kept
    second.stop()


def test_a_killed_server_takes_its_postgres_along(start):
    server = start()
    pid = postmaster(server)
    assert Path(f"/proc/{pid}").exists()
    server.kill()
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "the end of the private Postgres")


def test_a_stopped_server_leaves_nothing_running(start):
    server = start()
    pids = family(server.process.pid)
    assert postmaster(server) in pids
    server.stop()
    # The one that writes the database's log ends when nobody can tell it anything any more: right after the others.
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the end of all processes")
    assert not (server.data / "postgres" / "data" / "postmaster.pid").exists()


def test_a_stop_lets_an_upload_finish(start):
    server = start()
    with server.client() as client:
        disk = client.disks.create()
    body = upload(part("file", b"x" * 100_000, filename="late.txt"))
    with Wire(server) as wire:
        wire.post_upload(disk.id, body, {"Expect": "100-continue"})
        # The server asks for the body, so it is at work on this request.
        assert wire.answer().status == 100
        wire.send(body[:50_000])
        server.send(signal.SIGTERM)
        eventually(lambda: not accepts_connections(server.port), "the end of listening")
        assert not server.has_ended()
        wire.send(body[50_000:])
        assert wire.answer().status == 201
    assert server.wait() == 0, server.log()
    again = start()
    with again.client() as client:
        assert client.artifacts.get(disk.id, file_path="/", filename="late.txt").content.raw == "x" * 100_000


def test_a_stop_does_not_wait_for_ever(start):
    """An upload that never ends is cut off, and the exit code says that something was."""
    server = start(ACONTEXTD_SHUTDOWN_TIMEOUT="200ms")
    with server.client() as client:
        disk = client.disks.create()
    with Wire(server) as wire:
        wire.post_upload(disk.id, b"x" * 1000, {"Expect": "100-continue"})
        assert wire.answer().status == 100
        began = time.monotonic()
        assert server.send(signal.SIGTERM).wait() == 1
        assert time.monotonic() - began < 15
    assert "cut off" in server.log()
    start()


def test_a_second_signal_cuts_the_wait_short(start):
    server = start()
    with server.client() as client:
        disk = client.disks.create()
    with Wire(server) as wire:
        wire.post_upload(disk.id, b"x" * 1000, {"Expect": "100-continue"})
        assert wire.answer().status == 100
        server.send(signal.SIGTERM)
        eventually(lambda: not accepts_connections(server.port), "the end of listening")
        began = time.monotonic()
        assert server.send(signal.SIGTERM).wait() == 1
        assert time.monotonic() - began < 15


def test_idle_connections_do_not_hold_up_a_stop(start):
    server = start()
    with Wire(server) as silent, server.client() as client:
        assert client.ping() == "pong"
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 10
        assert silent.is_closed()


def accepts_connections(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
        return True
    except (ConnectionRefusedError, ConnectionResetError):
        # Reset if it came in the moment in which the server stops to listen.
        return False


# ----- one server for one folder -----


def test_a_second_server_on_the_same_data_is_refused(start):
    first = start()
    code, out, complaint = run(ACONTEXTD_DATA_DIR=str(first.data))
    assert (code, out) == (1, "")
    assert "ACONTEXTD_DATA_DIR" in complaint and str(first.data) in complaint
    assert "another acontextd" in complaint
    with first.client() as client:
        assert client.ping() == "pong"
    first.stop()
    # What refused was the server that ran, not something it left behind.
    start()


def test_two_servers_that_start_at_once_are_not_both_let_in():
    with temporary_home() as folder:
        servers = [Server(folder), Server(folder)]
        try:
            (loser,) = eventually(lambda: [each for each in servers if each.has_ended()], "one that is refused")
            servers.remove(loser)
            assert loser.wait() == 1
            assert "ACONTEXTD_DATA_DIR" in loser.log()
            servers[0].wait_until_ready()
            servers[0].stop()
        finally:
            for server in servers:
                server.close()


# ----- the pepper and the keys -----


def test_the_pepper_is_secret_and_its_folders_own(server, start):
    found = (server.data / "pepper").stat()
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert found.st_uid == os.getuid()
    assert len(pepper(server).strip()) >= 32
    assert pepper(server).decode().strip() not in server.welcome() + server.log()
    assert pepper(start()) != pepper(server)


def test_nobody_else_reads_the_data(server):
    """Other users of the machine may pass through the data folder, but neither list nor read what is in it."""
    Stored(server)
    readable = [
        path
        for path in server.data.iterdir()
        if stat.S_IMODE(path.stat().st_mode) & (stat.S_IROTH | stat.S_IWOTH | stat.S_IXOTH)
    ]
    assert readable == []
    assert not stat.S_IMODE(server.data.stat().st_mode) & (stat.S_IROTH | stat.S_IWOTH)


def test_another_root_token_opens_the_same_project():
    with temporary_home() as folder:
        first = Server(folder).wait_until_ready()
        stored = Stored(first)
        first.stop()

        second = Server(folder, ROOT_API_BEARER_TOKEN="sk-ac-a-token-of-my-own", **same_port(first)).wait_until_ready()
        stored.assert_still_there(second, key="sk-ac-a-token-of-my-own")
        with refused(401), second.client(DEFAULT_KEY) as former:
            former.ping()
        second.stop()


def test_administration_is_off_without_its_token(start):
    server = start(ADMIN_API_TOKEN=None)
    for headers in ({}, {"X-Access-Token": ADMIN_TOKEN}, {"Authorization": f"Bearer {server.key}"}):
        answer = httpx.post(f"{server.origin}/admin/v1/project", json={}, headers=headers, trust_env=False)
        assert (answer.status_code, answer.json()["code"]) == (403, 403)
        assert "ADMIN_API_TOKEN" in answer.json()["msg"]
    server.stop()


# ----- what is said to the user -----


def test_the_curl_line_of_the_welcome_works(server):
    line = server.said("try")
    assert line.startswith("curl ")
    done = subprocess.run(["sh", "-c", line], env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert '"msg":"pong"' in done.stdout


def test_the_welcome_says_where_everything_is(server, disk):
    assert server.base_url == f"http://127.0.0.1:{server.port}/api/v1"
    assert server.key == DEFAULT_KEY
    assert server.said("data") == str(server.data)
    assert server.psql(f"select id from disks where project_id = '{disk.project_id}' and id = '{disk.id}'") == disk.id


def test_the_address_in_links_is_the_configured_one(start):
    server = start(APP_EXTERNALURL="https://files.example.org/")
    link = Stored(server).links["small.txt"]
    assert link.startswith("https://files.example.org/api/v1/material/")
    assert open_link(link.replace("https://files.example.org", server.origin)).content == CONTENTS["small.txt"]


def test_help_is_the_manual():
    code, out, complaint = run("--help", ROOT_SECRET_PEPPER="not-to-be-shown", ROOT_API_BEARER_TOKEN="nor-this")
    assert (code, complaint) == (0, "")
    for name in (
        "ACONTEXTD_DATA_DIR",
        "ACONTEXTD_HOST",
        "API_EXPORT_PORT",
        "APP_EXTERNALURL",
        "ROOT_API_BEARER_TOKEN",
        "ROOT_SECRET_PEPPER",
        "ENABLE_ARGON2_VERIFICATION",
        "ADMIN_API_TOKEN",
        "DATABASE_URL",
        "S3_BUCKET",
        "ARTIFACT_MAX_UPLOAD_SIZE_BYTES",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
    ):
        # A line may end inside of the brackets.
        assert re.search(rf"\[env:\s+{name}\b", out), name
    assert "not-to-be-shown" not in out and "nor-this" not in out


def test_health_tells_whether_a_server_lives(start):
    server = start()
    settings = same_port(server)
    assert run("health", **settings)[0] == 0
    server.stop()
    assert run("health", **settings)[0] == 1


def test_health_is_not_taken_in_by_another_program():
    with socket.create_server(("127.0.0.1", 0)) as other:
        # It accepts, and hangs up.
        checking = subprocess.Popen([PROGRAM, "health"], env=environment(API_EXPORT_PORT=str(other.getsockname()[1])))
        other.settimeout(PATIENCE)
        other.accept()[0].close()
        assert checking.wait(PATIENCE) == 1


# ----- settings -----


BAD_SETTINGS = [
    # What is published must not be open to others.
    ({"ACONTEXTD_HOST": "0.0.0.0"}, ["ROOT_API_BEARER_TOKEN", "0.0.0.0", "127.0.0.1"]),
    ({"ACONTEXTD_HOST": "::"}, ["ROOT_API_BEARER_TOKEN", "127.0.0.1"]),
    (
        {"ACONTEXTD_HOST": "0.0.0.0", "ROOT_API_BEARER_TOKEN": "sk-ac-your-root-api-bearer-token"},
        ["ROOT_API_BEARER_TOKEN"],
    ),
    (
        {"ACONTEXTD_HOST": "0.0.0.0", "ROOT_API_BEARER_TOKEN": "mine", "ROOT_SECRET_PEPPER": "your-secret-pepper"},
        ["ROOT_SECRET_PEPPER"],
    ),
    # What cannot be read.
    ({"API_EXPORT_PORT": "abc"}, ["API_EXPORT_PORT", "abc", "8029"]),
    ({"API_EXPORT_PORT": "70000"}, ["API_EXPORT_PORT", "70000", "8029"]),
    ({"ACONTEXTD_HOST": "localhost"}, ["ACONTEXTD_HOST", "localhost", "127.0.0.1"]),
    ({"ENABLE_ARGON2_VERIFICATION": "maybe"}, ["ENABLE_ARGON2_VERIFICATION", "maybe", "true or false"]),
    ({"ARTIFACT_MAX_UPLOAD_SIZE_BYTES": "-1"}, ["ARTIFACT_MAX_UPLOAD_SIZE_BYTES", "-1", "16MiB"]),
    ({"ACONTEXTD_GREP_TIMEOUT": "soon"}, ["ACONTEXTD_GREP_TIMEOUT", "soon", "10s"]),
    ({"APP_EXTERNALURL": "example.org"}, ["APP_EXTERNALURL", "example.org", "http://"]),
    ({"ROOT_API_BEARER_TOKEN": "two words"}, ["ROOT_API_BEARER_TOKEN"]),
    ({"DATABASE_URL": "mysql://127.0.0.1:1/a", "ROOT_SECRET_PEPPER": "mine"}, ["DATABASE_URL", "postgres://"]),
    # What does not go together.
    ({"DATABASE_URL": "postgres://db/a"}, ["ROOT_SECRET_PEPPER"]),
    (
        {"DATABASE_URL": "postgres://db/a", "DATABASE_HOST": "db", "ROOT_SECRET_PEPPER": "mine"},
        ["DATABASE_URL", "DATABASE_HOST"],
    ),
    ({"S3_ENDPOINT": "http://127.0.0.1:1"}, ["S3_BUCKET"]),
    ({"S3_BUCKET": "bucket"}, ["S3_ACCESS_KEY", "S3_SECRET_KEY"]),
    # What is not there.
    ({"ACONTEXTD_POSTGRES_BIN": "/nonexistent"}, ["ACONTEXTD_POSTGRES_BIN", "/nonexistent", "/usr/lib/postgresql"]),
    (
        {"ACONTEXTD_HOST": "192.0.2.1", "ROOT_API_BEARER_TOKEN": "mine"},
        ["ACONTEXTD_HOST", "192.0.2.1", "127.0.0.1"],
    ),
    ({"ACONTEXTD_DATA_DIR": "/dev/null/data"}, ["ACONTEXTD_DATA_DIR", "/dev/null/data"]),
]


@pytest.mark.parametrize("settings, words", BAD_SETTINGS, ids=[" ".join(settings) for settings, _ in BAD_SETTINGS])
def test_a_bad_setting_stops_the_start_with_a_sentence(tmp_path, settings, words):
    code, out, complaint = run(**{"ACONTEXTD_DATA_DIR": str(tmp_path / "data"), **settings})
    assert (code, out) == (1, "")
    for word in words:
        assert word in complaint
    assert "panicked" not in complaint


def test_a_secret_that_is_refused_is_not_repeated(tmp_path):
    code, _, complaint = run(ACONTEXTD_DATA_DIR=str(tmp_path), ROOT_API_BEARER_TOKEN="secret words")
    assert code == 1
    assert "ROOT_API_BEARER_TOKEN" in complaint
    assert "secret words" not in complaint


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, out, complaint = run(ACONTEXTD_DATA_DIR=str(tmp_path / "data"), API_EXPORT_PORT=port)
    assert (code, out) == (1, "")
    assert "API_EXPORT_PORT" in complaint and port in complaint


def test_an_unknown_flag_or_command_is_refused():
    for arguments in (["--nonsense"], ["nonsense"]):
        code, out, complaint = run(*arguments)
        assert (code, out) == (1, "")
        assert "nonsense" in complaint


def test_a_setting_has_a_second_name_that_wins(start):
    server = start(ARTIFACT_MAX_UPLOAD_SIZE_BYTES="5MiB", APP_ARTIFACT_MAXUPLOADSIZEBYTES="1024")
    with server.client() as client:
        disk = client.disks.create()
        client.artifacts.upsert(disk.id, file=FileUpload("a.bin", b"\0" * 1024))
        with refused(413):
            client.artifacts.upsert(disk.id, file=FileUpload("b.bin", b"\0" * 1025))


# ----- the private Postgres -----


def family(pid):
    """A process and all that descend from it."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # The name in parentheses may contain anything.
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            pass
    found = [pid]
    for each in found:
        found.extend(child for child, parent in parents.items() if parent == each)
    return found


def tcp_ports(pid):
    """The TCP ports that a process listens on."""
    listening = {}
    for table in ("tcp", "tcp6"):
        rows = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        for address, state, inode in ((row.split()[1], row.split()[3], row.split()[9]) for row in rows):
            if state == "0A":
                listening[f"socket:[{inode}]"] = int(address.rpartition(":")[2], 16)
    ports = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            ports.add(listening.get(os.readlink(descriptor)))
        except FileNotFoundError:
            pass
    return ports - {None}


def test_the_private_postgres_has_no_port(server):
    us, *postgres = family(server.process.pid)
    assert postmaster(server) in postgres
    assert tcp_ports(us) == {server.port}
    assert {pid: tcp_ports(pid) for pid in postgres} == {pid: set() for pid in postgres}
    assert server.psql("show listen_addresses") == ""
    folder = Path(server.psql("show unix_socket_directories"))
    assert folder == server.data / "run"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_database_and_its_user_have_their_names(server):
    assert server.psql("select current_database(), current_user") == "acontext|acontext"
    # Never as root, whoever starts it.
    owner = Path(f"/proc/{postmaster(server)}").stat().st_uid
    assert owner != 0 and (os.getuid() == 0 or owner == os.getuid())


def test_the_end_of_postgres_is_the_end_of_the_server(start):
    first = start()
    stored = Stored(first)
    os.kill(postmaster(first), signal.SIGKILL)
    assert first.wait() == 1
    assert "the private Postgres ended by itself" in first.log()
    second = start(**same_port(first))
    stored.assert_still_there(second)
    second.stop()


def test_a_long_path_gets_a_short_socket(start):
    with temporary_home() as folder:
        deep = folder / ("d" * 60) / ("e" * 60)
        deep.mkdir(parents=True)
        server = start(deep)
        sockets = Path(server.psql("show unix_socket_directories"))
        try:
            assert server.data not in sockets.parents
            assert f"host={sockets}&" in server.dsn
            stored = Stored(server)
            server.stop()
            stored.assert_still_there(start(deep, **same_port(server)))
        finally:
            server.close()
            shutil.rmtree(sockets, ignore_errors=True)


# ----- other users -----


@pytest.fixture
def ordinary_home():
    """A home folder of an ordinary user, with the program in reach; and how to become that user."""
    with temporary_home() as home:
        program = [shutil.copy(PROGRAM, home / "acontextd")]
        user_home = home / "user"
        user_home.mkdir(mode=0o700)
        if os.getuid() == 0:
            shutil.chown(user_home, "nobody")
            program = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--", *program]
        yield home, user_home, program


def test_an_ordinary_user_needs_no_settings(start, ordinary_home):
    home, user_home, program = ordinary_home
    settings = {"program": program, "ACONTEXTD_DATA_DIR": None, "HOME": str(user_home)}
    first = start(home, **settings)
    assert first.said("data") == str(user_home / ".local/share/acontextd")
    first.data = user_home / ".local/share/acontextd"
    stored = Stored(first)
    owners = {pid: Path(f"/proc/{pid}").stat().st_uid for pid in family(first.process.pid)}
    assert len(owners) > 1 and set(owners.values()) == {user_home.stat().st_uid}
    first.stop()
    second = start(home, **settings, **same_port(first))
    stored.assert_still_there(second)
    second.stop()
