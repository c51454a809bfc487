"""Startup, shutdown, crash and restart; settings; the embedded Postgres."""

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
    TIMEOUT,
    PROGRAM,
    Server,
    environment,
    wait_until,
    open_link,
    raises_error,
    run,
    temporary_home,
)
from raw_http import RawConnection, form_part, form_body

CONTENTS = {"empty.txt": b"", "small.txt": b"small", "large.bin": bytes(range(256)) * 4096}


class StoredFiles:
    """A disk with files, and the responses and signed URLs that the server returned for them."""

    def __init__(self, server):
        self.key = server.key
        with server.client() as client:
            self.disk = client.disks.create(user="alice")
            for name, content in CONTENTS.items():
                client.artifacts.upsert(self.disk.id, file=FileUpload(name, content), file_path="/a/", meta={"n": name})
            self.artifacts = self.get_artifacts(client)
        self.links = {name: response.public_url for name, response in self.artifacts.items()}

    def get_artifacts(self, client):
        directory = {"file_path": "/a/"}
        return {name: client.artifacts.get(self.disk.id, **directory, filename=name) for name in CONTENTS}

    def assert_unchanged(self, server, key=None):
        with server.client(key or self.key) as client:
            assert client.disks.list(user="alice", limit=200).items[-1] == self.disk
            for name, response in self.get_artifacts(client).items():
                before = self.artifacts[name]
                assert (response.artifact, response.content) == (before.artifact, before.content)
            # The disk can still be changed.
            client.artifacts.upsert(self.disk.id, file=FileUpload("later.txt", b"later"))
        for name, link in self.links.items():
            download = open_link(link)
            assert (download.status_code, download.content) == (200, CONTENTS[name])


def same_port(server):
    """Returns the settings for the port of the server, which signed URLs contain."""
    return {"API_EXPORT_PORT": str(server.port)}


def read_pepper(server):
    return (server.data / "pepper").read_bytes()


def postmaster_pid(server):
    lock = server.data / "postgres" / "data" / "postmaster.pid"
    return int(lock.read_text().splitlines()[0])


# ----- shutdown and startup -----


def test_everything_is_unchanged_after_a_shutdown(start_server):
    first = start_server()
    stored, initial_pepper = StoredFiles(first), read_pepper(first)
    first.stop()
    second = start_server(**same_port(first))
    stored.assert_unchanged(second)
    assert read_pepper(second) == initial_pepper
    second.stop(signal.SIGINT)
    third = start_server(**same_port(first))
    stored.assert_unchanged(third)
    assert read_pepper(third) == initial_pepper


def test_everything_is_unchanged_after_a_crash(start_server):
    first = start_server()
    stored, initial_pepper = StoredFiles(first), read_pepper(first)
    first.kill()
    # The second server starts immediately, while the Postgres of the first one may still be running.
    second = start_server(**same_port(first))
    stored.assert_unchanged(second)
    assert read_pepper(second) == initial_pepper
    second.stop()


def test_the_postgres_of_a_killed_server_exits(start_server):
    server = start_server()
    pid = postmaster_pid(server)
    assert Path(f"/proc/{pid}").exists()
    server.kill()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the embedded Postgres exits")


def test_a_shutdown_ends_all_processes(start_server):
    server = start_server()
    pids = process_tree(server.process.pid)
    assert postmaster_pid(server) in pids
    server.stop()
    # The logger process of Postgres ends only after all other processes have closed its pipe.
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "all processes exit")
    assert not (server.data / "postgres" / "data" / "postmaster.pid").exists()


def test_a_shutdown_waits_for_an_upload(start_server):
    server = start_server()
    with server.client() as client:
        disk = client.disks.create()
    body = form_body(form_part("file", b"x" * 100_000, filename="late.txt"))
    with RawConnection(server) as connection:
        connection.post_upload(disk.id, body, {"Expect": "100-continue"})
        # The server requests the body, so it is processing this request.
        assert connection.read_response().status == 100
        connection.send(body[:50_000])
        server.send(signal.SIGTERM)
        wait_until(lambda: not accepts_connections(server.port), "the server closes its listener")
        assert not server.has_exited()
        connection.send(body[50_000:])
        assert connection.read_response().status == 201
    assert server.wait() == 0, server.log()
    second = start_server()
    with second.client() as client:
        assert client.artifacts.get(disk.id, file_path="/", filename="late.txt").content.raw == "x" * 100_000


def test_a_shutdown_has_a_deadline(start_server):
    """An upload that never ends is aborted, and the exit code reports it."""
    server = start_server(ACONTEXTD_SHUTDOWN_TIMEOUT="200ms")
    with server.client() as client:
        disk = client.disks.create()
    with RawConnection(server) as connection:
        connection.post_upload(disk.id, b"x" * 1000, {"Expect": "100-continue"})
        assert connection.read_response().status == 100
        began = time.monotonic()
        assert server.send(signal.SIGTERM).wait() == 1
        assert time.monotonic() - began < 15
    assert "were aborted" in server.log()
    start_server()


def test_a_second_signal_aborts_the_shutdown(start_server):
    server = start_server()
    with server.client() as client:
        disk = client.disks.create()
    with RawConnection(server) as connection:
        connection.post_upload(disk.id, b"x" * 1000, {"Expect": "100-continue"})
        assert connection.read_response().status == 100
        server.send(signal.SIGTERM)
        wait_until(lambda: not accepts_connections(server.port), "the server closes its listener")
        began = time.monotonic()
        assert server.send(signal.SIGTERM).wait() == 1
        assert time.monotonic() - began < 15


def test_idle_connections_do_not_delay_a_shutdown(start_server):
    server = start_server()
    with RawConnection(server) as silent, server.client() as client:
        assert client.ping() == "pong"
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 10
        assert silent.is_closed()


def accepts_connections(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT).close()
        return True
    except ConnectionError:
        # A connection is reset if it is opened while the server closes its listener.
        return False


# ----- one server for one data directory -----


def test_a_second_server_with_the_same_data_exits(start_server):
    first = start_server()
    code, stdout, stderr = run(ACONTEXTD_DATA_DIR=str(first.data))
    assert (code, stdout) == (1, "")
    assert "ACONTEXTD_DATA_DIR" in stderr and str(first.data) in stderr
    assert "another acontextd" in stderr
    with first.client() as client:
        assert client.ping() == "pong"
    first.stop()
    # Only the running server prevented the startup, and nothing that it left behind.
    start_server()


def test_only_one_of_two_servers_starts_with_the_same_data():
    with temporary_home() as directory:
        servers = [Server(directory), Server(directory)]
        try:
            exited = wait_until(lambda: [server for server in servers if server.has_exited()], "one server exits")
            (rejected,) = exited
            servers.remove(rejected)
            assert rejected.wait() == 1
            assert "ACONTEXTD_DATA_DIR" in rejected.log()
            servers[0].wait_until_ready()
            servers[0].stop()
        finally:
            for server in servers:
                server.close()


# ----- the pepper and the keys -----


def test_the_pepper_is_secret_and_unique_per_data_directory(server, start_server):
    metadata = (server.data / "pepper").stat()
    assert stat.S_IMODE(metadata.st_mode) == 0o600
    assert metadata.st_uid == os.getuid()
    assert len(read_pepper(server).strip()) >= 32
    assert read_pepper(server).decode().strip() not in server.banner() + server.log()
    assert read_pepper(start_server()) != read_pepper(server)


def test_other_users_cannot_read_the_data(server):
    """Other users of the machine can traverse the data directory, but can neither list nor read its content."""
    StoredFiles(server)
    # Sandboxes have users of their own, which must be able to traverse the directory of the sandboxes.
    traversable = {"sandboxes": stat.S_IXOTH}
    readable = [
        path
        for path in server.data.iterdir()
        if stat.S_IMODE(path.stat().st_mode) & stat.S_IRWXO & ~traversable.get(path.name, 0)
    ]
    assert readable == []
    assert not stat.S_IMODE(server.data.stat().st_mode) & (stat.S_IROTH | stat.S_IWOTH)


def test_another_root_token_authenticates_the_same_project():
    with temporary_home() as directory:
        first = Server(directory).wait_until_ready()
        stored = StoredFiles(first)
        first.stop()

        settings = {"ROOT_API_BEARER_TOKEN": "sk-ac-another-token", **same_port(first)}
        second = Server(directory, **settings).wait_until_ready()
        stored.assert_unchanged(second, key="sk-ac-another-token")
        with raises_error(401), second.client(DEFAULT_KEY) as client:
            client.ping()
        second.stop()


def test_the_admin_api_is_disabled_without_its_token(start_server):
    server = start_server(ADMIN_API_TOKEN=None)
    for headers in ({}, {"X-Access-Token": ADMIN_TOKEN}, {"Authorization": f"Bearer {server.key}"}):
        response = httpx.post(f"{server.origin}/admin/v1/project", json={}, headers=headers, trust_env=False)
        assert (response.status_code, response.json()["code"]) == (403, 403)
        assert "ADMIN_API_TOKEN" in response.json()["msg"]
    server.stop()


# ----- output for the operator -----


def test_the_curl_command_of_the_banner_works(server):
    line = server.banner_value("try")
    assert line.startswith("curl ")
    result = subprocess.run(["sh", "-c", line], env=environment(), capture_output=True, text=True, timeout=TIMEOUT)
    assert result.returncode == 0, result.stderr
    assert '"msg":"pong"' in result.stdout


def test_the_banner_contains_the_connection_details(server, disk):
    assert server.base_url == f"http://127.0.0.1:{server.port}/api/v1"
    assert server.key == DEFAULT_KEY
    assert server.banner_value("data") == str(server.data)
    assert server.psql(f"select id from disks where project_id = '{disk.project_id}' and id = '{disk.id}'") == disk.id


def test_signed_urls_start_with_the_configured_address(start_server):
    server = start_server(APP_EXTERNALURL="https://files.example.org/")
    link = StoredFiles(server).links["small.txt"]
    assert link.startswith("https://files.example.org/api/v1/material/")
    assert open_link(link.replace("https://files.example.org", server.origin)).content == CONTENTS["small.txt"]


def test_help_lists_the_settings_without_their_values():
    code, stdout, stderr = run("--help", ROOT_SECRET_PEPPER="a-secret-pepper", ROOT_API_BEARER_TOKEN="a-secret-token")
    assert (code, stderr) == (0, "")
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
        # A line may break inside the brackets.
        assert re.search(rf"\[env:\s+{name}\b", stdout), name
    assert "a-secret-pepper" not in stdout and "a-secret-token" not in stdout


def test_the_health_command_checks_a_server(start_server):
    server = start_server()
    settings = same_port(server)
    assert run("health", **settings)[0] == 0
    server.stop()
    assert run("health", **settings)[0] == 1


def test_the_health_command_fails_for_another_program():
    with socket.create_server(("127.0.0.1", 0)) as other:
        # It accepts the connection and closes it.
        port = str(other.getsockname()[1])
        health_check = subprocess.Popen([PROGRAM, "health"], env=environment(API_EXPORT_PORT=port))
        other.settimeout(TIMEOUT)
        other.accept()[0].close()
        assert health_check.wait(TIMEOUT) == 1


# ----- settings -----


LONG_TOKEN = "a-token-for-these-tests"


INVALID_SETTINGS = [
    # Published secrets are only valid on loopback addresses.
    ({"ACONTEXTD_HOST": "0.0.0.0"}, ["ROOT_API_BEARER_TOKEN", "0.0.0.0", "127.0.0.1"]),
    ({"ACONTEXTD_HOST": "::"}, ["ROOT_API_BEARER_TOKEN", "127.0.0.1"]),
    (
        {"ACONTEXTD_HOST": "0.0.0.0", "ROOT_API_BEARER_TOKEN": "sk-ac-your-root-api-bearer-token"},
        ["ROOT_API_BEARER_TOKEN"],
    ),
    (
        {"ACONTEXTD_HOST": "0.0.0.0", "ROOT_API_BEARER_TOKEN": LONG_TOKEN, "ROOT_SECRET_PEPPER": "your-secret-pepper"},
        ["ROOT_SECRET_PEPPER"],
    ),
    # Short tokens are only valid on loopback addresses.
    ({"ACONTEXTD_HOST": "0.0.0.0", "ROOT_API_BEARER_TOKEN": "mine"}, ["ROOT_API_BEARER_TOKEN", "16 characters"]),
    (
        {"ACONTEXTD_HOST": "0.0.0.0", "ROOT_API_BEARER_TOKEN": LONG_TOKEN, "ADMIN_API_TOKEN": "mine"},
        ["ADMIN_API_TOKEN", "16 characters"],
    ),
    # The value is invalid.
    ({"API_EXPORT_PORT": "abc"}, ["API_EXPORT_PORT", "abc", "8029"]),
    ({"API_EXPORT_PORT": "70000"}, ["API_EXPORT_PORT", "70000", "8029"]),
    ({"ACONTEXTD_HOST": "localhost"}, ["ACONTEXTD_HOST", "localhost", "127.0.0.1"]),
    ({"ENABLE_ARGON2_VERIFICATION": "maybe"}, ["ENABLE_ARGON2_VERIFICATION", "maybe", "true or false"]),
    ({"ARTIFACT_MAX_UPLOAD_SIZE_BYTES": "-1"}, ["ARTIFACT_MAX_UPLOAD_SIZE_BYTES", "-1", "16MiB"]),
    ({"ACONTEXTD_GREP_TIMEOUT": "soon"}, ["ACONTEXTD_GREP_TIMEOUT", "soon", "10s"]),
    ({"APP_EXTERNALURL": "example.org"}, ["APP_EXTERNALURL", "example.org", "http://"]),
    ({"ROOT_API_BEARER_TOKEN": "two words"}, ["ROOT_API_BEARER_TOKEN"]),
    ({"DATABASE_URL": "mysql://127.0.0.1:1/a", "ROOT_SECRET_PEPPER": "mine"}, ["DATABASE_URL", "postgres://"]),
    # The settings contradict each other.
    ({"DATABASE_URL": "postgres://db/a"}, ["ROOT_SECRET_PEPPER"]),
    (
        {"DATABASE_URL": "postgres://db/a", "DATABASE_HOST": "db", "ROOT_SECRET_PEPPER": "mine"},
        ["DATABASE_URL", "DATABASE_HOST"],
    ),
    ({"S3_ENDPOINT": "http://127.0.0.1:1"}, ["S3_BUCKET"]),
    ({"S3_BUCKET": "bucket", "S3_ACCESS_KEY": "key"}, ["S3_ACCESS_KEY", "S3_SECRET_KEY"]),
    ({"S3_BUCKET": "bucket", "S3_SECRET_KEY": "key"}, ["S3_ACCESS_KEY", "S3_SECRET_KEY"]),
    # The path or address does not exist.
    ({"ACONTEXTD_POSTGRES_BIN": "/nonexistent"}, ["ACONTEXTD_POSTGRES_BIN", "/nonexistent", "/usr/lib/postgresql"]),
    (
        {"ACONTEXTD_HOST": "192.0.2.1", "ROOT_API_BEARER_TOKEN": LONG_TOKEN},
        ["ACONTEXTD_HOST", "192.0.2.1", "127.0.0.1"],
    ),
    ({"ACONTEXTD_DATA_DIR": "/dev/null/data"}, ["ACONTEXTD_DATA_DIR", "/dev/null/data"]),
]


SETTING_NAMES = [" ".join(settings) for settings, _ in INVALID_SETTINGS]


@pytest.mark.parametrize("settings, words", INVALID_SETTINGS, ids=SETTING_NAMES)
def test_an_invalid_setting_prevents_startup_with_a_message(tmp_path, settings, words):
    code, stdout, stderr = run(**{"ACONTEXTD_DATA_DIR": str(tmp_path / "data"), **settings})
    assert (code, stdout) == (1, "")
    for word in words:
        assert word in stderr
    assert "panicked" not in stderr


def test_an_invalid_secret_is_not_printed(tmp_path):
    code, _, stderr = run(ACONTEXTD_DATA_DIR=str(tmp_path), ROOT_API_BEARER_TOKEN="secret words")
    assert code == 1
    assert "ROOT_API_BEARER_TOKEN" in stderr
    assert "secret words" not in stderr


def test_the_error_names_a_port_that_is_in_use(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        code, stdout, stderr = run(ACONTEXTD_DATA_DIR=str(tmp_path / "data"), API_EXPORT_PORT=port)
    assert (code, stdout) == (1, "")
    assert "API_EXPORT_PORT" in stderr and port in stderr


def test_an_unknown_flag_or_command_is_an_error():
    for arguments in (["--nonsense"], ["nonsense"]):
        code, stdout, stderr = run(*arguments)
        assert (code, stdout) == (1, "")
        assert "nonsense" in stderr


def test_the_second_name_of_a_setting_takes_precedence(start_server):
    server = start_server(ARTIFACT_MAX_UPLOAD_SIZE_BYTES="5MiB", APP_ARTIFACT_MAXUPLOADSIZEBYTES="1024")
    with server.client() as client:
        disk = client.disks.create()
        client.artifacts.upsert(disk.id, file=FileUpload("a.bin", b"\0" * 1024))
        with raises_error(413):
            client.artifacts.upsert(disk.id, file=FileUpload("b.bin", b"\0" * 1025))


# ----- the embedded Postgres -----


def process_tree(pid):
    """Returns the ids of a process and of all its descendants, its own first."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # The name in parentheses may contain anything.
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            pass
    pids = [pid]
    for ancestor in pids:
        pids.extend(child for child, parent in parents.items() if parent == ancestor)
    return pids


def tcp_ports(pid):
    """Returns the TCP ports on which a process listens."""
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


def test_the_embedded_postgres_has_no_port(server):
    own_pid, *postgres_pids = process_tree(server.process.pid)
    assert postmaster_pid(server) in postgres_pids
    assert tcp_ports(own_pid) == {server.port}
    assert {pid: tcp_ports(pid) for pid in postgres_pids} == {pid: set() for pid in postgres_pids}
    assert server.psql("show listen_addresses") == ""
    directory = Path(server.psql("show unix_socket_directories"))
    assert directory == server.data / "run"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_the_database_and_its_user_are_named_acontext(server):
    assert server.psql("select current_database(), current_user") == "acontext|acontext"
    # Postgres never runs as root, even if root starts the server.
    owner = Path(f"/proc/{postmaster_pid(server)}").stat().st_uid
    assert owner != 0 and (os.getuid() == 0 or owner == os.getuid())


def test_the_server_exits_when_postgres_exits(start_server):
    first = start_server()
    stored = StoredFiles(first)
    os.kill(postmaster_pid(first), signal.SIGKILL)
    assert first.wait() == 1
    assert "embedded Postgres exited unexpectedly" in first.log()
    second = start_server(**same_port(first))
    stored.assert_unchanged(second)
    second.stop()


def test_a_long_data_directory_gets_a_short_socket_path(start_server):
    with temporary_home() as directory:
        deep = directory / ("d" * 60) / ("e" * 60)
        deep.mkdir(parents=True)
        server = start_server(deep)
        sockets = Path(server.psql("show unix_socket_directories"))
        try:
            assert server.data not in sockets.parents
            assert f"host={sockets}&" in server.dsn
            stored = StoredFiles(server)
            server.stop()
            stored.assert_unchanged(start_server(deep, **same_port(server)))
        finally:
            server.close()
            shutil.rmtree(sockets, ignore_errors=True)


# ----- other users -----


@pytest.fixture
def ordinary_home():
    """A home directory of an ordinary user, and the command that runs the program as this user."""
    with temporary_home() as home:
        program = [shutil.copy(PROGRAM, home / "acontextd")]
        user_home = home / "user"
        user_home.mkdir(mode=0o700)
        if os.getuid() == 0:
            shutil.chown(user_home, "nobody")
            program = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--", *program]
        yield home, user_home, program


def test_an_ordinary_user_needs_no_settings(start_server, ordinary_home):
    home, user_home, program = ordinary_home
    settings = {"program": program, "ACONTEXTD_DATA_DIR": None, "HOME": str(user_home)}
    first = start_server(home, **settings)
    assert first.banner_value("data") == str(user_home / ".local/share/acontextd")
    first.data = user_home / ".local/share/acontextd"
    stored = StoredFiles(first)
    owners = {pid: Path(f"/proc/{pid}").stat().st_uid for pid in process_tree(first.process.pid)}
    assert len(owners) > 1 and set(owners.values()) == {user_home.stat().st_uid}
    first.stop()
    second = start_server(home, **settings, **same_port(first))
    stored.assert_unchanged(second)
    second.stop()
