"""Real libraries: what one has produced is stored, read in every format, and continued with another one."""

import functools
import socket

import pytest

from library_support import (  # noqa: F401
    FORMATS,
    PROVIDER_FORMATS,
    checker,
    loopback_only,
    only_loopback,
    provider,
    provider_process,
    read,
    store,
    without_nulls,
)
from library_runs import LIBRARIES, dump, is_equal_content
from provider_server import Answer

from langchain_core.messages import convert_to_messages

# The first answer calls three tools in parallel, two of them the same; one tool of the third answer fails.
SCRIPT = [
    Answer(
        "I look that up.",
        calls=[("get_weather", {"city": "Oslo"}), ("get_time", {"city": "Oslo"}), ("get_weather", {"city": "Rome"})],
    ),
    Answer("Oslo has 3 degrees and snow at 12:30, Rome has 17 degrees."),
    Answer(calls=[("get_time", {"city": "Atlantis"}), ("get_time", {"city": "Rome"})]),
    Answer("It is 12:30 in Rome. Atlantis has no time zone."),
]
CONTINUATION = [
    Answer(calls=[("get_weather", {"city": "Rome"}), ("get_weather", {"city": "Oslo"})]),
    Answer("Rome is warmer."),
]


def thinking(script):
    """Returns a script whose answers begin with a thought, which Anthropic and Gemini sign."""
    return [Answer(answer.text, f"About step {number}.", answer.calls) for number, answer in enumerate(script)]


def script_for(library, script):
    # OpenAI's API has no thoughts. A thought in the request would be rejected.
    return script if library.format == "openai" else thinking(script)


@functools.cache
def run_first(provider, library, style=None, **options):
    """Runs a library through the script, and returns its messages as JSON. The tests share the runs."""
    provider.reset(*script_for(library, SCRIPT), **options)
    messages = library.run(provider.url, [], "What are the weather and the time in Oslo, and the weather in Rome?")
    bodies = [dump(library, message, style) for message in messages]
    messages = library.run(provider.url, own_history(library, bodies), "And the time in Atlantis and Rome?")
    assert provider.answers == []
    return bodies + [dump(library, message, style) for message in messages]


def own_history(library, bodies):
    """Returns messages of a library as it would send them itself."""
    if library.format == "anthropic":
        bodies = [{"role": body["role"], "content": body["content"]} for body in bodies]
    return without_nulls(bodies)


def continue_run(provider, library, history):
    provider.reset(*script_for(library, CONTINUATION))
    messages = library.run(provider.url, history, "Which of them is warmer?")
    assert provider.answers == []
    return [dump(library, message) for message in messages]


libraries = pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)
pairs = pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(LIBRARIES[first], LIBRARIES[second], id=f"{first}-{second}")
        for first in LIBRARIES
        for second in LIBRARIES
    ],
)


def expect_accepted(checker, client, session, formats=PROVIDER_FORMATS):
    """Checks that the providers accept the session as their history."""
    errors = {format: checker.error(format, read(client, session, format)) for format in formats}
    assert not any(errors.values()), errors


@pairs
def test_a_run_that_was_stored_with_one_library_is_continued_with_another(client, provider, first, second):
    session = client.sessions.create()
    store(client, session, first.format, run_first(provider, first))
    messages = continue_run(provider, second, read(client, session, second.format))
    results = str(messages)
    assert "17 degrees" in results and "3 degrees" in results


@pairs
def test_every_provider_accepts_a_session_that_two_libraries_have_written(client, checker, provider, first, second):
    session = client.sessions.create()
    store(client, session, first.format, run_first(provider, first))
    store(client, session, second.format, continue_run(provider, second, read(client, session, second.format)))
    expect_accepted(checker, client, session)


@libraries
def test_every_provider_accepts_each_prefix_of_a_run_that_ends_with_an_answer(client, checker, provider, library):
    session = client.sessions.create()
    for body in run_first(provider, library):
        store(client, session, library.format, [body])
        calls = read(client, session, "acontext")[-1]["parts"]
        if not any(part["type"].startswith("tool-") for part in calls):
            expect_accepted(checker, client, session)


styles = pytest.mark.parametrize(
    ("library", "style"),
    [
        pytest.param(library, style, id=f"{name}-{style}")
        for name, library in LIBRARIES.items()
        for style in library.dumps
    ],
)


@styles
def test_a_run_is_returned_as_it_was_stored(client, provider, library, style):
    session = client.sessions.create()
    bodies = run_first(provider, library, style)
    store(client, session, library.format, bodies)
    items = read(client, session, library.format)
    if library.format == "gemini":
        assert len(items) == len(bodies)
        assert all(map(is_equal_content, bodies, items)), f"{bodies} became {items}"
        return
    if library.format == "anthropic":
        # A response that is stored as a whole is returned in the form that the API accepts.
        bodies = [without_nulls({"role": body["role"], "content": body["content"]}) for body in bodies]
    else:
        bodies = [without_nulls(body, keep=["content"]) for body in bodies]
    assert items == bodies


@styles
def test_every_dump_of_a_run_is_accepted_by_the_other_providers(client, checker, provider, library, style):
    session = client.sessions.create()
    store(client, session, library.format, run_first(provider, library, style))
    # The own format is returned as it was stored, even if the provider rejects that, as OpenAI does `content: []`, which
    # LangChain writes.
    expect_accepted(checker, client, session, [format for format in PROVIDER_FORMATS if format != library.format])


def test_calls_of_gemini_without_ids_are_paired_for_every_provider(client, checker, provider):
    session = client.sessions.create()
    library = LIBRARIES["google-genai"]
    bodies = run_first(provider, library, gemini_has_ids=False)
    store(client, session, "gemini", bodies)
    expect_accepted(checker, client, session)
    results = [item["content"] for item in read(client, session, "openai") if item["role"] == "tool"]
    assert results[:3] == ["3 degrees, snow", "12:30", "17 degrees"]


@libraries
def test_every_text_of_a_run_is_in_every_format(client, provider, library):
    session = client.sessions.create()
    store(client, session, library.format, run_first(provider, library))
    for format in FORMATS:
        content = str(read(client, session, format))
        for text in ("I look that up.", "3 degrees, snow", "17 degrees", "Atlantis has no time zone", "get_weather"):
            assert text in content, format


@libraries
def test_messages_of_every_library_load_with_langchain(client, provider, library):
    session = client.sessions.create()
    store(client, session, library.format, run_first(provider, library))
    messages = convert_to_messages(read(client, session, "openai"))
    types = [message.type for message in messages]
    assert types == ["human", "ai", "tool", "tool", "tool", "ai", "human", "ai", "tool", "tool", "ai"]
    calls = [call for message in messages if message.type == "ai" for call in message.tool_calls]
    assert [call["args"]["city"] for call in calls] == ["Oslo", "Oslo", "Rome", "Atlantis", "Rome"]
    assert [call["id"] for call in calls] == [message.tool_call_id for message in messages if message.type == "tool"]


def test_an_assistant_message_with_content_null_loads_with_langchain(client):
    session = client.sessions.create()
    call = {"id": "call_1", "type": "function", "function": {"name": "get_time", "arguments": '{"city": "Rome"}'}}
    store(client, session, "openai", [{"role": "assistant", "content": None, "tool_calls": [call]}])
    items = read(client, session, "openai")
    assert items == [{"role": "assistant", "content": None, "tool_calls": [call]}]
    [message] = convert_to_messages(items)
    assert message.tool_calls[0]["args"] == {"city": "Rome"}


def test_a_connection_that_is_not_loopback_fails_the_test():
    # An address for documentation, which no machine has (RFC 5737), and a name that no server has (RFC 6761).
    for target in ("192.0.2.1", "provider.invalid"):
        with pytest.raises(AssertionError, match=target), only_loopback(), pytest.raises(OSError):
            socket.create_connection((target, 443), timeout=1)


def test_a_rejected_history_is_a_400_with_the_reason(provider_process):
    provider_process.reset(Answer("never sent"))
    call = {"id": "call_1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
    history = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    with pytest.raises(Exception, match="call_1") as caught:
        LIBRARIES["openai"].run(provider_process.url, history, "And now?")
    assert caught.value.status_code == 400
    assert "call_1" in provider_process.errors[0]
