"""Sessions as users of the SDK work with them: creation, search, deletion, and access of other projects."""

import asyncio
import json
import uuid

import httpx
import pytest

from acontext import FileUpload
from acontext.errors import APIError
from acontext.event import TextEvent
from support import ADMIN_TOKEN, run_async, new_project, open_link, raises_error, store_text
from raw_http import exchange

UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"
NIL_ID = "00000000-0000-0000-0000-000000000000"
JSON = {"Content-Type": "application/json"}


def store_file(client, session, content=b"content", name="a.txt"):
    """Stores a message with one file. Returns the message and the signed URL of its file."""
    message = client.sessions.store_message(
        session.id,
        blob={"role": "user", "parts": [{"type": "file", "file_field": "file"}]},
        format="acontext",
        file_field="file",
        file=FileUpload(name, content),
    )
    page = client.sessions.get_messages(session.id, format="acontext")
    return message, page.public_urls[message.parts[0].asset.sha256].url


def read_texts(client, session):
    return [item["content"] for item in client.sessions.get_messages(session.id).items]


def ids(sessions):
    return [session.id for session in sessions]


def new_identifier():
    """Returns a user identifier that no other test uses."""
    return f"user-{uuid.uuid4()}"


def send_request(server, method, path, body=None, headers=JSON):
    body = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    return exchange(server, method, f"/api/v1{path}", headers, body)


def assert_all_raise(calls, status, *words):
    """Checks that every call raises an API error with this status and these words in its message."""
    failures = {}
    for name, call in calls.items():
        try:
            failures[name] = call()
        except APIError as error:
            if (error.status_code, error.code) != (status, status) or any(word not in error.message for word in words):
                failures[name] = str(error)
    # The results of the calls that succeeded, and the messages of those that failed in another way.
    assert failures == {}


# ----- creation -----


def test_a_session_is_created_as_requested(client):
    user = new_identifier()
    configs = {"model": "m-1", "nested": {"list": [1, "two", None, True, 2.5]}, "": "ü寿司"}
    session = client.sessions.create(user=user, configs=configs, disable_task_tracking=True)
    assert session.configs == configs
    assert session.disable_task_tracking is True
    assert session.user_id is not None
    assert session.created_at == session.updated_at
    assert client.sessions.get_configs(session.id) == session
    assert client.sessions.list(user=user).items == [session]


def test_a_session_requires_no_parameters(client):
    session = client.sessions.create()
    assert (session.user_id, session.configs, session.disable_task_tracking) == (None, None, False)
    assert uuid.UUID(session.id).version == 4
    assert client.sessions.get_configs(session.id) == session


@pytest.mark.parametrize("headers", [{}, {"Content-Type": None}, {"Content-Type": "text/plain"}])
def test_the_creation_of_a_session_requires_no_body(server, headers):
    response = send_request(server, "POST", "/session", headers=headers)
    assert response.status == 201
    session = response.json()["data"]
    # Clients require these keys even if they have no value.
    assert session["configs"] is None and session["user_id"] is None and session["disable_task_tracking"] is False


def test_null_is_treated_as_absent(server):
    all_null = {"user": None, "configs": None, "use_uuid": None, "disable_task_tracking": None}
    for body in (all_null, {"user": "", "use_uuid": ""}, {"unknown": 1}):
        response = send_request(server, "POST", "/session", body)
        assert response.status == 201, body
        session = response.json()["data"]
        assert (session["user_id"], session["configs"], session["disable_task_tracking"]) == (None, None, False)


@pytest.mark.parametrize(
    "configs",
    [{}, {"null": None}, {"big": 2**53 + 1, "huge": 10**30, "small": 1e-7, "text": "1.0"}, {"deep": [[[[{"a": []}]]]]}],
)
def test_configs_are_preserved(client, configs):
    session = client.sessions.create(configs=configs)
    assert session.configs == configs
    assert client.sessions.get_configs(session.id).configs == configs
    assert [listed.configs for listed in client.sessions.list(limit=1, time_desc=True).items] == [configs]


def test_a_user_has_one_id_in_one_project(client, other_client):
    user = new_identifier()
    first, second = client.sessions.create(user=user), client.sessions.create(user=user)
    assert first.user_id == second.user_id
    # Sessions and disks have the same users.
    assert client.disks.create(user=user).user_id == first.user_id
    assert client.sessions.create(user=user.upper()).user_id != first.user_id
    assert other_client.sessions.create(user=user).user_id != first.user_id


@pytest.mark.parametrize(
    "body, field",
    [
        ({"configs": "text"}, "configs"),
        ({"configs": [1]}, "configs"),
        ({"configs": {"a": "\0"}}, "configs"),
        ({"configs": {"a\0": 1}}, "configs"),
        ({"disable_task_tracking": "yes"}, "disable_task_tracking"),
        ({"user": 5}, "user"),
        ({"user": "a\0b"}, "user"),
        ({"user": "u" * 1025}, "user"),
        ({"user": "ü" * 10_000}, "user"),
        ({"use_uuid": 7}, "use_uuid"),
        ({"use_uuid": "not-an-id"}, "use_uuid"),
        ({"use_uuid": NIL_ID}, "use_uuid"),
        ([], "body"),
        (["in place of the user"], "body"),
        ("text", "body"),
        (b"{broken", "body"),
        (b"", "body"),
        (b'{"configs":' + b'{"a":' * 200 + b"1" + b"}" * 200 + b"}", "configs"),
        (b'{"configs":' + b'{"a":' * 300 + b"1" + b"}" * 300 + b"}", "body"),
    ],
)
def test_the_error_names_an_invalid_field(server, client, body, field):
    newest = client.sessions.list(limit=1, time_desc=True).items
    response = send_request(server, "POST", "/session", body)
    assert response.status == 400
    assert field in response.error_message()
    assert client.sessions.list(limit=1, time_desc=True).items == newest


def test_a_user_identifier_may_have_1024_bytes(client):
    user = "u" * (1024 - len("ü".encode())) + "ü"
    session = client.sessions.create(user=user)
    assert client.sessions.list(user=user).items == [session]


def test_configs_over_1_mib_are_413(client):
    with raises_error(413, "configs"):
        client.sessions.create(configs={"a": "x" * (1 << 20)})
    half = {"a": "x" * (1 << 19)}
    assert client.sessions.create(configs=half).configs == half


# ----- ids that the client chooses -----


def test_an_existing_id_returns_the_same_session(client):
    session_id, user = str(uuid.uuid4()), new_identifier()
    first = client.sessions.create(use_uuid=session_id, user=user, configs={"a": 1})
    assert first.id == session_id
    store_text(client, first, "unchanged")
    # The parameters of the second request are ignored.
    other_parameters = {"user": new_identifier(), "configs": {"a": 2}, "disable_task_tracking": True}
    assert client.sessions.create(use_uuid=session_id, **other_parameters) == first
    assert client.sessions.get_configs(session_id) == first
    assert client.sessions.list(user=user).items == [first]
    assert read_texts(client, first) == ["unchanged"]


def test_the_status_shows_whether_a_session_is_new(server):
    body = {"use_uuid": str(uuid.uuid4())}
    assert [send_request(server, "POST", "/session", body).status for _ in range(3)] == [201, 200, 200]


def test_an_id_of_another_project_is_409(client, other_client):
    session_id = str(uuid.uuid4())
    session = client.sessions.create(use_uuid=session_id, configs={"project": "first"})
    store_text(client, session, "unchanged")
    with raises_error(409, "session with this UUID already exists"):
        other_client.sessions.create(use_uuid=session_id, configs={"project": "second"})
    assert session_id not in ids(other_client.sessions.list(limit=200).items)
    assert client.sessions.get_configs(session_id) == session
    assert read_texts(client, session) == ["unchanged"]


def test_an_id_can_be_used_again_after_a_delete(client):
    session_id = str(uuid.uuid4())
    deleted = client.sessions.create(use_uuid=session_id, configs={"deleted": True})
    store_text(client, deleted)
    client.sessions.delete(session_id)
    created = client.sessions.create(use_uuid=session_id)
    assert (created.id, created.configs) == (session_id, None)
    assert read_texts(client, created) == []


@pytest.mark.parametrize(
    "spell", [str.upper, "urn:uuid:{}".format, "{{{}}}".format, lambda session_id: session_id.replace("-", "")]
)
def test_an_id_may_have_other_spellings(client, spell):
    session_id = str(uuid.uuid4())
    session = client.sessions.create(use_uuid=spell(session_id))
    assert session.id == session_id
    assert client.sessions.get_configs(spell(session_id)) == session
    store_text(client, session, "hello")
    assert client.sessions.get_token_counts(spell(session_id)).total_tokens > 0
    assert [item["content"] for item in client.sessions.get_messages(spell(session_id)).items] == ["hello"]
    client.sessions.delete(spell(session_id))
    with raises_error(404, "session not found"):
        client.sessions.get_configs(session_id)


def test_concurrent_requests_for_one_id_return_one_session(server):
    session_id = str(uuid.uuid4())

    async def steps(client):
        requests = [client.sessions.create(use_uuid=session_id, configs={"n": number}) for number in range(16)]
        sessions = await asyncio.gather(*requests)
        assert {session.id for session in sessions} == {session_id}
        # One request created the session, and every request returned it.
        assert sessions.count(sessions[0]) == len(sessions)
        assert await client.sessions.get_configs(session_id) == sessions[0]

    run_async(server, steps)


# ----- lists -----


def test_sessions_of_a_user_are_listed(client):
    user, other = new_identifier(), new_identifier()
    first, second = client.sessions.create(user=user), client.sessions.create(user=user)
    other_session = client.sessions.create(user=other)
    without_user = client.sessions.create()
    assert client.sessions.list(user=user).items == [first, second]
    assert client.sessions.list(user=user, time_desc=True).items == [second, first]
    assert client.sessions.list(user=other).items == [other_session]
    empty_page = client.sessions.list(user=new_identifier())
    assert (empty_page.items, empty_page.has_more) == ([], False)
    assert client.sessions.list(limit=1, time_desc=True).items == [without_user]


def test_paging_returns_every_session_once_in_both_directions(client):
    user = new_identifier()
    expected = [client.sessions.create(user=user).id for _ in range(5)]

    def read_pages(**order):
        pages, cursor = [], None
        while True:
            page = client.sessions.list(user=user, limit=2, cursor=cursor, **order)
            pages.append(ids(page.items))
            if not page.has_more:
                assert not page.next_cursor
                return pages
            cursor = page.next_cursor

    assert read_pages() == read_pages(time_desc=False) == [expected[:2], expected[2:4], expected[4:]]
    assert read_pages(time_desc=True) == [expected[:2:-1], expected[2:0:-1], expected[:1]]
    full_page = client.sessions.list(user=user, limit=5)
    assert len(full_page.items) == 5 and not full_page.has_more


def test_a_page_has_twenty_sessions_by_default(client):
    user = new_identifier()
    expected = [client.sessions.create(user=user).id for _ in range(21)]
    page = client.sessions.list(user=user)
    assert ids(page.items) == expected[:20] and page.has_more
    assert ids(client.sessions.list(user=user, cursor=page.next_cursor).items) == expected[20:]
    assert ids(client.sessions.list(user=user, limit=200).items) == expected


@pytest.mark.parametrize(
    "name, value",
    [("limit", 0), ("limit", -1), ("limit", 201), ("limit", 2**63), ("cursor", "garbage"), ("cursor", "MTIzfDQ1Ng")],
)
def test_the_error_names_an_invalid_paging_parameter(client, name, value):
    with raises_error(400, name):
        client.sessions.list(**{name: value})


@pytest.fixture(scope="module")
def configured(client):
    """The identifier of a user whose sessions have different configs, and the names of the sessions by their ids."""
    user, names = new_identifier(), {}
    for name, configs in {
        "none": None,
        "empty": {},
        "bot 1": {"agent": "bot", "version": 1, "tags": ["a", "b"], "deep": {"x": {"y": 1, "z": 2}}},
        "bot 2": {"agent": "bot", "version": 2, "tags": ["b"], "deep": {"x": {"y": 2}}},
        "Bot": {"agent": "Bot", "version": "1", "on": True},
        "null": {"agent": None},
    }.items():
        names[client.sessions.create(user=user, configs=configs).id] = name
    return user, names


@pytest.mark.parametrize(
    "configs_filter, expected",
    [
        ({"agent": "bot"}, ["bot 1", "bot 2"]),
        ({"agent": "bot", "version": 2}, ["bot 2"]),
        ({"agent": "bot", "version": 3}, []),
        # Upper case and types matter; the notation of a number does not.
        ({"agent": "BOT"}, []),
        ({"version": "1"}, ["Bot"]),
        ({"version": 1}, ["bot 1"]),
        ({"version": 1.0}, ["bot 1"]),
        ({"on": True}, ["Bot"]),
        ({"on": 1}, []),
        ({"on": "true"}, []),
        # Objects and lists must contain the requested values, not equal them.
        ({"deep": {"x": {"y": 1}}}, ["bot 1"]),
        ({"deep": {}}, ["bot 1", "bot 2"]),
        ({"deep": {"y": 1}}, []),
        ({"tags": ["b"]}, ["bot 1", "bot 2"]),
        ({"tags": ["b", "a"]}, ["bot 1"]),
        ({"agent": None}, ["null"]),
        ({"missing": None}, []),
        # An empty filter also matches sessions without configs.
        ({}, ["none", "empty", "bot 1", "bot 2", "Bot", "null"]),
    ],
)
def test_a_filter_matches_sessions_whose_configs_contain_it(client, configured, configs_filter, expected):
    user, names = configured
    listed = client.sessions.list(user=user, filter_by_configs=configs_filter).items
    assert [names[session.id] for session in listed] == expected


def test_a_filter_works_without_a_user_and_with_pages(client, other_client):
    mark = str(uuid.uuid4())
    expected = [client.sessions.create(configs={"mark": mark, "n": number}).id for number in range(3)]
    other_client.sessions.create(configs={"mark": mark})
    first = client.sessions.list(filter_by_configs={"mark": mark}, limit=2)
    assert (ids(first.items), first.has_more) == (expected[:2], True)
    second = client.sessions.list(filter_by_configs={"mark": mark}, limit=2, cursor=first.next_cursor)
    assert (ids(second.items), second.has_more) == (expected[2:], False)
    newest = client.sessions.list(filter_by_configs={"mark": mark}, limit=1, time_desc=True)
    assert (ids(newest.items), newest.has_more) == (expected[2:], True)


@pytest.mark.parametrize(
    "text", ["%7B", "[]", "[1]", "5", "%22a%22", "true", "%7B%7D%7B%7D", "%7B%22a%22:%22%5Cu0000%22%7D"]
)
def test_a_filter_that_is_not_an_object_is_rejected(server, text):
    response = send_request(server, "GET", f"/session?filter_by_configs={text}", headers={})
    assert response.status == 400
    assert "filter_by_configs" in response.error_message()


@pytest.mark.parametrize("text", ["", "null", "%7B%7D"])
def test_an_empty_filter_matches_every_session(server, client, text):
    session = client.sessions.create()
    response = send_request(server, "GET", f"/session?limit=1&time_desc=true&filter_by_configs={text}", headers={})
    assert [item["id"] for item in response.json()["data"]["items"]] == [session.id]


def test_the_command_line_finds_a_session_by_its_id(server, client, other_client):
    session, other_session = client.sessions.create(), other_client.sessions.create()
    client.sessions.create()

    def find_by_id(session_id):
        # The command line sends the content type JSON even without a body.
        return [item["id"] for item in send_request(server, "GET", f"/session?id={session_id}").json()["data"]["items"]]

    assert find_by_id(session.id) == [session.id]
    assert find_by_id(UNKNOWN_ID) == find_by_id(other_session.id) == []


def test_the_list_is_ordered_by_creation_time(client):
    user = new_identifier()
    for _ in range(5):
        client.sessions.create(user=user)
    times = [session.created_at for session in client.sessions.list(user=user).items]
    assert len(set(times)) == 5
    assert times == sorted(times)


# ----- task tracking -----


def test_messages_show_whether_their_session_is_tracked(client):
    tracked, untracked = client.sessions.create(), client.sessions.create(disable_task_tracking=True)
    assert store_text(client, tracked).session_task_process_status == "pending"
    assert store_text(client, untracked).session_task_process_status == "disable_tracking"
    (item,) = client.sessions.get_messages(untracked.id, format="acontext").items
    assert item["session_task_process_status"] == "disable_tracking"


# ----- deletion -----


def session_calls(client, session_id, message_id):
    """Returns all calls that use a session, by name, except for the copy, whose errors differ."""
    sessions = client.sessions
    return {
        "get_configs": lambda: sessions.get_configs(session_id),
        "update_configs": lambda: sessions.update_configs(session_id, configs={"late": True}),
        "patch_configs": lambda: sessions.patch_configs(session_id, configs={"late": True}),
        "delete": lambda: sessions.delete(session_id),
        "get_tasks": lambda: sessions.get_tasks(session_id),
        "add_event": lambda: sessions.add_event(session_id, TextEvent(text="late")),
        "get_events": lambda: sessions.get_events(session_id),
        "flush": lambda: sessions.flush(session_id),
        "messages_observing_status": lambda: sessions.messages_observing_status(session_id),
        "get_token_counts": lambda: sessions.get_token_counts(session_id),
        "download": lambda: client.request(
            "GET", f"/session/{session_id}/asset/download", params={"s3_key": "assets/x"}
        ),
        "store_message": lambda: sessions.store_message(session_id, blob={"role": "user", "content": "late"}),
        "store a file": lambda: sessions.store_message(
            session_id,
            blob={"role": "user", "parts": [{"type": "file", "file_field": "f"}]},
            format="acontext",
            file_field="f",
            file=("a.txt", b"late"),
        ),
        "get_messages": lambda: sessions.get_messages(session_id),
        "get a page": lambda: sessions.get_messages(session_id, limit=1),
        "patch_message_meta": lambda: sessions.patch_message_meta(session_id, message_id, meta={"late": True}),
    }


def test_deleting_a_session_deletes_its_content(server, client):
    user = new_identifier()
    session = client.sessions.create(user=user)
    first = store_text(client, session, "first", meta={"n": 1})
    _, link = store_file(client, session, b"only in this session")
    assert open_link(link).status_code == 200
    client.sessions.delete(session.id)
    assert client.sessions.list(user=user).items == []
    assert session.id not in ids(client.sessions.list(limit=200, time_desc=True).items)
    assert_all_raise(session_calls(client, session.id, first.id), 404, "session not found")
    assert open_link(link).status_code == 404
    for table in ("messages", "message_files"):
        assert server.psql(f"select count(*) from {table} where session_id = '{session.id}'") == "0"


def test_deleting_a_session_affects_no_other_session(client, other_client):
    user = new_identifier()
    deleted, remaining = client.sessions.create(user=user), client.sessions.create(user=user)
    foreign = other_client.sessions.create(user=user)
    links = []
    for project, session in ((client, deleted), (client, remaining), (other_client, foreign)):
        store_text(project, session, "the same in all three")
        links.append(store_file(project, session, b"the same file in all three")[1])
    before = client.sessions.get_messages(remaining.id, format="acontext").items
    client.sessions.delete(deleted.id)
    assert client.sessions.list(user=user).items == [remaining]
    assert client.sessions.get_messages(remaining.id, format="acontext").items == before
    # The project still has this content, so every signed URL of it is valid, whatever session it was created for.
    assert [open_link(link).content for link in links] == [b"the same file in all three"] * 3
    client.sessions.delete(remaining.id)
    assert [open_link(link).status_code for link in links] == [404, 404, 200]


def test_deleting_a_project_deletes_its_sessions(server, client):
    project, key = new_project(server)
    with server.client(key) as project_client:
        session = project_client.sessions.create()
        _, link = store_file(project_client, session, b"in a project that ends")
        response = httpx.delete(
            f"{server.origin}/admin/v1/project/{project}", headers={"X-Access-Token": ADMIN_TOKEN}, trust_env=False
        )
        assert response.status_code == 200
        with raises_error(401, "Unauthorized"):
            project_client.sessions.get_messages(session.id)
        with raises_error(401, "Unauthorized"):
            project_client.sessions.create()
    assert open_link(link).status_code == 404
    with raises_error(404, "session not found"):
        client.sessions.get_configs(session.id)
    # The id is no longer used.
    assert client.sessions.create(use_uuid=session.id).id == session.id


# ----- sessions of other projects -----


# Routes that return 403 for a session of another project. The routes of messages and events return 404.
FORBIDDEN_CALLS = [
    "get_configs",
    "update_configs",
    "delete",
    "get_tasks",
    "flush",
    "messages_observing_status",
    "get_token_counts",
    "download",
]


def test_a_session_of_another_project_is_not_accessible(client, other_client):
    session = client.sessions.create(configs={"unchanged": True})
    message = store_text(client, session, "unchanged", meta={"unchanged": True})
    before = client.sessions.get_messages(session.id, format="acontext").items
    calls = session_calls(other_client, session.id, message.id)
    forbidden = {name: calls.pop(name) for name in FORBIDDEN_CALLS}
    assert_all_raise(forbidden, 403, "does not belong to this project")
    assert_all_raise(calls, 404, "session not found")
    assert session.id not in ids(other_client.sessions.list(limit=200).items)
    assert client.sessions.get_configs(session.id) == session
    assert client.sessions.get_messages(session.id, format="acontext").items == before


@pytest.mark.parametrize("session_id", [UNKNOWN_ID, NIL_ID])
def test_an_unknown_session_is_404(client, session_id):
    assert_all_raise(session_calls(client, session_id, session_id), 404, "session not found")


@pytest.mark.parametrize(
    "session_id", ["not-an-id", "123", UNKNOWN_ID[:-1], UNKNOWN_ID + "0", UNKNOWN_ID.replace("4", "g")]
)
def test_the_error_names_an_invalid_session_id(client, session_id):
    assert_all_raise(session_calls(client, session_id, UNKNOWN_ID), 400, "session_id")


def test_an_invalid_key_gives_no_access_to_a_session(server, client):
    session = client.sessions.create()
    message = store_text(client, session)
    with server.client("sk-ac-wrong") as invalid_client:
        calls = session_calls(invalid_client, session.id, message.id)
        calls |= {"create": invalid_client.sessions.create, "list": invalid_client.sessions.list}
        # The key is checked before the id.
        invalid_id_calls = session_calls(invalid_client, "not-an-id", "not-an-id")
        calls |= {f"{name} with an invalid id": call for name, call in invalid_id_calls.items()}
        assert_all_raise(calls, 401, "Unauthorized")
    assert read_texts(client, session) == ["hello"]


@pytest.mark.parametrize(
    "method, path", [("GET", "/session/{}"), ("PUT", "/session"), ("PUT", "/session/{}"), ("POST", "/session/{}")]
)
def test_other_methods_on_session_paths_are_404(server, client, method, path):
    session = client.sessions.create()
    response = send_request(server, method, path.format(session.id), {})
    assert response.status == 404
    assert response.error_message()


# ----- the asynchronous client -----


def test_async_sessions(server):
    user, session_id = new_identifier(), str(uuid.uuid4())

    async def steps(client):
        first = await client.sessions.create(user=user, configs={"a": {"b": 1}}, disable_task_tracking=True)
        assert (first.configs, first.disable_task_tracking) == ({"a": {"b": 1}}, True)
        assert await client.sessions.get_configs(first.id) == first
        second = await client.sessions.create(use_uuid=session_id, user=user)
        assert second.id == session_id
        assert await client.sessions.create(use_uuid=session_id) == second
        page = await client.sessions.list(user=user, limit=1)
        assert (page.items, page.has_more) == ([first], True)
        assert (await client.sessions.list(user=user, limit=1, cursor=page.next_cursor)).items == [second]
        assert (await client.sessions.list(user=user, time_desc=True)).items == [second, first]
        assert (await client.sessions.list(user=user, filter_by_configs={"a": {}})).items == [first]
        assert (await client.sessions.get_token_counts(first.id)).total_tokens == 0
        await client.sessions.delete(first.id)
        with raises_error(404, "session not found"):
            await client.sessions.get_configs(first.id)
        assert (await client.sessions.list(user=user)).items == [second]

    run_async(server, steps)


def test_concurrent_requests_create_one_user(server):
    user = new_identifier()

    async def steps(client):
        sessions = await asyncio.gather(*(client.sessions.create(user=user) for _ in range(16)))
        assert len({session.user_id for session in sessions}) == 1
        listed = await client.sessions.list(user=user, limit=200)
        assert sorted(ids(listed.items)) == sorted(ids(sessions))

    run_async(server, steps)
