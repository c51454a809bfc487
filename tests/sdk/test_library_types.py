"""Messages that are built from the type definitions of the providers' packages, with every type and every field."""

import itertools
import json
import re
import typing

import httpx
import pytest

from library_support import COMPATIBILITY, FORMATS, checker, documented_fields, loopback_only, read  # noqa: F401
from library_runs import is_equal_content
from library_types import names, values

from acontext.errors import APIError
from anthropic.types import MessageParam
from google.genai.types import Content
from openai.types.chat import ChatCompletionMessage, ChatCompletionMessageParam

# The messages of requests. Those of Anthropic and Gemini contain the types of responses too.
ROOTS = {
    "openai": ChatCompletionMessageParam | ChatCompletionMessage,
    "anthropic": MessageParam,
    "gemini": Content,
}
PACKAGES = {"openai": "openai", "anthropic": "anthropic", "gemini": "google-genai"}
HELLO = {"role": "user", "content": "hello"}
HELLO_TO_GEMINI = {"role": "user", "parts": [{"text": "hello"}]}

formats = pytest.mark.parametrize("format", ROOTS)


@pytest.fixture(scope="module")
def package_types():
    """The fields of each type, by package and type."""
    return {PACKAGES[format]: names(root) for format, root in ROOTS.items()}


def test_the_documentation_names_every_field_of_the_packages(package_types):
    rows = documented_fields()
    documented = {(package, *pair) for package, *cells in rows for pair in itertools.product(*cells)}
    new = [
        f"{package}: {type_}.{field}"
        for package, types in package_types.items()
        for type_, fields in types.items()
        for field in fields
        if (package, type_, field) not in documented
    ]
    assert not new, f"Check how these fields are converted, and add them to {COMPATIBILITY.name}:\n" + "\n".join(new)


def test_the_packages_have_every_field_that_the_documentation_names(package_types):
    """A row may contain similar types. Each of its fields belongs to at least one of them."""
    gone = []
    for package, types, fields in documented_fields():
        known = package_types.get(package, {})
        gone += [f"{package}: {type_}" for type_ in types if type_ not in known]
        of_row = {field for type_ in types for field in known.get(type_, [])}
        gone += [f"{package}: {'/'.join(types)}.{field}" for field in fields if field not in of_row]
    assert not gone, f"Remove these from {COMPATIBILITY.name}:\n" + "\n".join(gone)


def test_types_of_the_same_name_are_merged():
    first, second = typing.TypedDict("Same", {"a": str}), typing.TypedDict("Same", {"b": str})
    outer = typing.TypedDict("Outer", {"text": first, "file": list[second]})
    assert names(outer) == {"Outer": ["file", "text"], "Same": ["a", "b"]}


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
