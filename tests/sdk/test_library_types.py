"""Messages that are built from the type definitions of the providers' packages, with every type and every field."""

import itertools
import json
import re
from pathlib import Path

import httpx
import pytest

from library_support import FORMATS, checker, loopback_only, read  # noqa: F401
from library_runs import is_equal_content
from library_types import names, values

from acontext.errors import APIError
from anthropic.types import MessageParam
from google.genai.types import Content
from openai.types.chat import ChatCompletionMessageParam

ROOTS = {"openai": ChatCompletionMessageParam, "anthropic": MessageParam, "gemini": Content}
# The types and fields of the pinned versions. Their conversion is described in docs/compatibility.md.
KNOWN = Path(__file__).with_name("library_types.txt")
HELLO = {"role": "user", "content": "hello"}
HELLO_TO_GEMINI = {"role": "user", "parts": [{"text": "hello"}]}

formats = pytest.mark.parametrize("format", ROOTS)


def test_every_type_and_field_of_the_packages_is_known():
    found = {
        f"{format} {type_}.{field}"
        for format, root in ROOTS.items()
        for type_, fields in names(root).items()
        for field in fields
    }
    known = set(KNOWN.read_text().splitlines())
    new, gone = sorted(found - known), sorted(known - found)
    assert not new and not gone, (
        f"new in the packages: {new}; no longer in the packages: {gone}. "
        f"Check how they are converted, then change {KNOWN.name}."
    )


def messages_of(format):
    messages = values(ROOTS[format])
    for message in messages:
        # Only a user sends function responses.
        if any("function_response" in part for part in message.get("parts", [])):
            message["role"] = "user"
    return messages


@pytest.fixture(scope="module")
def sessions(client):
    """A session per format with all its messages, each after a message of a user, and these messages."""
    result = {}
    for format in ROOTS:
        session, stored = client.sessions.create(), []
        for number, message in enumerate(messages_of(format)):
            # An id is used for one call only.
            message = json.loads(json.dumps(message).replace('"call_1"', f'"call_{number}"'))
            stored += [HELLO_TO_GEMINI if format == "gemini" else HELLO, message]
        result[format] = session, stored
    return result


@pytest.fixture(scope="module")
def stored(client, sessions):
    """Stores all messages, and returns for each format those that were rejected."""
    rejected = {}
    for format, (session, messages) in sessions.items():
        rejected[format] = []
        for message in messages:
            try:
                client.sessions.store_message(session.id, blob=message, format=format)
            except APIError as error:
                rejected[format].append(f"{error.message}: {message}")
    return rejected


@formats
def test_every_message_of_the_types_is_stored(stored, format):
    assert not stored[format], f"{len(stored[format])} rejected\n" + "\n".join(stored[format][:10])


@formats
@pytest.mark.parametrize("target", FORMATS)
def test_every_message_of_the_types_is_read_in_every_format(client, sessions, stored, format, target):
    session, _ = sessions[format]
    output = client.sessions.get_messages(session.id, format=target)
    assert len(output.items) == len(output.ids) == len(output.metas) > 0
    assert not output.has_more


@formats
def test_every_message_of_the_types_is_returned_as_it_was_stored(client, sessions, stored, format):
    session, messages = sessions[format]
    compare = is_equal_content if format == "gemini" else dict.__eq__
    pairs = zip(messages, read(client, session, format), strict=True)
    changed = [f"{message} became {item}" for message, item in pairs if not compare(message, item)]
    assert not changed, f"{len(changed)} changed\n" + "\n".join(changed[:10])


@pytest.mark.parametrize("format, target", list(itertools.permutations(ROOTS, 2)))
def test_other_providers_accept_every_message_of_the_types(server, checker, sessions, stored, format, target):
    """The history has calls without results and results without calls, so it is read with `repair`."""
    session, _ = sessions[format]
    response = httpx.get(
        f"{server.base_url}/session/{session.id}/messages",
        params={"format": target, "repair": "true"},
        headers={"Authorization": f"Bearer {server.key}"},
        trust_env=False,
    )
    items = response.json()["data"]["items"]
    error = checker.error(target, items)
    index = re.match(r"\w+\[(\d+)\]", error or "")
    assert error is None, f"{error}: {items[int(index[1])] if index else ''}"
