"""Copies of sessions, which have the same content under new ids and are independent of the original."""

import asyncio
import json
import os
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from acontext import FileUpload
from acontext.event import DiskEvent, TextEvent
from support import open_link, raises_error, run_async, store_text

FORMATS = ["openai", "anthropic", "gemini", "acontext"]
UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"
NIL = "00000000-0000-0000-0000-000000000000"


def copy_session(client, session_id):
    """Copies a session, and returns the copy as it is read back."""
    result = client.sessions.copy(session_id)
    assert result.old_session_id == session_id != result.new_session_id
    return client.sessions.get_configs(result.new_session_id)


def item_ids(items):
    return [item["id"] for item in items]


def message_texts(client, session_id, **options):
    return [item["content"] for item in client.sessions.get_messages(session_id, **options).items]


def list_messages(client, session_id):
    """Returns all messages in the format that includes every field."""
    return client.sessions.get_messages(session_id, format="acontext").items


def send_file(client, session, content, name="a.txt"):
    return client.sessions.store_message(
        session.id,
        blob={"role": "user", "parts": [{"type": "file", "file_field": "file"}]},
        format="acontext",
        file_field="file",
        file=FileUpload(name, content),
    )


def file_link(client, session_id):
    """Returns the public link to the only file of a session."""
    (public_url,) = client.sessions.get_messages(session_id, format="acontext").public_urls.values()
    return public_url.url


def add_task(server, session, order, description, message=None, planning=False, **fields):
    """Inserts a task with SQL, because no request can create one. `message` is assigned to it."""
    data = json.dumps({"task_description": description} | fields)
    task = server.psql(
        'insert into tasks (session_id, project_id, "order", data, status, is_planning) values'
        f" ('{session.id}', '{session.project_id}', {order}, '{data}', 'running', {planning}) returning id"
    ).splitlines()[0]
    if message:
        server.psql(f"update messages set task_id = '{task}' where id = '{message.id}'")
    return task


@pytest.fixture(scope="module")
def original(server, client):
    """A session with every kind of content."""
    session = client.sessions.create(user=f"user-{uuid.uuid4()}", configs={"agent": "bot", "big": 10**30, "none": None})
    store = client.sessions.store_message
    store(session.id, blob={"role": "system", "content": "Be brief."}, meta={"n": 1, "big": 10**30})
    question = store_text(client, session, "Which night train goes to Vienna?")
    client.sessions.add_event(session.id, TextEvent(text="looked it up"))
    call = {"type": "tool_use", "id": "a", "name": "timetable", "input": {"to": "Vienna"}}
    store(session.id, blob={"role": "assistant", "content": [call]}, format="anthropic")
    result = {"type": "tool_result", "tool_use_id": "a", "content": "The 21:04.", "is_error": False}
    store(session.id, blob={"role": "user", "content": [result]}, format="anthropic")
    client.sessions.add_event(session.id, DiskEvent(disk_id=UNKNOWN_ID, path="/a.md"))
    send_file(client, session, b"a ticket")
    pending_call = {"functionCall": {"name": "pay", "args": {"euro": 89}}}
    store(session.id, blob={"role": "model", "parts": [pending_call]}, format="gemini")
    for number in range(20):
        last = store_text(client, session, f"m{number}", meta={"n": number})
    client.sessions.patch_message_meta(session.id, last.id, meta={"patched": True})
    add_task(server, session, 1, "plan the journey", planning=True)
    add_task(server, session, 3, "pay for it")
    add_task(server, session, 2, "find a train", question, progresses=["asked"], user_preferences=["by night"])
    client.sessions.add_event(session.id, TextEvent(text="left"))
    return session


@pytest.fixture(scope="module")
def copied_session(client, original):
    return copy_session(client, original.id)


# ----- content of a copy -----


def test_a_copy_is_a_new_session_with_the_same_settings(client, original, copied_session):
    assert uuid.UUID(copied_session.id).version == 4
    original_fields = {"id": original.id, "created_at": original.created_at, "updated_at": original.updated_at}
    assert copied_session.model_copy(update=original_fields) == original
    assert copied_session.created_at > original.created_at


@pytest.mark.parametrize("format", FORMATS[:3])
def test_a_copy_has_the_same_messages_in_every_format(client, original, copied_session, format):
    one = client.sessions.get_messages(original.id, format=format)
    other = client.sessions.get_messages(copied_session.id, format=format)
    assert other.items == one.items
    assert other.metas == one.metas
    assert other.this_time_tokens == one.this_time_tokens
    assert not set(one.ids) & set(other.ids)
    assert other.edit_at_message_id == other.ids[-1]


def test_a_copy_has_the_same_fields_of_each_message(client, original, copied_session):
    one, other = list_messages(client, original.id), list_messages(client, copied_session.id)
    own_keys = {"id", "session_id", "parent_id", "task_id"}
    assert [{key: item[key] for key in item.keys() - own_keys} for item in other] == [
        {key: item[key] for key in item.keys() - own_keys} for item in one
    ]
    assert {item["session_id"] for item in other} == {copied_session.id}
    # The times of creation are the same, too.
    assert [item["created_at"] for item in other] == [item["created_at"] for item in one]


def test_the_parent_of_a_copied_message_is_the_one_before(client, copied_session):
    items = list_messages(client, copied_session.id)
    assert [item["parent_id"] for item in items] == [None] + item_ids(items)[:-1]


def test_a_copy_has_the_same_number_of_tokens(client, original, copied_session):
    assert client.sessions.get_token_counts(copied_session.id) == client.sessions.get_token_counts(original.id)


@pytest.mark.parametrize("order", [{}, {"time_desc": True}])
def test_a_copy_has_the_same_pages_as_its_original(client, original, copied_session, order):
    def read_pages(session):
        pages, cursor = [], None
        while True:
            page = client.sessions.get_messages(session.id, limit=7, cursor=cursor, **order)
            pages.append(page.items)
            if not page.has_more:
                return pages
            cursor = page.next_cursor

    assert read_pages(copied_session) == read_pages(original)
    assert len(read_pages(copied_session)) == 4


def test_a_copy_has_the_same_events(client, original, copied_session):
    one, other = client.sessions.get_events(original.id).items, client.sessions.get_events(copied_session.id).items
    fields = [(event.type, event.data, event.created_at) for event in one]
    assert [(event.type, event.data, event.created_at) for event in other] == fields
    assert len(fields) == 3 and {event.session_id for event in other} == {copied_session.id}
    assert not {event.id for event in one} & {event.id for event in other}
    page = client.sessions.get_messages(copied_session.id, with_events=True)
    assert page.events == other[:2]


def test_a_copy_has_the_same_tasks_with_their_messages(server, client, original, copied_session):
    one, other = (client.sessions.get_tasks(session.id).items for session in (original, copied_session))
    own_keys = {"id", "session_id"}
    assert [task.model_dump(exclude=own_keys) for task in other] == [task.model_dump(exclude=own_keys) for task in one]
    assert [task.data.task_description for task in other] == ["pay for it", "find a train"]
    assert not {task.id for task in one} & {task.id for task in other}
    task_ids = [item["task_id"] for item in list_messages(client, copied_session.id)]
    assert [id for id in task_ids if id] == [other[1].id]
    assert client.sessions.get_session_summary(copied_session.id) == client.sessions.get_session_summary(original.id)
    # The planning task, which no response contains, is copied too.
    planning = f"select count(*) from tasks where is_planning and session_id = '{copied_session.id}'"
    assert server.psql(planning) == "1"


def test_copying_does_not_change_the_original(client):
    session = client.sessions.create(configs={"a": 1})
    store_text(client, session)
    before = (client.sessions.get_configs(session.id), list_messages(client, session.id))
    copy_session(client, session.id)
    assert (client.sessions.get_configs(session.id), list_messages(client, session.id)) == before


def test_a_copy_of_an_empty_session_is_empty(client):
    copy = copy_session(client, client.sessions.create().id)
    page = client.sessions.get_messages(copy.id)
    assert (page.items, copy.configs, copy.user_id) == ([], None, None)
    assert client.sessions.get_events(copy.id).items == client.sessions.get_tasks(copy.id).items == []
    assert store_text(client, copy).parent_id is None


def test_a_copy_is_listed_like_any_session(client):
    user, mark = f"user-{uuid.uuid4()}", str(uuid.uuid4())
    session = client.sessions.create(user=user, configs={"mark": mark})
    copy = copy_session(client, session.id)
    assert client.sessions.list(user=user).items == [session, copy]
    assert client.sessions.list(filter_by_configs={"mark": mark}, time_desc=True).items == [copy, session]


def test_a_copy_of_a_copy_has_the_same_messages(client, original, copied_session):
    second_copy = copy_session(client, copied_session.id)
    assert client.sessions.get_messages(second_copy.id).items == client.sessions.get_messages(original.id).items
    items = list_messages(client, second_copy.id)
    assert [item["parent_id"] for item in items] == [None] + item_ids(items)[:-1]


@pytest.mark.parametrize("disabled, status", [(False, "pending"), (True, "disable_tracking")])
def test_a_copy_is_tracked_if_its_original_is(client, disabled, status):
    session = client.sessions.create(disable_task_tracking=disabled)
    store_text(client, session)
    copy = copy_session(client, session.id)
    assert copy.disable_task_tracking is disabled
    assert [item["session_task_process_status"] for item in list_messages(client, copy.id)] == [status]
    assert store_text(client, copy).session_task_process_status == status


# ----- independence -----


def test_a_copy_and_its_original_change_independently(client):
    session = client.sessions.create(configs={"a": 1})
    first = store_text(client, session, "first", meta={"n": 1})
    copy = copy_session(client, session.id)
    (first_in_copy,) = list_messages(client, copy.id)
    in_copy = store_text(client, copy, "in the copy")
    in_original = store_text(client, session, "in the original")
    assert (in_original.parent_id, in_copy.parent_id) == (first.id, first_in_copy["id"])
    client.sessions.patch_message_meta(copy.id, first_in_copy["id"], meta={"n": 2})
    client.sessions.patch_configs(copy.id, configs={"a": 2})
    client.sessions.add_event(copy.id, TextEvent(text="in the copy"))
    assert message_texts(client, session.id) == ["first", "in the original"]
    assert message_texts(client, copy.id) == ["first", "in the copy"]
    assert client.sessions.get_messages(session.id).metas[0] == {"n": 1}
    assert client.sessions.get_configs(session.id).configs == {"a": 1}
    assert client.sessions.get_events(session.id).items == []
    # A message belongs to one session only.
    with raises_error(404, "message not found"):
        client.sessions.patch_message_meta(session.id, first_in_copy["id"], meta={"n": 3})


def test_a_pending_call_is_pending_in_the_copy_too(client):
    session = client.sessions.create()
    call = {"role": "model", "parts": [{"functionCall": {"name": "look", "args": {"at": "it"}}}]}
    response = {"role": "user", "parts": [{"functionResponse": {"name": "look", "response": {"seen": True}}}]}
    stored_call = client.sessions.store_message(session.id, blob=call, format="gemini")
    copy = copy_session(client, session.id)
    for each in (session, copy):
        stored_response = client.sessions.store_message(each.id, blob=response, format="gemini")
        assert stored_response.parts[0].meta["tool_call_id"] == stored_call.parts[0].meta["id"]
        stored_response = client.sessions.store_message(each.id, blob=response, format="gemini")
        assert "tool_call_id" not in stored_response.parts[0].meta
    # A call that had its response before the session was copied is not pending in the copy.
    stored_response = client.sessions.store_message(copy_session(client, session.id).id, blob=response, format="gemini")
    assert "tool_call_id" not in stored_response.parts[0].meta


@pytest.mark.parametrize("deleted", [0, 1, 2])
def test_original_and_copies_are_deleted_independently(client, deleted):
    session = client.sessions.create()
    store_text(client, session, "kept")
    client.sessions.add_event(session.id, TextEvent(text="kept"))
    session_ids = [session.id, copy_session(client, session.id).id]
    session_ids.append(copy_session(client, session_ids[1]).id)
    before = [(client.sessions.get_messages(each), client.sessions.get_events(each)) for each in session_ids]
    client.sessions.delete(session_ids[deleted])
    for number, each in enumerate(session_ids):
        if number == deleted:
            with raises_error(404, "session not found"):
                client.sessions.get_messages(each)
        else:
            assert (client.sessions.get_messages(each), client.sessions.get_events(each)) == before[number]


# ----- files -----


def test_copies_share_the_objects_of_files(server, client):
    content = os.urandom(100_000)
    session = client.sessions.create()
    send_file(client, session, content, "bytes.bin")
    copy = copy_session(client, session.id)
    rows = server.psql(
        f"select count(*), count(distinct blob_id) from message_files where session_id in ('{session.id}', '{copy.id}')"
    )
    assert rows == "2|1"
    assert [file.read_bytes() for file in server.files("objects")].count(content) == 1
    (part,) = list_messages(client, copy.id)[0]["parts"]
    assert [part] == list_messages(client, session.id)[0]["parts"]
    for session_id in (session.id, copy.id):
        assert open_link(file_link(client, session_id)).content == content
        params = {"s3_key": part["asset"]["s3_key"]}
        assert client.request_binary("GET", f"/session/{session_id}/asset/download", params=params) == content


def test_a_file_is_kept_until_the_last_copy_is_deleted(client):
    content = os.urandom(1_000)
    session = client.sessions.create()
    send_file(client, session, content)
    copy = copy_session(client, session.id)
    links = [file_link(client, session.id), file_link(client, copy.id)]
    client.sessions.delete(session.id)
    # The project still has the content, so both links are valid.
    assert [open_link(each).content for each in links] == [content, content]
    assert open_link(file_link(client, copy.id)).content == content
    client.sessions.delete(copy.id)
    assert [open_link(each).status_code for each in links] == [404, 404]


# ----- errors -----


@pytest.mark.parametrize("unknown_id", [UNKNOWN_ID, NIL])
def test_copying_an_unknown_session_is_404(client, unknown_id):
    # Clients search the message for this constant.
    with raises_error(404, "SESSION_NOT_FOUND"):
        client.sessions.copy(unknown_id)


@pytest.mark.parametrize("invalid_id", ["not-an-id", "123", UNKNOWN_ID + "0"])
def test_copying_an_invalid_id_is_400(client, invalid_id):
    with raises_error(400, "INVALID_SESSION_ID"):
        client.sessions.copy(invalid_id)


def test_copying_a_session_of_another_project_is_404(client, other_client):
    session = client.sessions.create()
    store_text(client, session, "mine")
    before = other_client.sessions.list(limit=200).items
    with raises_error(404, "SESSION_NOT_FOUND"):
        other_client.sessions.copy(session.id)
    assert other_client.sessions.list(limit=200).items == before


def test_copying_a_deleted_session_is_404(client):
    session = client.sessions.create()
    client.sessions.delete(session.id)
    with raises_error(404, "SESSION_NOT_FOUND"):
        client.sessions.copy(session.id)


def test_copying_with_an_invalid_key_is_401(server, client):
    session = client.sessions.create()
    with server.client("sk-ac-wrong") as invalid_client:
        for session_id in (session.id, "not-an-id"):
            with raises_error(401, "Unauthorized"):
                invalid_client.sessions.copy(session_id)


def test_copying_a_session_over_the_limit_is_413(start_server):
    server = start_server(ACONTEXTD_COPY_LIMIT="3")
    with server.client() as client:
        session = client.sessions.create(user="alice")
        for number in range(3):
            store_text(client, session, f"m{number}")
        copy = copy_session(client, session.id)
        assert message_texts(client, copy.id) == ["m0", "m1", "m2"]
        store_text(client, session, "one too many")
        with raises_error(413, "SESSION_TOO_LARGE"):
            client.sessions.copy(session.id)
        assert client.sessions.list(user="alice").items == [
            client.sessions.get_configs(each.id) for each in (session, copy)
        ]


# ----- concurrency -----


def test_a_copy_during_writes_is_a_prefix_of_the_session(server, client):
    session = client.sessions.create()
    sent = [f"m{number}" for number in range(60)]
    store_text(client, session, sent[0])
    done = threading.Event()

    def store_all():
        try:
            with server.client() as own_client:
                for text in sent[1:]:
                    store_text(own_client, session, text)
        finally:
            done.set()

    def copy_until_done():
        with server.client() as own_client:
            copy_ids = [own_client.sessions.copy(session.id).new_session_id]
            while not done.is_set():
                copy_ids.append(own_client.sessions.copy(session.id).new_session_id)
        return copy_ids

    with ThreadPoolExecutor() as threads:
        writer, copiers = threads.submit(store_all), [threads.submit(copy_until_done) for _ in range(3)]
        writer.result()
        copy_ids = sum((copier.result() for copier in copiers), [])
    assert len(set(copy_ids)) == len(copy_ids)
    for copy_id in copy_ids:
        items = list_messages(client, copy_id)
        assert [item["parts"][0]["text"] for item in items] == sent[: len(items)] != []
        assert [item["parent_id"] for item in items] == [None] + item_ids(items)[:-1]
    assert message_texts(client, session.id) == sent


def test_copies_during_a_deletion_are_complete(server):
    async def steps(client):
        session = await client.sessions.create()
        for number in range(20):
            await client.sessions.store_message(session.id, blob={"role": "user", "content": f"m{number}"})
        calls = [client.sessions.copy(session.id) for _ in range(8)]
        calls.insert(4, client.sessions.delete(session.id))
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert results.pop(4) is None
        for result in results:
            if isinstance(result, Exception):
                assert (result.status_code, result.message) == (404, "SESSION_NOT_FOUND")
            else:
                page = await client.sessions.get_messages(result.new_session_id)
                assert [item["content"] for item in page.items] == [f"m{number}" for number in range(20)]

    run_async(server, steps)


# ----- the asynchronous client -----


def test_async_copy(server, original):
    async def steps(client):
        result = await client.sessions.copy(original.id)
        assert result.old_session_id == original.id != result.new_session_id
        one, other = (
            await client.sessions.get_messages(original.id),
            await client.sessions.get_messages(result.new_session_id),
        )
        assert other.items == one.items
        with raises_error(404, "SESSION_NOT_FOUND"):
            await client.sessions.copy(UNKNOWN_ID)

    run_async(server, steps)
