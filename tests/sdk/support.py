"""Starts and stops the real program, and contains helpers that several test files use."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import httpx
import pytest

from acontext import AcontextAsyncClient, AcontextClient
from acontext.errors import APIError

PROGRAM = Path(
    os.environ.get("ACONTEXTD_BIN") or Path(__file__).parents[2] / "target" / "debug" / "acontextd"
).resolve()
DEFAULT_KEY = "sk-ac-your-root-api-bearer-token"
ADMIN_TOKEN = "the-admin-token-of-the-tests"
# Timeout of every wait, in seconds. Only a failing test takes this long.
TIMEOUT = 60


def wait_until(condition, what, seconds=TIMEOUT):
    """Polls until the condition returns a true value, and returns that value. `what` states the condition."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"timed out after {seconds} s waiting until {what}"
        time.sleep(0.01)


@contextlib.contextmanager
def temporary_home():
    """Creates a temporary directory for a data directory and logs.

    It is in /tmp because the socket of the embedded Postgres needs a short path. Every user may traverse it because the
    embedded Postgres of a server that runs as root runs as a different user.
    """
    home = Path(tempfile.mkdtemp(prefix="acontextd-test-", dir="/tmp"))
    home.chmod(0o711)
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def environment(**settings):
    """Returns an environment without the settings of the caller."""
    return {"PATH": os.environ["PATH"], "API_EXPORT_PORT": "0", **settings}


def run(*arguments, **settings):
    """Runs the program until it exits by itself, and returns its exit code, standard output and standard error."""
    result = subprocess.run(
        [PROGRAM, *arguments],
        env=environment(**settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    return result.returncode, result.stdout, result.stderr


class Server:
    """A process of the program. By default it runs in embedded mode, on `<home>/data` and any free port."""

    # All servers that run now, for the report of a failed test.
    running = []

    def __init__(self, home, *, program=(PROGRAM,), **settings):
        number = len(list(home.glob("run-*.log")))
        self.data = home / "data"
        self.out_file = home / f"run-{number}.out"
        self.log_file = home / f"run-{number}.log"
        settings = {"ACONTEXTD_DATA_DIR": str(self.data), "ADMIN_API_TOKEN": ADMIN_TOKEN, **settings}
        with self.out_file.open("wb") as out, self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                # If the test run is killed, the server stops too.
                ["setpriv", "--pdeathsig", "TERM", "--", *program],
                env=environment(**{name: value for name, value in settings.items() if value is not None}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                # Ctrl-C must reach only pytest, which then stops the server gracefully.
                process_group=0,
            )
        Server.running.append(self)

    def wait_until_ready(self):
        wait_until(lambda: self.has_exited() or "  try " in self.banner(), "the startup banner is printed")
        assert not self.has_exited(), f"the server did not start:\n{self.log()}"
        # The banner's values are used for all connections, so that every test also checks them.
        self.base_url = self.banner_value("base URL")
        self.key = self.banner_value("key")
        self.dsn = self.banner_value("database")
        self.origin = self.base_url.removesuffix("/api/v1")
        self.port = int(self.origin.rpartition(":")[2])
        wait_until(self.is_ready, "the server is ready")
        return self

    def is_ready(self):
        assert not self.has_exited(), f"the server exited:\n{self.log()}"
        try:
            return httpx.get(f"{self.origin}/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def has_exited(self):
        return self.process.poll() is not None

    def banner(self):
        return self.out_file.read_text()

    def banner_value(self, name):
        """Returns a value of the startup banner."""
        return re.search(rf"^  {name}  +(.*)$", self.banner(), re.MULTILINE)[1]

    def log(self):
        return self.log_file.read_text()

    def log_lines(self):
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    def client(self, key=None):
        return AcontextClient(base_url=self.base_url, api_key=key or self.key)

    def psql(self, statement):
        """Runs a statement in the embedded database, at the address in the banner. The result has one line per row."""
        command = ["psql", "--no-psqlrc", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", self.dsn, "-c", statement]
        result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def files(self, directory):
        """Returns all files below a subdirectory of the data directory, except lock files."""
        paths = (self.data / directory).rglob("*")
        return sorted(path for path in paths if path.is_file() and path.name != "lock")

    def send(self, number):
        self.process.send_signal(number)
        return self

    def wait(self):
        """Waits until the process has exited, and returns its exit code."""
        code = self.process.wait(TIMEOUT)
        if self in Server.running:
            Server.running.remove(self)
        return code

    def stop(self, number=signal.SIGTERM):
        """Stops the server gracefully."""
        code = self.send(number).wait()
        assert code == 0, f"the server did not shut down cleanly, exit code {code}:\n{self.log()}"

    def kill(self):
        assert self.send(signal.SIGKILL).wait() == -signal.SIGKILL

    def close(self):
        """Stops the server if it still runs, and checks nothing. If it does not stop, it is killed."""
        if not self.has_exited():
            self.send(signal.SIGTERM)
        try:
            self.wait()
        except subprocess.TimeoutExpired:
            self.kill()
            raise


@contextlib.contextmanager
def raises_error(status, *words):
    """Checks that the SDK raises an error with this status, the same code, and these words in its message."""
    with pytest.raises(APIError) as caught:
        yield caught
    error = caught.value
    assert (error.status_code, error.code) == (status, status), error
    for word in words:
        assert word in error.message


def new_project(server, **configs):
    """Creates a project with the admin API, and returns its id and its key."""
    response = httpx.post(
        f"{server.origin}/admin/v1/project",
        headers={"Authorization": f"Bearer {ADMIN_TOKEN}"},
        json={"configs": configs},
        trust_env=False,
    )
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    return data["project_id"], data["secret_key"]


def open_link(url, **headers):
    """Requests a public link without an API key, and returns the response."""
    return httpx.get(url, headers=headers, trust_env=False)


def store_text(client, session, text="hello", **options):
    """Stores a message with one text."""
    return client.sessions.store_message(session.id, blob={"role": "user", "content": text}, **options)


def run_async(server, steps):
    """Runs `steps`, a coroutine function, with an asynchronous client."""

    async def run():
        async with AcontextAsyncClient(base_url=server.base_url, api_key=server.key) as client:
            return await steps(client)

    return asyncio.run(run())
