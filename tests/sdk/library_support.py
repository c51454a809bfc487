"""What the tests with real libraries share: settings, fixtures, and the tools that the models call.

Import this file before a library, because several read the environment when they are imported.
"""

import contextlib
import ipaddress
import os
import re
import socket
from pathlib import Path

import pytest

from provider_server import HistoryChecker, ProviderServer

# Settings of the caller, such as `OPENAI_BASE_URL` and `GOOGLE_GENAI_USE_VERTEXAI`, would select another server.
PREFIXES = ("OPENAI_", "ANTHROPIC_", "CLAUDE_", "GOOGLE_", "GEMINI_", "LANGCHAIN_", "LANGSMITH_", "AGNO_", "OTEL_")
for name in [name for name in os.environ if name.startswith(PREFIXES)]:
    del os.environ[name]
os.environ |= {
    "LANGCHAIN_TRACING_V2": "false",
    "LANGSMITH_TRACING": "false",
    "AGNO_TELEMETRY": "false",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "OTEL_SDK_DISABLED": "true",
}

PROVIDER_FORMATS = ("openai", "anthropic", "gemini")
FORMATS = (*PROVIDER_FORMATS, "acontext")
COMPATIBILITY = Path(__file__).parents[2] / "docs" / "compatibility.md"


def is_loopback(address):
    """Returns whether an address is on this machine. An address that is not a tuple belongs to a Unix socket."""
    if not isinstance(address, tuple):
        return True
    return address[0] == "localhost" or ipaddress.ip_address(address[0]).is_loopback


@contextlib.contextmanager
def only_loopback():
    """Fails if a connection to another machine is attempted, even if the library handles the error or uses a thread."""
    attempts = []
    originals = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex", "sendto")}
    original_lookup = socket.getaddrinfo

    def reject(target):
        attempts.append(str(target))
        raise ConnectionRefusedError(f"the tests must not connect to {target}")

    def connect(connection, address):
        return originals["connect"](connection, address) if is_loopback(address) else reject(address)

    def connect_ex(connection, address):
        return originals["connect_ex"](connection, address) if is_loopback(address) else reject(address)

    def sendto(connection, data, *arguments):
        address = arguments[-1]
        return originals["sendto"](connection, data, *arguments) if is_loopback(address) else reject(address)

    def getaddrinfo(host, *arguments, **options):
        if host not in (None, "", "localhost", b"localhost"):
            try:
                ipaddress.ip_address(host.decode() if isinstance(host, bytes) else host)
            except ValueError:
                reject(host)
        return original_lookup(host, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        for function in (connect, connect_ex, sendto):
            patch.setattr(socket.socket, function.__name__, function)
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield
    assert not attempts, f"connections that are not loopback: {', '.join(attempts)}"


@pytest.fixture(autouse=True)
def loopback_only():
    with only_loopback():
        yield


@pytest.fixture(scope="session")
def checker():
    checker = HistoryChecker()
    yield checker
    checker.close()


@pytest.fixture(scope="session")
def provider_process(checker):
    provider = ProviderServer(checker)
    yield provider
    provider.close()


@pytest.fixture
def provider(provider_process):
    """The server in place of the providers. The test fails with the reason if the history of a request was rejected."""
    provider_process.reset()
    yield provider_process
    assert not provider_process.errors, "\n".join(provider_process.errors)


def get_weather(city: str) -> str:
    """Returns the weather in a city."""
    return {"Oslo": "3 degrees, snow", "Rome": "17 degrees"}[city]


def get_time(city: str) -> str:
    """Returns the local time in a city."""
    if city == "Atlantis":
        raise ValueError("Atlantis has no time zone")
    return {"Oslo": "12:30", "Rome": "12:30"}[city]


TOOLS = {"get_weather": get_weather, "get_time": get_time}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def call_tool(name, arguments):
    """Calls a tool, and returns its result and whether it has failed."""
    try:
        return TOOLS[name](**arguments), False
    except ValueError as error:
        return str(error), True


def store(client, session, format, messages):
    for message in messages:
        client.sessions.store_message(session.id, blob=message, format=format)


def read(client, session, format, **options):
    return client.sessions.get_messages(session.id, format=format, **options).items


def without_nulls(value, *, keep=()):
    """Returns an object without the fields that are null, in all objects inside too."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None or key in keep}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def documented_fields():
    """Returns the rows of the tables with the fields of the providers' types: a package, names of types, names of fields.

    In each row, the first cell contains the types, and the second one their fields, both in backquotes.
    """
    section = COMPATIBILITY.read_text().split("\n## Fields of the providers' types\n")[1].split("\n## ")[0]
    rows, package = [], None
    for line in section.splitlines():
        if line.startswith("### "):
            package = line.removeprefix("### ").strip("`")
        elif line.startswith("| `"):
            types, fields = (re.findall("`(.+?)`", cell) for cell in line.split(" | ")[:2])
            rows.append((package, types, fields))
    return rows
