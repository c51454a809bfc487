"""Events, which clients record in a session: their list, and the events between the messages of a page."""

import asyncio
from datetime import datetime

import pytest

from acontext.event import DiskEvent, TextEvent
from support import raises_error, run_async, store_text

FORMATS = ["openai", "anthropic", "gemini", "acontext"]
DISK = "00000000-0000-4000-8000-00000000d15c"


class Event:
    """An event of any type. The SDK sends its payload unchanged."""

    def __init__(self, **payload):
        self.payload = payload

    def to_payload(self):
        return self.payload


@pytest.fixture
def session(client):
    return client.sessions.create()


def add_text_event(client, session, text="it happened"):
    return client.sessions.add_event(session.id, TextEvent(text=text))


def event_texts(client, session, **options):
    """Returns the texts of listed events."""
    return [event.data["text"] for event in client.sessions.get_events(session.id, **options).items]


def page_event_texts(client, session, **options):
    """Returns the texts of the events in a page of messages."""
    page = client.sessions.get_messages(session.id, with_events=True, **options)
    return [event.data["text"] for event in page.events or []]


def creation_times(entities):
    return [datetime.fromisoformat(entity.created_at) for entity in entities]


# ----- recording -----


def test_a_recorded_event_is_listed_unchanged(client, session):
    text_event = client.sessions.add_event(session.id, TextEvent(text="The user left."))
    disk_event = client.sessions.add_event(session.id, DiskEvent(disk_id=DISK, path="/notes/a.md"))
    event_with_note = client.sessions.add_event(session.id, DiskEvent(disk_id=DISK, path="/b.md", note="read twice"))
    assert (text_event.type, text_event.data) == ("text_event", {"text": "The user left."})
    assert (disk_event.type, disk_event.data) == ("disk_event", {"disk_id": DISK, "path": "/notes/a.md"})
    assert event_with_note.data == {"disk_id": DISK, "path": "/b.md", "note": "read twice"}
    for event in (text_event, disk_event, event_with_note):
        assert (event.session_id, event.project_id) == (session.id, session.project_id)
        assert event.created_at == event.updated_at
    assert len({text_event.id, disk_event.id, event_with_note.id}) == 3
    # The list contains the same events as the responses.
    assert client.sessions.get_events(session.id).items == [text_event, disk_event, event_with_note]


@pytest.mark.parametrize("kind", ["x", "a custom type / with ünï", "k" * 255])
@pytest.mark.parametrize(
    "data", [{}, {"deep": [{"n": None, "list": [1, "ü", True, 2.5]}]}, {"big": 10**30, "": 2**53 + 1}]
)
def test_an_event_can_have_any_type_and_any_object_as_data(client, session, kind, data):
    event = client.sessions.add_event(session.id, Event(type=kind, data=data))
    assert (event.type, event.data) == (kind, data)
    assert client.sessions.get_events(session.id).items == [event]


@pytest.mark.parametrize(
    "payload, field",
    [
        ({"data": {}}, "type"),
        ({"type": None, "data": {}}, "type"),
        ({"type": "", "data": {}}, "type"),
        ({"type": 5, "data": {}}, "type"),
        ({"type": "k" * 256, "data": {}}, "type"),
        ({"type": "ü" * 128, "data": {}}, "type"),
        ({"type": "a\0b", "data": {}}, "type"),
        ({"type": "x"}, "data"),
        # Clients can only read objects.
        ({"type": "x", "data": None}, "data"),
        ({"type": "x", "data": "text"}, "data"),
        ({"type": "x", "data": [1]}, "data"),
        ({"type": "x", "data": 5}, "data"),
        ({"type": "x", "data": {"a": "\0"}}, "data"),
        ({"type": "x", "data": {"a\0": 1}}, "data"),
    ],
)
def test_an_invalid_event_is_an_error_that_names_the_field(client, session, payload, field):
    with raises_error(400, field):
        client.sessions.add_event(session.id, Event(**payload))
    assert client.sessions.get_events(session.id).items == []


def test_an_event_over_a_mebibyte_is_413(client, session):
    with raises_error(413, "data"):
        add_text_event(client, session, "x" * (1 << 20))
    assert client.sessions.get_events(session.id).items == []
    assert add_text_event(client, session, "x" * (1 << 19)).data == {"text": "x" * (1 << 19)}


def test_an_event_does_not_change_messages_or_tokens(client, session):
    store_text(client, session)
    before = client.sessions.get_messages(session.id)
    add_text_event(client, session, "a long story " * 100)
    assert client.sessions.get_messages(session.id) == before
    assert client.sessions.get_token_counts(session.id).total_tokens == before.this_time_tokens


# ----- listing -----


def test_a_session_without_events_has_an_empty_list(client, session):
    store_text(client, session)
    for options in ({}, {"limit": 1}, {"time_desc": True}):
        page = client.sessions.get_events(session.id, **options)
        assert (page.items, page.has_more, page.next_cursor) == ([], False, None)


def test_paging_returns_every_event_once_in_both_orders(client, session):
    texts = [add_text_event(client, session, f"e{number}").data["text"] for number in range(5)]

    def read_pages(**order):
        pages, cursor = [], None
        while True:
            page = client.sessions.get_events(session.id, limit=2, cursor=cursor, **order)
            pages.append([event.data["text"] for event in page.items])
            if not page.has_more:
                assert not page.next_cursor
                return pages
            cursor = page.next_cursor

    assert read_pages() == read_pages(time_desc=False) == [texts[:2], texts[2:4], texts[4:]]
    # Unlike messages, the events on a page have the requested order.
    assert read_pages(time_desc=True) == [texts[:2:-1], texts[2:0:-1], texts[:1]]
    single_page = client.sessions.get_events(session.id, limit=5)
    assert len(single_page.items) == 5 and not single_page.has_more


def test_paging_continues_while_events_are_added(client, session):
    for number in range(4):
        add_text_event(client, session, f"e{number}")
    oldest = client.sessions.get_events(session.id, limit=2)
    newest = client.sessions.get_events(session.id, limit=2, time_desc=True)
    add_text_event(client, session, "late")
    assert event_texts(client, session, cursor=oldest.next_cursor) == ["e2", "e3", "late"]
    assert event_texts(client, session, cursor=newest.next_cursor, time_desc=True) == ["e1", "e0"]


def test_the_default_page_has_fifty_events(client, session):
    texts = [add_text_event(client, session, f"e{number}").data["text"] for number in range(51)]
    page = client.sessions.get_events(session.id)
    assert len(page.items) == 50 and page.has_more
    assert event_texts(client, session, cursor=page.next_cursor) == texts[50:]
    assert event_texts(client, session, limit=200) == texts


@pytest.mark.parametrize(
    "name, value",
    [("limit", 0), ("limit", -1), ("limit", 201), ("limit", 2**63), ("cursor", "garbage"), ("cursor", "MTIzfDQ1Ng")],
)
def test_invalid_paging_is_an_error_that_names_the_parameter(client, session, name, value):
    with raises_error(400, name):
        client.sessions.get_events(session.id, **{name: value})


def test_an_event_belongs_to_one_session(client, session):
    other = client.sessions.create()
    add_text_event(client, session, "first")
    add_text_event(client, other, "other")
    assert (event_texts(client, session), event_texts(client, other)) == (["first"], ["other"])
    store_text(client, other)
    add_text_event(client, session, "second")
    store_text(client, other)
    assert page_event_texts(client, other) == []


def test_events_are_deleted_with_their_session(server, client, session):
    add_text_event(client, session)
    client.sessions.delete(session.id)
    for call in (client.sessions.get_events, lambda id: client.sessions.add_event(id, TextEvent(text="late"))):
        with raises_error(404, "session not found"):
            call(session.id)
    assert server.psql(f"select count(*) from session_events where session_id = '{session.id}'") == "0"


# ----- between messages -----


@pytest.fixture(scope="module")
def conversation(client):
    """A session with three messages and events around them, and the ids of the messages."""
    session = client.sessions.create()
    ids = []
    for text, events in [("one", ["a"]), ("two", ["b", "c"]), ("three", ["after"])]:
        if not ids:
            add_text_event(client, session, "before")
        ids.append(store_text(client, session, text).id)
        for event in events:
            add_text_event(client, session, event)
    return session, ids


def test_messages_and_events_have_increasing_times(client, session):
    entities = []
    for number in range(10):
        entities += [store_text(client, session, f"m{number}"), add_text_event(client, session, f"e{number}")]
    assert all(earlier < later for earlier, later in zip(creation_times(entities), creation_times(entities)[1:]))


def test_a_page_contains_the_events_between_its_messages(client, conversation):
    session, _ = conversation
    assert event_texts(client, session) == ["before", "a", "b", "c", "after"]
    assert page_event_texts(client, session) == ["a", "b", "c"]
    assert page_event_texts(client, session, limit=2) == ["a"]
    assert page_event_texts(client, session, limit=2, time_desc=True) == ["b", "c"]
    first = client.sessions.get_messages(session.id, limit=2)
    assert page_event_texts(client, session, limit=2, cursor=first.next_cursor) == []
    # There are no events within a page of one message.
    assert page_event_texts(client, session, limit=1) == []
    assert page_event_texts(client, session, limit=1, time_desc=True) == []


def test_events_of_a_page_are_equal_to_listed_events(client, conversation):
    session, _ = conversation
    listed = client.sessions.get_events(session.id).items
    assert client.sessions.get_messages(session.id, with_events=True).events == listed[1:4]


def test_events_after_the_last_message_follow_the_next_message(client, session):
    store_text(client, session)
    add_text_event(client, session, "pending")
    assert page_event_texts(client, session) == []
    store_text(client, session)
    assert page_event_texts(client, session) == ["pending"]


@pytest.mark.parametrize("format", FORMATS)
def test_events_are_returned_in_every_format(client, conversation, format):
    session, ids = conversation
    without = client.sessions.get_messages(session.id, format=format)
    with_events = client.sessions.get_messages(session.id, format=format, with_events=True)
    assert without.events is None
    assert [event.data["text"] for event in with_events.events] == ["a", "b", "c"]
    assert with_events.model_copy(update={"events": None}) == without
    assert without.ids == ids


def test_events_are_only_returned_if_requested(client, conversation):
    session, _ = conversation
    for options in ({}, {"with_events": False}, {"limit": 2}):
        assert client.sessions.get_messages(session.id, **options).events is None


def test_edit_strategies_do_not_remove_events(client, conversation):
    session, ids = conversation
    keep_last = [{"type": "token_limit", "params": {"limit_tokens": 2}}]
    remove_all = [{"type": "token_limit", "params": {"limit_tokens": 1}}]
    page = client.sessions.get_messages(session.id, edit_strategies=keep_last)
    assert page.ids == ids[2:]
    assert page_event_texts(client, session, edit_strategies=keep_last) == ["a", "b", "c"]
    assert client.sessions.get_messages(session.id, edit_strategies=remove_all).ids == []
    assert page_event_texts(client, session, edit_strategies=remove_all) == ["a", "b", "c"]


@pytest.mark.parametrize("message, event", [("first", "before"), ("last", "after")])
def test_a_page_contains_events_at_the_times_of_its_messages(server, client, message, event):
    session = client.sessions.create()
    add_text_event(client, session, "before")
    first, last = store_text(client, session), store_text(client, session)
    add_text_event(client, session, "after")
    assert page_event_texts(client, session) == []
    created_at = {"first": first, "last": last}[message].created_at
    server.psql(
        f"update session_events set created_at = '{created_at}'"
        f" where session_id = '{session.id}' and data ->> 'text' = '{event}'"
    )
    assert page_event_texts(client, session) == [event]


# ----- the asynchronous client -----


def test_async_events(server):
    async def steps(client):
        sessions = client.sessions
        session = await sessions.create()
        await sessions.store_message(session.id, blob={"role": "user", "content": "one"})
        first = await sessions.add_event(session.id, TextEvent(text="a"))
        second = await sessions.add_event(session.id, DiskEvent(disk_id=DISK, path="/a.md", note="read"))
        await sessions.store_message(session.id, blob={"role": "user", "content": "two"})
        page = await sessions.get_events(session.id, limit=1)
        assert (page.items, page.has_more) == ([first], True)
        page = await sessions.get_events(session.id, limit=1, cursor=page.next_cursor)
        assert (page.items, page.has_more) == ([second], False)
        assert (await sessions.get_events(session.id, time_desc=True)).items == [second, first]
        assert (await sessions.get_messages(session.id, with_events=True)).events == [first, second]
        with raises_error(400, "type"):
            await sessions.add_event(session.id, Event(data={}))

    run_async(server, steps)


def test_concurrent_events_have_different_times(server):
    async def steps(client):
        session = await client.sessions.create()
        stored = await asyncio.gather(
            *(client.sessions.add_event(session.id, TextEvent(text=f"e{number}")) for number in range(30)),
            *(
                client.sessions.store_message(session.id, blob={"role": "user", "content": f"m{number}"})
                for number in range(10)
            ),
        )
        assert len(set(creation_times(stored[:30]))) == 30
        listed = (await client.sessions.get_events(session.id)).items
        assert sorted(listed, key=lambda event: event.id) == sorted(stored[:30], key=lambda event: event.id)
        assert creation_times(listed) == sorted(creation_times(stored[:30]))

    run_async(server, steps)
