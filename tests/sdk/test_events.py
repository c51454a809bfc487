"""Events: what else clients tell of a session, in an order of their own and between its messages."""

import asyncio
from datetime import datetime

import pytest

from acontext.event import DiskEvent, TextEvent
from support import asynchronously, refused, say

FORMATS = ["openai", "anthropic", "gemini", "acontext"]
DISK = "00000000-0000-4000-8000-00000000d15c"


class Event:
    """An event of a kind that the SDK does not know; it sends whatever this says."""

    def __init__(self, **payload):
        self.payload = payload

    def to_payload(self):
        return self.payload


@pytest.fixture
def session(client):
    return client.sessions.create()


def tell(client, session, text="it happened"):
    return client.sessions.add_event(session.id, TextEvent(text=text))


def told(client, session, **how):
    """The texts of events, as they are listed."""
    return [event.data["text"] for event in client.sessions.get_events(session.id, **how).items]


def beside(client, session, **how):
    """The texts of the events that come with a page of messages."""
    return [
        event.data["text"] for event in client.sessions.get_messages(session.id, with_events=True, **how).events or []
    ]


def times(things):
    return [datetime.fromisoformat(thing.created_at) for thing in things]


# ----- telling -----


def test_an_event_is_what_was_told(client, session):
    text = client.sessions.add_event(session.id, TextEvent(text="The user left."))
    disk = client.sessions.add_event(session.id, DiskEvent(disk_id=DISK, path="/notes/a.md"))
    noted = client.sessions.add_event(session.id, DiskEvent(disk_id=DISK, path="/b.md", note="read twice"))
    assert (text.type, text.data) == ("text_event", {"text": "The user left."})
    assert (disk.type, disk.data) == ("disk_event", {"disk_id": DISK, "path": "/notes/a.md"})
    assert noted.data == {"disk_id": DISK, "path": "/b.md", "note": "read twice"}
    for event in (text, disk, noted):
        assert (event.session_id, event.project_id) == (session.id, session.project_id)
        assert event.created_at == event.updated_at
    assert len({text.id, disk.id, noted.id}) == 3
    # What the call answered is what is listed.
    assert client.sessions.get_events(session.id).items == [text, disk, noted]


@pytest.mark.parametrize("kind", ["x", "a kind of our own / with ünï", "k" * 255])
@pytest.mark.parametrize(
    "data", [{}, {"deep": [{"n": None, "list": [1, "ü", True, 2.5]}]}, {"big": 10**30, "": 2**53 + 1}]
)
def test_an_event_may_be_of_any_kind_and_hold_any_object(client, session, kind, data):
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
        # Clients could not read what is no object.
        ({"type": "x", "data": None}, "data"),
        ({"type": "x", "data": "text"}, "data"),
        ({"type": "x", "data": [1]}, "data"),
        ({"type": "x", "data": 5}, "data"),
        ({"type": "x", "data": {"a": "\0"}}, "data"),
        ({"type": "x", "data": {"a\0": 1}}, "data"),
    ],
)
def test_an_event_that_makes_no_sense_is_refused_by_name(client, session, payload, field):
    with refused(400, field):
        client.sessions.add_event(session.id, Event(**payload))
    assert client.sessions.get_events(session.id).items == []


def test_an_event_over_a_mebibyte_is_413(client, session):
    with refused(413, "data"):
        tell(client, session, "x" * (1 << 20))
    assert client.sessions.get_events(session.id).items == []
    assert tell(client, session, "x" * (1 << 19)).data == {"text": "x" * (1 << 19)}


def test_an_event_changes_neither_messages_nor_tokens(client, session):
    say(client, session)
    before = client.sessions.get_messages(session.id)
    tell(client, session, "a long story " * 100)
    assert client.sessions.get_messages(session.id) == before
    assert client.sessions.get_token_counts(session.id).total_tokens == before.this_time_tokens


# ----- listing -----


def test_a_session_without_events_has_an_empty_list(client, session):
    say(client, session)
    for how in ({}, {"limit": 1}, {"time_desc": True}):
        page = client.sessions.get_events(session.id, **how)
        assert (page.items, page.has_more, page.next_cursor) == ([], False, None)


def test_paging_shows_every_event_once_in_both_directions(client, session):
    said = [tell(client, session, f"e{number}").data["text"] for number in range(5)]

    def walk(**order):
        pages, cursor = [], None
        while True:
            page = client.sessions.get_events(session.id, limit=2, cursor=cursor, **order)
            pages.append([event.data["text"] for event in page.items])
            if not page.has_more:
                assert not page.next_cursor
                return pages
            cursor = page.next_cursor

    assert walk() == walk(time_desc=False) == [said[:2], said[2:4], said[4:]]
    # Other than messages, events on a page stand in the order that was asked for.
    assert walk(time_desc=True) == [said[:2:-1], said[2:0:-1], said[:1]]
    whole = client.sessions.get_events(session.id, limit=5)
    assert len(whole.items) == 5 and not whole.has_more


def test_a_walk_through_events_goes_on_while_more_are_told(client, session):
    for number in range(4):
        tell(client, session, f"e{number}")
    oldest = client.sessions.get_events(session.id, limit=2)
    newest = client.sessions.get_events(session.id, limit=2, time_desc=True)
    tell(client, session, "late")
    assert told(client, session, cursor=oldest.next_cursor) == ["e2", "e3", "late"]
    assert told(client, session, cursor=newest.next_cursor, time_desc=True) == ["e1", "e0"]


def test_a_page_is_fifty_events_unless_told_otherwise(client, session):
    said = [tell(client, session, f"e{number}").data["text"] for number in range(51)]
    page = client.sessions.get_events(session.id)
    assert len(page.items) == 50 and page.has_more
    assert told(client, session, cursor=page.next_cursor) == said[50:]
    assert told(client, session, limit=200) == said


@pytest.mark.parametrize(
    "name, value",
    [("limit", 0), ("limit", -1), ("limit", 201), ("limit", 2**63), ("cursor", "garbage"), ("cursor", "MTIzfDQ1Ng")],
)
def test_paging_that_makes_no_sense_is_refused_by_name(client, session, name, value):
    with refused(400, name):
        client.sessions.get_events(session.id, **{name: value})


def test_events_are_of_one_session(client, session):
    other = client.sessions.create()
    tell(client, session, "here")
    tell(client, other, "there")
    assert (told(client, session), told(client, other)) == (["here"], ["there"])
    say(client, other)
    tell(client, session, "here again")
    say(client, other)
    assert beside(client, other) == []


def test_events_go_with_their_session(server, client, session):
    tell(client, session)
    client.sessions.delete(session.id)
    for call in (client.sessions.get_events, lambda id: client.sessions.add_event(id, TextEvent(text="late"))):
        with refused(404, "session not found"):
            call(session.id)
    assert server.psql(f"select count(*) from session_events where session_id = '{session.id}'") == "0"


# ----- between messages -----


@pytest.fixture(scope="module")
def talk(client):
    """A session with three messages and events around them: the session and the ids of the messages."""
    session = client.sessions.create()
    ids = []
    for text, events in [("one", ["a"]), ("two", ["b", "c"]), ("three", ["after"])]:
        if not ids:
            tell(client, session, "before")
        ids.append(say(client, session, text).id)
        for event in events:
            tell(client, session, event)
    return session, ids


def test_messages_and_events_have_one_order_of_time(client, session):
    happened = []
    for number in range(10):
        happened += [say(client, session, f"m{number}"), tell(client, session, f"e{number}")]
    assert all(earlier < later for earlier, later in zip(times(happened), times(happened)[1:]))


def test_a_page_shows_the_events_from_its_first_message_to_its_last(client, talk):
    session, _ = talk
    assert told(client, session) == ["before", "a", "b", "c", "after"]
    assert beside(client, session) == ["a", "b", "c"]
    assert beside(client, session, limit=2) == ["a"]
    assert beside(client, session, limit=2, time_desc=True) == ["b", "c"]
    first = client.sessions.get_messages(session.id, limit=2)
    assert beside(client, session, limit=2, cursor=first.next_cursor) == []
    # Nothing lies inside a page of one message.
    assert beside(client, session, limit=1) == beside(client, session, limit=1, time_desc=True) == []


def test_events_on_a_page_are_the_ones_that_are_listed(client, talk):
    session, _ = talk
    listed = client.sessions.get_events(session.id).items
    assert client.sessions.get_messages(session.id, with_events=True).events == listed[1:4]


def test_events_that_come_after_the_last_message_show_with_the_next_one(client, session):
    say(client, session)
    tell(client, session, "waits")
    assert beside(client, session) == []
    say(client, session)
    assert beside(client, session) == ["waits"]


@pytest.mark.parametrize("format", FORMATS)
def test_events_come_in_every_format_and_change_nothing_else(client, talk, format):
    session, ids = talk
    without = client.sessions.get_messages(session.id, format=format)
    with_events = client.sessions.get_messages(session.id, format=format, with_events=True)
    assert without.events is None
    assert [event.data["text"] for event in with_events.events] == ["a", "b", "c"]
    assert with_events.model_copy(update={"events": None}) == without
    assert without.ids == ids


def test_events_are_left_out_unless_they_are_asked_for(client, talk):
    session, _ = talk
    for how in ({}, {"with_events": False}, {"limit": 2}):
        assert client.sessions.get_messages(session.id, **how).events is None


def test_events_are_those_of_the_page_before_it_was_edited(client, talk):
    session, ids = talk
    last_alone = [{"type": "token_limit", "params": {"limit_tokens": 2}}]
    nothing = [{"type": "token_limit", "params": {"limit_tokens": 1}}]
    got = client.sessions.get_messages(session.id, edit_strategies=last_alone)
    assert got.ids == ids[2:]
    assert beside(client, session, edit_strategies=last_alone) == ["a", "b", "c"]
    assert client.sessions.get_messages(session.id, edit_strategies=nothing).ids == []
    assert beside(client, session, edit_strategies=nothing) == ["a", "b", "c"]


@pytest.mark.parametrize("of, event", [("first", "before"), ("last", "after")])
def test_an_event_of_the_very_moment_of_a_message_is_beside_it(server, client, of, event):
    session = client.sessions.create()
    tell(client, session, "before")
    first, last = say(client, session), say(client, session)
    tell(client, session, "after")
    assert beside(client, session) == []
    moment = {"first": first, "last": last}[of].created_at
    server.psql(
        f"update session_events set created_at = '{moment}'"
        f" where session_id = '{session.id}' and data ->> 'text' = '{event}'"
    )
    assert beside(client, session) == [event]


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
        with refused(400, "type"):
            await sessions.add_event(session.id, Event(data={}))

    asynchronously(server, steps)


def test_events_that_are_told_at_once_are_all_kept_in_one_order(server):
    async def steps(client):
        session = await client.sessions.create()
        stored = await asyncio.gather(
            *(client.sessions.add_event(session.id, TextEvent(text=f"e{number}")) for number in range(30)),
            *(
                client.sessions.store_message(session.id, blob={"role": "user", "content": f"m{number}"})
                for number in range(10)
            ),
        )
        assert len(set(times(stored[:30]))) == 30
        listed = (await client.sessions.get_events(session.id)).items
        assert sorted(listed, key=lambda event: event.id) == sorted(stored[:30], key=lambda event: event.id)
        assert times(listed) == sorted(times(stored[:30]))

    asynchronously(server, steps)
