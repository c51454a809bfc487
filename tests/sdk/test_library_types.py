"""Messages that are built from the type definitions of the providers' packages, with every type and every field."""

import json
from pathlib import Path

import pytest

from library_support import FORMATS, loopback_only, read  # noqa: F401
from library_types import names, values

from acontext.errors import APIError
from anthropic.types import MessageParam
from google.genai.types import Content
from openai.types.chat import ChatCompletionMessageParam

ROOTS = {"openai": ChatCompletionMessageParam, "anthropic": MessageParam, "gemini": Content}
# The types and fields of the pinned versions. Their conversion is described in docs/compatibility.md.
KNOWN = Path(__file__).with_name("library_types.txt")

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


def is_equal_content(message, item):
    """Compares contents of Gemini, which are returned in camel case and with an id for each function call and response."""
    message, item = (Content.model_validate_json(json.dumps(value)) for value in (message, item))
    for stored, returned in zip(message.parts, item.parts, strict=True):
        for field in ("function_call", "function_response"):
            if getattr(stored, field) and getattr(stored, field).id is None:
                getattr(returned, field).id = None
    return message == item


@formats
def test_every_message_of_the_types_is_stored_and_read_in_every_format(client, format):
    session = client.sessions.create()
    stored, rejected = [], []
    for message in messages_of(format):
        try:
            client.sessions.store_message(session.id, blob=message, format=format)
            stored.append(message)
        except APIError as error:
            rejected.append(f"{error.message}: {message}")
    assert not rejected, f"{len(rejected)} rejected\n" + "\n".join(rejected[:10])
    for target in FORMATS:
        output = client.sessions.get_messages(session.id, format=target)
        assert len(output.items) == len(output.ids) == len(output.metas)
        assert not output.has_more
    items = read(client, session, format)
    compare = is_equal_content if format == "gemini" else dict.__eq__
    pairs = zip(stored, items, strict=True)
    changed = [f"{message} became {item}" for message, item in pairs if not compare(message, item)]
    assert not changed, f"{len(changed)} changed\n" + "\n".join(changed[:10])
