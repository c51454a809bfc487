"""Starts, watches and ends the real program, and a few things that several test files want."""

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
# For everything that is waited for. Only a test that fails takes this long.
PATIENCE = 60


def eventually(condition, what, seconds=PATIENCE):
    """Asks until the answer is true, and returns it."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"in vain for {seconds} s: {what}"
        time.sleep(0.01)


@contextlib.contextmanager
def temporary_home():
    """A folder for a data folder and logs. In /tmp and open to be passed through: as root, the private Postgres runs as
    another user, and its socket needs a short path."""
    home = Path(tempfile.mkdtemp(prefix="acontextd-test-", dir="/tmp"))
    home.chmod(0o711)
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def environment(**settings):
    """Nothing of the caller's settings gets through."""
    return {"PATH": os.environ["PATH"], "API_EXPORT_PORT": "0", **settings}


def run(*arguments, **settings):
    """Runs the program where it is to end by itself: its exit code, what it printed and what it complained about."""
    done = subprocess.run(
        [PROGRAM, *arguments],
        env=environment(**settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return done.returncode, done.stdout, done.stderr


class Server:
    """One run of the program in embedded mode, on `<home>/data` and any free port unless told otherwise."""

    # For the report of a test that fails.
    running = []

    def __init__(self, home, *, program=(PROGRAM,), **settings):
        number = len(list(home.glob("run-*.log")))
        self.data = home / "data"
        self.out_file = home / f"run-{number}.out"
        self.log_file = home / f"run-{number}.log"
        settings = {"ACONTEXTD_DATA_DIR": str(self.data), "ADMIN_API_TOKEN": ADMIN_TOKEN, **settings}
        with self.out_file.open("wb") as out, self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                # A test run that is killed leaves no server behind.
                ["setpriv", "--pdeathsig", "TERM", "--", *program],
                env=environment(**{name: value for name, value in settings.items() if value is not None}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                # Ctrl-C is for pytest, which then stops the server in order.
                process_group=0,
            )
        Server.running.append(self)

    def wait_until_ready(self):
        eventually(lambda: self.has_ended() or "  try " in self.welcome(), "the welcome text")
        assert not self.has_ended(), f"the server did not start:\n{self.log()}"
        # For the tests of how to connect to what; everything else goes through these.
        self.base_url = self.said("base URL")
        self.key = self.said("key")
        self.dsn = self.said("database")
        self.origin = self.base_url.removesuffix("/api/v1")
        self.port = int(self.origin.rpartition(":")[2])
        eventually(self.is_ready, "/ready")
        return self

    def is_ready(self):
        assert not self.has_ended(), f"the server ended:\n{self.log()}"
        try:
            return httpx.get(f"{self.origin}/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def has_ended(self):
        return self.process.poll() is not None

    def welcome(self):
        return self.out_file.read_text()

    def said(self, name):
        """What the welcome text says about this."""
        return re.search(rf"^  {name}  +(.*)$", self.welcome(), re.MULTILINE)[1]

    def log(self):
        return self.log_file.read_text()

    def log_lines(self):
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    def client(self, key=None):
        return AcontextClient(base_url=self.base_url, api_key=key or self.key)

    def psql(self, statement):
        """Asks the private database, by the address that the welcome text names. One line per row."""
        command = ["psql", "--no-psqlrc", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", self.dsn, "-c", statement]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def files(self, folder):
        """All files below a folder of the data folder, without locks."""
        found = (self.data / folder).rglob("*")
        return sorted(path for path in found if path.is_file() and path.name != "lock")

    def send(self, number):
        self.process.send_signal(number)
        return self

    def wait(self):
        """Waits for the end: the exit code."""
        code = self.process.wait(PATIENCE)
        if self in Server.running:
            Server.running.remove(self)
        return code

    def stop(self, number=signal.SIGTERM):
        """The orderly end."""
        code = self.send(number).wait()
        assert code == 0, f"the server ended with {code} and not in order:\n{self.log()}"

    def kill(self):
        assert self.send(signal.SIGKILL).wait() == -signal.SIGKILL

    def close(self):
        """Whatever the test has done with it."""
        if not self.has_ended():
            self.send(signal.SIGTERM)
        try:
            self.wait()
        except subprocess.TimeoutExpired:
            self.kill()
            raise


@contextlib.contextmanager
def refused(status, *words):
    """The SDK raises an error with this status, the same code, and these words in its message."""
    with pytest.raises(APIError) as caught:
        yield caught
    error = caught.value
    assert (error.status_code, error.code) == (status, status), error
    for word in words:
        assert word in error.message


def new_project(server, **configs):
    """Makes a project as the operator does: its id and its key."""
    answer = httpx.post(
        f"{server.origin}/admin/v1/project",
        headers={"Authorization": f"Bearer {ADMIN_TOKEN}"},
        json={"configs": configs},
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    return data["project_id"], data["secret_key"]


def open_link(url, **headers):
    """What anybody gets who opens a public link: no key is sent."""
    return httpx.get(url, headers=headers, trust_env=False)


def say(client, session, text="hello", **how):
    """Stores a message of one text."""
    return client.sessions.store_message(session.id, blob={"role": "user", "content": text}, **how)


def asynchronously(server, steps):
    """Runs `steps`, a coroutine function that takes a client."""

    async def run():
        async with AcontextAsyncClient(base_url=server.base_url, api_key=server.key) as client:
            return await steps(client)

    return asyncio.run(run())
