"""Copies of sessions: the same conversation under new ids, which goes on by itself."""

import asyncio
import json
import os
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from acontext import FileUpload
from acontext.event import DiskEvent, TextEvent
from support import asynchronously, open_link, refused, say

FORMATS = ["openai", "anthropic", "gemini", "acontext"]
NOBODYS = "00000000-0000-4000-8000-000000000000"
NIL = "00000000-0000-0000-0000-000000000000"


def copy(client, session_id):
    """Copies a session: the copy as it is found."""
    done = client.sessions.copy(session_id)
    assert done.old_session_id == session_id != done.new_session_id
    return client.sessions.get_configs(done.new_session_id)


def ids(items):
    return [item["id"] for item in items]


def texts(client, session_id, **how):
    return [item["content"] for item in client.sessions.get_messages(session_id, **how).items]


def messages(client, session_id):
    """All messages with all that is known of them."""
    return client.sessions.get_messages(session_id, format="acontext").items


def send_file(client, session, content, name="a.txt"):
    return client.sessions.store_message(
        session.id,
        blob={"role": "user", "parts": [{"type": "file", "file_field": "file"}]},
        format="acontext",
        file_field="file",
        file=FileUpload(name, content),
    )


def link(client, session_id):
    """The link to the only file of a session."""
    (shown,) = client.sessions.get_messages(session_id, format="acontext").public_urls.values()
    return shown.url


def add_task(server, session, order, description, message=None, planning=False, **more):
    """Puts in a task, which no call can do; a message may belong to it."""
    data = json.dumps({"task_description": description} | more)
    task = server.psql(
        'insert into tasks (session_id, project_id, "order", data, status, is_planning) values'
        f" ('{session.id}', '{session.project_id}', {order}, '{data}', 'running', {planning}) returning id"
    ).splitlines()[0]
    if message:
        server.psql(f"update messages set task_id = '{task}' where id = '{message.id}'")
    return task


@pytest.fixture(scope="module")
def original(server, client):
    """A session with something of everything."""
    session = client.sessions.create(user=f"user-{uuid.uuid4()}", configs={"agent": "bot", "big": 10**30, "none": None})
    store = client.sessions.store_message
    store(session.id, blob={"role": "system", "content": "Be brief."}, meta={"n": 1, "big": 10**30})
    asked = say(client, session, "Which night train goes to Vienna?")
    client.sessions.add_event(session.id, TextEvent(text="looked it up"))
    call = {"type": "tool_use", "id": "a", "name": "timetable", "input": {"to": "Vienna"}}
    store(session.id, blob={"role": "assistant", "content": [call]}, format="anthropic")
    result = {"type": "tool_result", "tool_use_id": "a", "content": "The 21:04.", "is_error": False}
    store(session.id, blob={"role": "user", "content": [result]}, format="anthropic")
    client.sessions.add_event(session.id, DiskEvent(disk_id=NOBODYS, path="/a.md"))
    send_file(client, session, b"a ticket")
    waiting = {"functionCall": {"name": "pay", "args": {"euro": 89}}}
    store(session.id, blob={"role": "model", "parts": [waiting]}, format="gemini")
    for number in range(20):
        last = say(client, session, f"m{number}", meta={"n": number})
    client.sessions.patch_message_meta(session.id, last.id, meta={"patched": True})
    add_task(server, session, 1, "plan the journey", planning=True)
    add_task(server, session, 3, "pay for it")
    add_task(server, session, 2, "find a train", asked, progresses=["asked"], user_preferences=["by night"])
    client.sessions.add_event(session.id, TextEvent(text="left"))
    return session


@pytest.fixture(scope="module")
def copied(client, original):
    return copy(client, original.id)


# ----- what a copy is -----


def test_a_copy_is_a_session_of_its_own_with_the_same_settings(client, original, copied):
    assert uuid.UUID(copied.id).version == 4
    changed = {"id": original.id, "created_at": original.created_at, "updated_at": original.updated_at}
    assert copied.model_copy(update=changed) == original
    assert copied.created_at > original.created_at


@pytest.mark.parametrize("format", FORMATS[:3])
def test_a_copy_says_the_same_in_every_format(client, original, copied, format):
    one = client.sessions.get_messages(original.id, format=format)
    other = client.sessions.get_messages(copied.id, format=format)
    assert other.items == one.items
    assert other.metas == one.metas
    assert other.this_time_tokens == one.this_time_tokens
    assert not set(one.ids) & set(other.ids)
    assert other.edit_at_message_id == other.ids[-1]


def test_a_copy_keeps_all_that_is_known_of_its_messages(client, original, copied):
    one, other = messages(client, original.id), messages(client, copied.id)
    own = {"id", "session_id", "parent_id", "task_id"}
    assert [{key: item[key] for key in item.keys() - own} for item in other] == [
        {key: item[key] for key in item.keys() - own} for item in one
    ]
    assert {item["session_id"] for item in other} == {copied.id}
    # Times are among what is the same.
    assert [item["created_at"] for item in other] == [item["created_at"] for item in one]


def test_the_messages_of_a_copy_follow_each_other(client, copied):
    shown = messages(client, copied.id)
    assert [item["parent_id"] for item in shown] == [None] + ids(shown)[:-1]


def test_a_copy_counts_the_same_tokens(client, original, copied):
    assert client.sessions.get_token_counts(copied.id) == client.sessions.get_token_counts(original.id)


@pytest.mark.parametrize("order", [{}, {"time_desc": True}])
def test_a_copy_is_paged_like_its_original(client, original, copied, order):
    def walk(session):
        pages, cursor = [], None
        while True:
            page = client.sessions.get_messages(session.id, limit=7, cursor=cursor, **order)
            pages.append(page.items)
            if not page.has_more:
                return pages
            cursor = page.next_cursor

    assert walk(copied) == walk(original)
    assert len(walk(copied)) == 4


def test_a_copy_keeps_its_events_between_its_messages(client, original, copied):
    one, other = client.sessions.get_events(original.id).items, client.sessions.get_events(copied.id).items
    said = [(event.type, event.data, event.created_at) for event in one]
    assert [(event.type, event.data, event.created_at) for event in other] == said
    assert len(said) == 3 and {event.session_id for event in other} == {copied.id}
    assert not {event.id for event in one} & {event.id for event in other}
    beside = client.sessions.get_messages(copied.id, with_events=True).events
    assert beside == other[:2]


def test_a_copy_keeps_its_tasks_and_which_message_belongs_to_which(server, client, original, copied):
    one, other = client.sessions.get_tasks(original.id).items, client.sessions.get_tasks(copied.id).items
    own = {"id", "session_id"}
    assert [task.model_dump(exclude=own) for task in other] == [task.model_dump(exclude=own) for task in one]
    assert [task.data.task_description for task in other] == ["pay for it", "find a train"]
    assert not {task.id for task in one} & {task.id for task in other}
    assert [item["task_id"] for item in messages(client, copied.id) if item["task_id"]] == [other[1].id]
    assert client.sessions.get_session_summary(copied.id) == client.sessions.get_session_summary(original.id)
    # So is the one that is never shown.
    planning = f"select count(*) from tasks where is_planning and session_id = '{copied.id}'"
    assert server.psql(planning) == "1"


def test_copying_changes_nothing_of_the_original(client):
    session = client.sessions.create(configs={"a": 1})
    say(client, session)
    before = (client.sessions.get_configs(session.id), messages(client, session.id))
    copy(client, session.id)
    assert (client.sessions.get_configs(session.id), messages(client, session.id)) == before


def test_an_empty_session_has_an_empty_copy(client):
    made = copy(client, client.sessions.create().id)
    got = client.sessions.get_messages(made.id)
    assert (got.items, made.configs, made.user_id) == ([], None, None)
    assert client.sessions.get_events(made.id).items == client.sessions.get_tasks(made.id).items == []
    assert say(client, made).parent_id is None


def test_a_copy_is_found_like_any_session(client):
    user, mark = f"user-{uuid.uuid4()}", str(uuid.uuid4())
    session = client.sessions.create(user=user, configs={"mark": mark})
    made = copy(client, session.id)
    assert client.sessions.list(user=user).items == [session, made]
    assert client.sessions.list(filter_by_configs={"mark": mark}, time_desc=True).items == [made, session]


def test_a_copy_of_a_copy_is_the_same_conversation(client, original, copied):
    again = copy(client, copied.id)
    assert client.sessions.get_messages(again.id).items == client.sessions.get_messages(original.id).items
    shown = messages(client, again.id)
    assert [item["parent_id"] for item in shown] == [None] + ids(shown)[:-1]


@pytest.mark.parametrize("disabled, status", [(False, "pending"), (True, "disable_tracking")])
def test_a_copy_is_tracked_if_its_original_is(client, disabled, status):
    session = client.sessions.create(disable_task_tracking=disabled)
    say(client, session)
    made = copy(client, session.id)
    assert made.disable_task_tracking is disabled
    assert [item["session_task_process_status"] for item in messages(client, made.id)] == [status]
    assert say(client, made).session_task_process_status == status


# ----- going on -----


def test_a_conversation_goes_on_in_two_ways(client):
    session = client.sessions.create(configs={"a": 1})
    first = say(client, session, "first", meta={"n": 1})
    made = copy(client, session.id)
    (copied_first,) = messages(client, made.id)
    there = say(client, made, "there")
    here = say(client, session, "here")
    assert (here.parent_id, there.parent_id) == (first.id, copied_first["id"])
    client.sessions.patch_message_meta(made.id, copied_first["id"], meta={"n": 2})
    client.sessions.patch_configs(made.id, configs={"a": 2})
    client.sessions.add_event(made.id, TextEvent(text="there"))
    assert (texts(client, session.id), texts(client, made.id)) == (["first", "here"], ["first", "there"])
    assert client.sessions.get_messages(session.id).metas[0] == {"n": 1}
    assert client.sessions.get_configs(session.id).configs == {"a": 1}
    assert client.sessions.get_events(session.id).items == []
    # A message is of one session only.
    with refused(404, "message not found"):
        client.sessions.patch_message_meta(session.id, copied_first["id"], meta={"n": 3})


def test_a_call_that_waits_for_its_answer_waits_in_the_copy_too(client):
    session = client.sessions.create()
    call = {"role": "model", "parts": [{"functionCall": {"name": "look", "args": {"at": "it"}}}]}
    answer = {"role": "user", "parts": [{"functionResponse": {"name": "look", "response": {"seen": True}}}]}
    asked = client.sessions.store_message(session.id, blob=call, format="gemini")
    made = copy(client, session.id)
    for each in (session, made):
        answered = client.sessions.store_message(each.id, blob=answer, format="gemini")
        assert answered.parts[0].meta["tool_call_id"] == asked.parts[0].meta["id"]
        with refused(400, "functionResponse"):
            client.sessions.store_message(each.id, blob=answer, format="gemini")
    # What was answered before the copy was made waits nowhere.
    with refused(400, "functionResponse"):
        client.sessions.store_message(copy(client, session.id).id, blob=answer, format="gemini")


@pytest.mark.parametrize("deleted", [0, 1, 2])
def test_each_lives_on_without_the_others(client, deleted):
    session = client.sessions.create()
    say(client, session, "kept")
    client.sessions.add_event(session.id, TextEvent(text="kept"))
    chain = [session.id, copy(client, session.id).id]
    chain.append(copy(client, chain[1]).id)
    before = [(client.sessions.get_messages(each), client.sessions.get_events(each)) for each in chain]
    client.sessions.delete(chain[deleted])
    for number, each in enumerate(chain):
        if number == deleted:
            with refused(404, "session not found"):
                client.sessions.get_messages(each)
        else:
            assert (client.sessions.get_messages(each), client.sessions.get_events(each)) == before[number]


# ----- files -----


def test_files_are_shared_and_not_stored_again(server, client):
    content = os.urandom(100_000)
    session = client.sessions.create()
    send_file(client, session, content, "bytes.bin")
    made = copy(client, session.id)
    rows = server.psql(
        f"select count(*), count(distinct blob_id) from message_files where session_id in ('{session.id}', '{made.id}')"
    )
    assert rows == "2|1"
    assert [file.read_bytes() for file in server.files("objects")].count(content) == 1
    (part,) = messages(client, made.id)[0]["parts"]
    assert [part] == messages(client, session.id)[0]["parts"]
    for session_id in (session.id, made.id):
        assert open_link(link(client, session_id)).content == content
        asked = {"s3_key": part["asset"]["s3_key"]}
        assert client.request_binary("GET", f"/session/{session_id}/asset/download", params=asked) == content


def test_a_file_stays_as_long_as_any_copy_has_it(client):
    content = os.urandom(1_000)
    session = client.sessions.create()
    send_file(client, session, content)
    made = copy(client, session.id)
    links = [link(client, session.id), link(client, made.id)]
    client.sessions.delete(session.id)
    # The project has the content still, so both links open.
    assert [open_link(each).content for each in links] == [content, content]
    assert open_link(link(client, made.id)).content == content
    client.sessions.delete(made.id)
    assert [open_link(each).status_code for each in links] == [404, 404]


# ----- what is refused -----


@pytest.mark.parametrize("nobodys", [NOBODYS, NIL])
def test_a_session_of_nobody_is_not_copied(client, nobodys):
    # Clients look for these words.
    with refused(404, "SESSION_NOT_FOUND"):
        client.sessions.copy(nobodys)


@pytest.mark.parametrize("wrong", ["not-an-id", "123", NOBODYS + "0"])
def test_an_id_that_is_none_is_not_copied(client, wrong):
    with refused(400, "INVALID_SESSION_ID"):
        client.sessions.copy(wrong)


def test_a_session_of_another_project_is_not_copied(client, stranger):
    session = client.sessions.create()
    say(client, session, "mine")
    before = stranger.sessions.list(limit=200).items
    with refused(404, "SESSION_NOT_FOUND"):
        stranger.sessions.copy(session.id)
    assert stranger.sessions.list(limit=200).items == before


def test_a_deleted_session_is_not_copied(client):
    session = client.sessions.create()
    client.sessions.delete(session.id)
    with refused(404, "SESSION_NOT_FOUND"):
        client.sessions.copy(session.id)


def test_a_wrong_key_copies_nothing(server, client):
    session = client.sessions.create()
    with server.client("sk-ac-wrong") as intruder:
        for session_id in (session.id, "not-an-id"):
            with refused(401, "Unauthorized"):
                intruder.sessions.copy(session_id)


def test_a_session_that_is_too_large_is_not_copied_at_all(start):
    server = start(ACONTEXTD_COPY_LIMIT="3")
    with server.client() as client:
        session = client.sessions.create(user="alice")
        for number in range(3):
            say(client, session, f"m{number}")
        made = copy(client, session.id)
        assert texts(client, made.id) == ["m0", "m1", "m2"]
        say(client, session, "one too many")
        with refused(413, "SESSION_TOO_LARGE"):
            client.sessions.copy(session.id)
        assert client.sessions.list(user="alice").items == [
            client.sessions.get_configs(each.id) for each in (session, made)
        ]


# ----- many at once -----


def test_a_copy_in_the_middle_of_a_conversation_is_its_beginning(server, client):
    session = client.sessions.create()
    said = [f"m{number}" for number in range(60)]
    say(client, session, said[0])
    done = threading.Event()

    def talk():
        try:
            with server.client() as mine:
                for text in said[1:]:
                    say(mine, session, text)
        finally:
            done.set()

    def copies():
        with server.client() as mine:
            made = [mine.sessions.copy(session.id).new_session_id]
            while not done.is_set():
                made.append(mine.sessions.copy(session.id).new_session_id)
        return made

    with ThreadPoolExecutor() as threads:
        talker, copiers = threads.submit(talk), [threads.submit(copies) for _ in range(3)]
        talker.result()
        made = sum((copier.result() for copier in copiers), [])
    assert len(set(made)) == len(made)
    for copied in made:
        shown = messages(client, copied)
        assert [item["parts"][0]["text"] for item in shown] == said[: len(shown)] != []
        assert [item["parent_id"] for item in shown] == [None] + ids(shown)[:-1]
    assert texts(client, session.id) == said


def test_a_session_that_is_deleted_while_it_is_copied_leaves_whole_copies(server):
    async def steps(client):
        session = await client.sessions.create()
        for number in range(20):
            await client.sessions.store_message(session.id, blob={"role": "user", "content": f"m{number}"})
        calls = [client.sessions.copy(session.id) for _ in range(8)]
        done = await asyncio.gather(*calls[:4], client.sessions.delete(session.id), *calls[4:], return_exceptions=True)
        assert done.pop(4) is None
        for each in done:
            if isinstance(each, Exception):
                assert (each.status_code, each.message) == (404, "SESSION_NOT_FOUND")
            else:
                got = await client.sessions.get_messages(each.new_session_id)
                assert [item["content"] for item in got.items] == [f"m{number}" for number in range(20)]

    asynchronously(server, steps)


# ----- the asynchronous client -----


def test_async_copy(server, original):
    async def steps(client):
        done = await client.sessions.copy(original.id)
        assert done.old_session_id == original.id != done.new_session_id
        one, other = (
            await client.sessions.get_messages(original.id),
            await client.sessions.get_messages(done.new_session_id),
        )
        assert other.items == one.items
        with refused(404, "SESSION_NOT_FOUND"):
            await client.sessions.copy(NOBODYS)

    asynchronously(server, steps)
