"""Sessions, as users of the SDK work with them: making, finding, sharing and deleting them."""

import asyncio
import json
import uuid

import httpx
import pytest

from acontext import FileUpload
from acontext.errors import APIError
from acontext.event import TextEvent
from support import ADMIN_TOKEN, asynchronously, new_project, open_link, refused, say
from wire import exchange

NOBODYS = "00000000-0000-4000-8000-000000000000"
NIL = "00000000-0000-0000-0000-000000000000"
JSON = {"Content-Type": "application/json"}


def send_file(client, session, content=b"content", name="a.txt"):
    """Stores a message with one file: the message, and the link to its file."""
    message = client.sessions.store_message(
        session.id,
        blob={"role": "user", "parts": [{"type": "file", "file_field": "file"}]},
        format="acontext",
        file_field="file",
        file=FileUpload(name, content),
    )
    got = client.sessions.get_messages(session.id, format="acontext")
    return message, got.public_urls[message.parts[0].asset.sha256].url


def texts(client, session):
    return [item["content"] for item in client.sessions.get_messages(session.id).items]


def ids(sessions):
    return [session.id for session in sessions]


def a_user():
    """A user that no other test knows."""
    return f"user-{uuid.uuid4()}"


def ask(server, method, path, body=None, headers=JSON):
    body = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    return exchange(server, method, f"/api/v1{path}", headers, body)


def all_are_refused(calls, status, *words):
    """Every one of these calls, by name, is refused in this way."""
    done = {}
    for name, call in calls.items():
        try:
            done[name] = call()
        except APIError as error:
            if (error.status_code, error.code) != (status, status) or any(word not in error.message for word in words):
                done[name] = str(error)
    # Those that worked, or were refused otherwise.
    assert done == {}


# ----- making -----


def test_a_session_is_what_was_asked_for(client):
    user = a_user()
    configs = {"model": "m-1", "nested": {"list": [1, "two", None, True, 2.5]}, "": "ü寿司"}
    session = client.sessions.create(user=user, configs=configs, disable_task_tracking=True)
    assert session.configs == configs
    assert session.disable_task_tracking is True
    assert session.user_id is not None
    assert session.created_at == session.updated_at
    assert client.sessions.get_configs(session.id) == session
    assert client.sessions.list(user=user).items == [session]


def test_a_session_needs_nothing(client):
    session = client.sessions.create()
    assert (session.user_id, session.configs, session.disable_task_tracking) == (None, None, False)
    assert uuid.UUID(session.id).version == 4
    assert client.sessions.get_configs(session.id) == session


@pytest.mark.parametrize("headers", [{}, {"Content-Type": None}, {"Content-Type": "text/plain"}])
def test_a_session_needs_no_body(server, headers):
    answer = ask(server, "POST", "/session", headers=headers)
    assert answer.status == 201
    made = answer.json()["data"]
    # Clients want these keys even where they hold nothing.
    assert made["configs"] is None and made["user_id"] is None and made["disable_task_tracking"] is False


def test_null_means_left_out(server):
    nothing = {"user": None, "configs": None, "use_uuid": None, "disable_task_tracking": None}
    for body in (nothing, {"user": "", "use_uuid": ""}, {"unknown": 1}):
        answer = ask(server, "POST", "/session", body)
        assert answer.status == 201, body
        made = answer.json()["data"]
        assert (made["user_id"], made["configs"], made["disable_task_tracking"]) == (None, None, False)


@pytest.mark.parametrize(
    "configs",
    [{}, {"null": None}, {"big": 2**53 + 1, "huge": 10**30, "small": 1e-7, "text": "1.0"}, {"deep": [[[[{"a": []}]]]]}],
)
def test_configs_come_back_as_they_went_in(client, configs):
    session = client.sessions.create(configs=configs)
    assert session.configs == configs
    assert client.sessions.get_configs(session.id).configs == configs
    assert [found.configs for found in client.sessions.list(limit=1, time_desc=True).items] == [configs]


def test_a_user_has_one_id_in_one_project(client, stranger):
    user = a_user()
    first, second = client.sessions.create(user=user), client.sessions.create(user=user)
    assert first.user_id == second.user_id
    # The user of a session is the user of a disk.
    assert client.disks.create(user=user).user_id == first.user_id
    assert client.sessions.create(user=user.upper()).user_id != first.user_id
    assert stranger.sessions.create(user=user).user_id != first.user_id


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
        ({"use_uuid": NIL}, "use_uuid"),
        ([], "body"),
        (["in place of the user"], "body"),
        ("text", "body"),
        (b"{broken", "body"),
        (b"", "body"),
        (b'{"configs":' + b'{"a":' * 200 + b"1" + b"}" * 200 + b"}", "body"),
    ],
)
def test_a_session_that_makes_no_sense_is_refused_by_name(server, client, body, field):
    newest = client.sessions.list(limit=1, time_desc=True).items
    answer = ask(server, "POST", "/session", body)
    assert answer.status == 400
    assert field in answer.refusal()
    assert client.sessions.list(limit=1, time_desc=True).items == newest


def test_a_user_may_have_a_long_name(client):
    user = "u" * (1024 - len("ü".encode())) + "ü"
    session = client.sessions.create(user=user)
    assert client.sessions.list(user=user).items == [session]


def test_configs_over_a_mebibyte_are_413(client):
    with refused(413, "configs"):
        client.sessions.create(configs={"a": "x" * (1 << 20)})
    half = {"a": "x" * (1 << 19)}
    assert client.sessions.create(configs=half).configs == half


# ----- the id that a client wants -----


def test_a_wanted_id_that_exists_is_the_same_session(client):
    wanted, user = str(uuid.uuid4()), a_user()
    first = client.sessions.create(use_uuid=wanted, user=user, configs={"a": 1})
    assert first.id == wanted
    say(client, first, "kept")
    # Nothing of the second request is applied.
    assert client.sessions.create(use_uuid=wanted, user=a_user(), configs={"a": 2}, disable_task_tracking=True) == first
    assert client.sessions.get_configs(wanted) == first
    assert client.sessions.list(user=user).items == [first]
    assert texts(client, first) == ["kept"]


def test_a_session_that_was_there_is_told_from_a_new_one_by_the_status(server):
    body = {"use_uuid": str(uuid.uuid4())}
    assert [ask(server, "POST", "/session", body).status for _ in range(3)] == [201, 200, 200]


def test_a_wanted_id_of_another_project_is_409(client, stranger):
    wanted = str(uuid.uuid4())
    mine = client.sessions.create(use_uuid=wanted, configs={"mine": True})
    say(client, mine, "mine")
    with refused(409, "session with this UUID already exists"):
        stranger.sessions.create(use_uuid=wanted, configs={"mine": False})
    assert wanted not in ids(stranger.sessions.list(limit=200).items)
    assert client.sessions.get_configs(wanted) == mine
    assert texts(client, mine) == ["mine"]


def test_a_wanted_id_is_free_again_after_a_delete(client):
    wanted = str(uuid.uuid4())
    former = client.sessions.create(use_uuid=wanted, configs={"former": True})
    say(client, former)
    client.sessions.delete(wanted)
    again = client.sessions.create(use_uuid=wanted)
    assert (again.id, again.configs) == (wanted, None)
    assert texts(client, again) == []


@pytest.mark.parametrize(
    "spell", [str.upper, "urn:uuid:{}".format, "{{{}}}".format, lambda wanted: wanted.replace("-", "")]
)
def test_an_id_may_be_spelled_in_other_ways(client, spell):
    wanted = str(uuid.uuid4())
    session = client.sessions.create(use_uuid=spell(wanted))
    assert session.id == wanted
    assert client.sessions.get_configs(spell(wanted)) == session
    say(client, session, "hello")
    assert client.sessions.get_token_counts(spell(wanted)).total_tokens > 0
    assert [item["content"] for item in client.sessions.get_messages(spell(wanted)).items] == ["hello"]
    client.sessions.delete(spell(wanted))
    with refused(404, "session not found"):
        client.sessions.get_configs(wanted)


def test_many_that_want_the_same_id_at_once_get_the_same_session(server):
    wanted = str(uuid.uuid4())

    async def steps(client):
        wishes = [client.sessions.create(use_uuid=wanted, configs={"n": number}) for number in range(16)]
        made = await asyncio.gather(*wishes)
        assert {session.id for session in made} == {wanted}
        # One of them made it, and all tell of what that one made.
        assert made.count(made[0]) == len(made)
        assert await client.sessions.get_configs(wanted) == made[0]

    asynchronously(server, steps)


# ----- finding -----


def test_sessions_of_a_user_are_listed(client):
    user, other = a_user(), a_user()
    first, second = client.sessions.create(user=user), client.sessions.create(user=user)
    theirs = client.sessions.create(user=other)
    nobodys = client.sessions.create()
    assert client.sessions.list(user=user).items == [first, second]
    assert client.sessions.list(user=user, time_desc=True).items == [second, first]
    assert client.sessions.list(user=other).items == [theirs]
    nothing = client.sessions.list(user=a_user())
    assert (nothing.items, nothing.has_more) == ([], False)
    assert client.sessions.list(limit=1, time_desc=True).items == [nobodys]


def test_paging_shows_every_session_once_in_both_directions(client):
    user = a_user()
    made = [client.sessions.create(user=user).id for _ in range(5)]

    def walk(**order):
        pages, cursor = [], None
        while True:
            page = client.sessions.list(user=user, limit=2, cursor=cursor, **order)
            pages.append(ids(page.items))
            if not page.has_more:
                assert not page.next_cursor
                return pages
            cursor = page.next_cursor

    assert walk() == walk(time_desc=False) == [made[:2], made[2:4], made[4:]]
    assert walk(time_desc=True) == [made[:2:-1], made[2:0:-1], made[:1]]
    whole = client.sessions.list(user=user, limit=5)
    assert len(whole.items) == 5 and not whole.has_more


def test_a_page_is_twenty_sessions_unless_told_otherwise(client):
    user = a_user()
    made = [client.sessions.create(user=user).id for _ in range(21)]
    page = client.sessions.list(user=user)
    assert ids(page.items) == made[:20] and page.has_more
    assert ids(client.sessions.list(user=user, cursor=page.next_cursor).items) == made[20:]
    assert ids(client.sessions.list(user=user, limit=200).items) == made


@pytest.mark.parametrize(
    "name, value",
    [("limit", 0), ("limit", -1), ("limit", 201), ("limit", 2**63), ("cursor", "garbage"), ("cursor", "MTIzfDQ1Ng")],
)
def test_paging_that_makes_no_sense_is_refused_by_name(client, name, value):
    with refused(400, name):
        client.sessions.list(**{name: value})


@pytest.fixture(scope="module")
def configured(client):
    """Sessions of one user with different configs: the user, and the names of the sessions by their ids."""
    user, names = a_user(), {}
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
    "wanted, found",
    [
        ({"agent": "bot"}, ["bot 1", "bot 2"]),
        ({"agent": "bot", "version": 2}, ["bot 2"]),
        ({"agent": "bot", "version": 3}, []),
        # Case and type count; how a number is written does not.
        ({"agent": "BOT"}, []),
        ({"version": "1"}, ["Bot"]),
        ({"version": 1}, ["bot 1"]),
        ({"version": 1.0}, ["bot 1"]),
        ({"on": True}, ["Bot"]),
        ({"on": 1}, []),
        ({"on": "true"}, []),
        # Objects and lists are to contain what is asked for, not to equal it.
        ({"deep": {"x": {"y": 1}}}, ["bot 1"]),
        ({"deep": {}}, ["bot 1", "bot 2"]),
        ({"deep": {"y": 1}}, []),
        ({"tags": ["b"]}, ["bot 1", "bot 2"]),
        ({"tags": ["b", "a"]}, ["bot 1"]),
        ({"agent": None}, ["null"]),
        ({"missing": None}, []),
        # Nothing asked for: also those without configs.
        ({}, ["none", "empty", "bot 1", "bot 2", "Bot", "null"]),
    ],
)
def test_sessions_are_found_by_what_their_configs_contain(client, configured, wanted, found):
    user, names = configured
    listed = client.sessions.list(user=user, filter_by_configs=wanted).items
    assert [names[session.id] for session in listed] == found


def test_a_filter_by_configs_needs_no_user_and_pages(client, stranger):
    mark = str(uuid.uuid4())
    made = [client.sessions.create(configs={"mark": mark, "n": number}).id for number in range(3)]
    stranger.sessions.create(configs={"mark": mark})
    first = client.sessions.list(filter_by_configs={"mark": mark}, limit=2)
    assert (ids(first.items), first.has_more) == (made[:2], True)
    second = client.sessions.list(filter_by_configs={"mark": mark}, limit=2, cursor=first.next_cursor)
    assert (ids(second.items), second.has_more) == (made[2:], False)
    newest = client.sessions.list(filter_by_configs={"mark": mark}, limit=1, time_desc=True)
    assert (ids(newest.items), newest.has_more) == (made[2:], True)


@pytest.mark.parametrize(
    "text", ["%7B", "[]", "[1]", "5", "%22a%22", "true", "%7B%7D%7B%7D", "%7B%22a%22:%22%5Cu0000%22%7D"]
)
def test_a_filter_that_is_no_object_is_refused(server, text):
    answer = ask(server, "GET", f"/session?filter_by_configs={text}", headers={})
    assert answer.status == 400
    assert "filter_by_configs" in answer.refusal()


@pytest.mark.parametrize("text", ["", "null", "%7B%7D"])
def test_a_filter_of_nothing_narrows_nothing(server, client, text):
    session = client.sessions.create()
    answer = ask(server, "GET", f"/session?limit=1&time_desc=true&filter_by_configs={text}", headers={})
    assert [found["id"] for found in answer.json()["data"]["items"]] == [session.id]


def test_the_command_line_finds_a_session_by_its_id(server, client, stranger):
    session, theirs = client.sessions.create(), stranger.sessions.create()
    client.sessions.create()

    def found(wanted):
        # It calls even a question without a body JSON.
        return [each["id"] for each in ask(server, "GET", f"/session?id={wanted}").json()["data"]["items"]]

    assert found(session.id) == [session.id]
    assert found(NOBODYS) == found(theirs.id) == []


def test_the_list_has_its_order_from_the_times_of_making(client):
    user = a_user()
    for _ in range(5):
        client.sessions.create(user=user)
    times = [session.created_at for session in client.sessions.list(user=user).items]
    assert len(set(times)) == 5
    assert times == sorted(times)


# ----- tracking of tasks -----


def test_messages_say_whether_their_session_is_tracked(client):
    tracked, untracked = client.sessions.create(), client.sessions.create(disable_task_tracking=True)
    assert say(client, tracked).session_task_process_status == "pending"
    assert say(client, untracked).session_task_process_status == "disable_tracking"
    (item,) = client.sessions.get_messages(untracked.id, format="acontext").items
    assert item["session_task_process_status"] == "disable_tracking"


# ----- deleting -----


def every_call(client, session_id, message_id):
    """All that can be done with a session, by name; but for copying, which has words of its own."""
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


def test_a_deleted_session_is_gone_with_all_that_was_in_it(server, client):
    user = a_user()
    session = client.sessions.create(user=user)
    first = say(client, session, "first", meta={"n": 1})
    _, link = send_file(client, session, b"only in this session")
    assert open_link(link).status_code == 200
    client.sessions.delete(session.id)
    assert client.sessions.list(user=user).items == []
    assert session.id not in ids(client.sessions.list(limit=200, time_desc=True).items)
    all_are_refused(every_call(client, session.id, first.id), 404, "session not found")
    assert open_link(link).status_code == 404
    for table in ("messages", "message_files"):
        assert server.psql(f"select count(*) from {table} where session_id = '{session.id}'") == "0"


def test_a_delete_takes_nothing_else_along(client, stranger):
    user = a_user()
    doomed, kept = client.sessions.create(user=user), client.sessions.create(user=user)
    theirs = stranger.sessions.create(user=user)
    links = []
    for project, session in ((client, doomed), (client, kept), (stranger, theirs)):
        say(project, session, "the same in all three")
        links.append(send_file(project, session, b"the same file in all three")[1])
    before = client.sessions.get_messages(kept.id, format="acontext").items
    client.sessions.delete(doomed.id)
    assert client.sessions.list(user=user).items == [kept]
    assert client.sessions.get_messages(kept.id, format="acontext").items == before
    # The project has this content still, so the link to it opens, whichever session it was made for.
    assert [open_link(link).content for link in links] == [b"the same file in all three"] * 3
    client.sessions.delete(kept.id)
    assert [open_link(link).status_code for link in links] == [404, 404, 200]


def test_a_deleted_project_takes_its_sessions_along(server, client):
    project, key = new_project(server)
    with server.client(key) as doomed:
        session = doomed.sessions.create()
        _, link = send_file(doomed, session, b"in a project that ends")
        gone = httpx.delete(
            f"{server.origin}/admin/v1/project/{project}", headers={"X-Access-Token": ADMIN_TOKEN}, trust_env=False
        )
        assert gone.status_code == 200
        with refused(401, "Unauthorized"):
            doomed.sessions.get_messages(session.id)
        with refused(401, "Unauthorized"):
            doomed.sessions.create()
    assert open_link(link).status_code == 404
    with refused(404, "session not found"):
        client.sessions.get_configs(session.id)
    # The id is nobody's now.
    assert client.sessions.create(use_uuid=session.id).id == session.id


# ----- sessions of others -----


# What a client may be told of a session that another project has. The routes of messages and events tell nothing.
TELLS_OF_FOREIGN = [
    "get_configs",
    "update_configs",
    "delete",
    "get_tasks",
    "flush",
    "messages_observing_status",
    "get_token_counts",
    "download",
]


def test_a_session_of_another_project_is_closed(client, stranger):
    session = client.sessions.create(configs={"kept": True})
    message = say(client, session, "kept", meta={"kept": True})
    before = client.sessions.get_messages(session.id, format="acontext").items
    calls = every_call(stranger, session.id, message.id)
    told = {name: calls.pop(name) for name in TELLS_OF_FOREIGN}
    all_are_refused(told, 403, "does not belong to this project")
    all_are_refused(calls, 404, "session not found")
    assert session.id not in ids(stranger.sessions.list(limit=200).items)
    assert client.sessions.get_configs(session.id) == session
    assert client.sessions.get_messages(session.id, format="acontext").items == before


@pytest.mark.parametrize("nobodys", [NOBODYS, NIL])
def test_a_session_of_nobody_is_404(client, nobodys):
    all_are_refused(every_call(client, nobodys, nobodys), 404, "session not found")


@pytest.mark.parametrize("wrong", ["not-an-id", "123", NOBODYS[:-1], NOBODYS + "0", NOBODYS.replace("4", "g")])
def test_a_session_id_that_is_none_is_refused_by_name(client, wrong):
    all_are_refused(every_call(client, wrong, NOBODYS), 400, "session_id")


def test_a_wrong_key_opens_no_session(server, client):
    session = client.sessions.create()
    message = say(client, session)
    with server.client("sk-ac-wrong") as intruder:
        calls = every_call(intruder, session.id, message.id)
        calls |= {"create": intruder.sessions.create, "list": intruder.sessions.list}
        # The key comes before the id.
        calls |= {f"{name} of nothing": call for name, call in every_call(intruder, "not-an-id", "not-an-id").items()}
        all_are_refused(calls, 401, "Unauthorized")
    assert texts(client, session) == ["hello"]


@pytest.mark.parametrize(
    "method, path", [("GET", "/session/{}"), ("PUT", "/session"), ("PUT", "/session/{}"), ("POST", "/session/{}")]
)
def test_there_are_no_other_ways_to_a_session(server, client, method, path):
    session = client.sessions.create()
    answer = ask(server, method, path.format(session.id), {})
    assert answer.status == 404
    assert answer.refusal()


# ----- the asynchronous client -----


def test_async_sessions(server):
    user, wanted = a_user(), str(uuid.uuid4())

    async def steps(client):
        made = await client.sessions.create(user=user, configs={"a": {"b": 1}}, disable_task_tracking=True)
        assert (made.configs, made.disable_task_tracking) == ({"a": {"b": 1}}, True)
        assert await client.sessions.get_configs(made.id) == made
        second = await client.sessions.create(use_uuid=wanted, user=user)
        assert second.id == wanted
        assert await client.sessions.create(use_uuid=wanted) == second
        page = await client.sessions.list(user=user, limit=1)
        assert (page.items, page.has_more) == ([made], True)
        assert (await client.sessions.list(user=user, limit=1, cursor=page.next_cursor)).items == [second]
        assert (await client.sessions.list(user=user, time_desc=True)).items == [second, made]
        assert (await client.sessions.list(user=user, filter_by_configs={"a": {}})).items == [made]
        assert (await client.sessions.get_token_counts(made.id)).total_tokens == 0
        await client.sessions.delete(made.id)
        with refused(404, "session not found"):
            await client.sessions.get_configs(made.id)
        assert (await client.sessions.list(user=user)).items == [second]

    asynchronously(server, steps)


def test_many_requests_name_a_new_user_at_once(server):
    user = a_user()

    async def steps(client):
        made = await asyncio.gather(*(client.sessions.create(user=user) for _ in range(16)))
        assert len({session.user_id for session in made}) == 1
        listed = await client.sessions.list(user=user, limit=200)
        assert sorted(ids(listed.items)) == sorted(ids(made))

    asynchronously(server, steps)
