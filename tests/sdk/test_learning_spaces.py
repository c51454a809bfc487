"""Learning spaces, as users of the SDK work with them: their skills, and the sessions that they learn."""

import asyncio
import json
from datetime import datetime

import pytest

from acontext.errors import APIError, TimeoutError
from packing import add_skill, paths, send_archive, unpack
from support import Server, asynchronously, eventually, refused, say, temporary_home
from wire import exchange

NOBODYS = "00000000-0000-4000-8000-000000000000"
DEFAULTS = ["daily-logs", "user-general-facts"]
JSON = {"Content-Type": "application/json"}
SPACES = "/api/v1/learning_spaces"


@pytest.fixture
def space(client):
    return client.learning_spaces.create()


@pytest.fixture
def session(client):
    return client.sessions.create()


def names(client, space):
    return [skill.name for skill in client.learning_spaces.list_skills(space.id)]


def ids(page):
    return [space.id for space in page.items]


def learn(client, space, session):
    return client.learning_spaces.learn(space.id, session_id=session.id)


def status(client, space, session):
    return client.learning_spaces.get_session(space.id, session_id=session.id).status


def send(server, method, path, body, **headers):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return exchange(server, method, SPACES + path, JSON | headers, body)


def add_task(server, session, order, status):
    """Puts in a task, which no call can do."""
    data = json.dumps({"task_description": f"task {order}"})
    server.psql(
        'insert into tasks (session_id, project_id, "order", data, status, is_planning) values'
        f" ('{session.id}', '{session.project_id}', {order}, '{data}', '{status}', false)"
    )


def test_quickstart(client):
    """The whole way from an empty space to a session that is learned, in the order in which newcomers go it."""
    space = client.learning_spaces.create(user="space newcomer", meta={"source": "cli"})
    assert space.meta == {"source": "cli"}
    assert client.learning_spaces.get(space.id) == space
    assert client.learning_spaces.list(user="space newcomer", filter_by_meta={"source": "cli"}).items == [space]

    skill = add_skill(client, name="contacts")
    client.learning_spaces.include_skill(space.id, skill_id=skill.id)
    assert names(client, space) == [*DEFAULTS, "contacts"]
    client.learning_spaces.exclude_skill(space.id, skill_id=skill.id)
    assert names(client, space) == DEFAULTS

    session = client.sessions.create(user="space newcomer")
    assert learn(client, space, session).status == "pending"
    done = client.learning_spaces.wait_for_learning(space.id, session_id=session.id)
    assert (done.session_id, done.status) == (session.id, "completed")
    assert client.learning_spaces.list_sessions(space.id) == [done]

    updated = client.learning_spaces.update(space.id, meta={"seen": True})
    assert updated.meta == {"source": "cli", "seen": True}
    client.learning_spaces.delete(space.id)
    with refused(404, "learning space not found"):
        client.learning_spaces.get(space.id)


# ----- made -----


def test_a_space_of_nobody_says_so(client, space):
    shown = client.request("GET", f"/learning_spaces/{space.id}")
    times = {"created_at": space.created_at, "updated_at": space.created_at}
    assert shown == {"id": space.id, "user_id": None, "meta": None} | times


def test_a_body_of_null_is_an_empty_one(server):
    for body in (b"null", b"{}", b'{"user": null, "meta": null}', b'{"user": ""}'):
        answer = send(server, "POST", "", body)
        assert answer.status == 201
        assert (answer.json()["data"]["user_id"], answer.json()["data"]["meta"]) == (None, None)


@pytest.mark.parametrize(
    "body, field",
    [
        ({"user": 5}, "user"),
        ({"user": "u" * 1025}, "user"),
        ({"user": "a\0b"}, "user"),
        ({"meta": [1]}, "meta"),
        ({"meta": "text"}, "meta"),
        ({"meta": {"a": "\0"}}, "meta"),
        ({"user": "refused", "meta": 5}, "meta"),
        ([1], "body"),
        (b"{broken", "body"),
        (b"", "body"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(server, client, body, field):
    newest = client.learning_spaces.list(time_desc=True, limit=1)
    answer = send(server, "POST", "", body)
    assert answer.status == 400 and field in answer.refusal()
    assert client.learning_spaces.list(time_desc=True, limit=1) == newest
    with refused(404, "user not found"):
        client.users.get_resources("refused")


def test_meta_over_1_mib_is_413(client):
    with refused(413, "meta"):
        client.learning_spaces.create(meta={"a": "x" * (1 << 20)})


def test_numbers_in_meta_keep_all_their_digits(server):
    digits = (b"12345678901234567890.123456789012345", b"1.10")
    made = send(server, "POST", "", b'{"meta":{"long":%b,"money":%b}}' % digits)
    path = "/" + made.json()["data"]["id"]
    for answer in (
        made,
        exchange(server, "GET", SPACES + path),
        send(server, "PATCH", path, {"meta": {"other": 1}}),
    ):
        assert all(number in answer.body for number in digits)


# ----- the skills that each begins with -----


def test_a_space_begins_with_two_skills_of_its_user(client):
    space = client.learning_spaces.create(user="space beginner")
    skills = client.learning_spaces.list_skills(space.id)
    assert [skill.name for skill in skills] == DEFAULTS
    assert {skill.user_id for skill in skills} == {space.user_id} != {None}
    assert {skill.disk_id for skill in skills} == {disk.id for disk in client.disks.list(user="space beginner").items}
    assert [item.name for item in client.skills.list_catalog(user="space beginner").items] == DEFAULTS
    for skill in skills:
        assert (paths(skill), skill.meta) == (["SKILL.md"], None)
        assert client.skills.get(skill.id) == skill


def test_the_first_skills_are_written_as_skills_are(client, space):
    """Their text can be sent in again, and says the same."""
    for skill in client.learning_spaces.list_skills(space.id):
        text = client.skills.get_file(skill_id=skill.id, file_path="SKILL.md").content.raw
        assert text.startswith("---\nname: ") and len(text) > 500
        archive = client.skills.download_zip(skill.id)
        assert unpack(archive) == {"SKILL.md": text.encode()}
        again = send_archive(client, archive)
        assert (again.name, again.description) == (skill.name, skill.description)
        assert again.file_index == skill.file_index


def test_each_space_has_skills_of_its_own(client):
    first, second = client.learning_spaces.create(), client.learning_spaces.create()
    (skill, _), (other, _) = (client.learning_spaces.list_skills(each.id) for each in (first, second))
    client.artifacts.upsert(skill.disk_id, file=("2026-03-14.md", b"# 2026-03-14\n"), file_path="/")
    assert skill.id != other.id
    assert paths(client.learning_spaces.list_skills(first.id)[0]) == ["2026-03-14.md", "SKILL.md"]
    assert client.learning_spaces.list_skills(second.id)[0] == other


# ----- listed -----


@pytest.fixture(scope="module")
def listed(client):
    create = client.learning_spaces.create
    return [
        create(user="space lister", meta={"source": "cli", "n": 1, "deep": {"a": 1, "b": 2}}),
        create(user="space lister", meta={"source": "cli", "n": "1", "tags": ["x", "y"]}),
        create(user="space lister", meta={"source": "ui"}),
        create(user="space lister"),
        create(user="space other lister", meta={"source": "cli"}),
    ]


def test_paging_shows_every_space_once_in_both_directions(client, listed):
    made = [space.id for space in listed[:4]]

    def walk(limit, **order):
        pages, cursor = [], None
        while True:
            page = client.learning_spaces.list(user="space lister", limit=limit, cursor=cursor, **order)
            pages.append(ids(page))
            assert bool(page.next_cursor) == page.has_more
            if not page.has_more:
                return pages
            cursor = page.next_cursor

    assert walk(3) == [made[:3], made[3:]]
    assert walk(3, time_desc=True) == [made[:0:-1], made[:1]]
    assert walk(4) == [made]


@pytest.mark.parametrize(
    "wanted, found",
    [
        ({"source": "cli"}, [0, 1]),
        ({"n": 1}, [0]),
        ({"n": "1"}, [1]),
        ({"deep": {"a": 1}}, [0]),
        ({"deep": {"a": 2}}, []),
        ({"tags": ["y"]}, [1]),
        ({"source": "cli", "n": 1}, [0]),
        ({"none": None}, []),
        ({}, [0, 1, 2, 3]),
    ],
)
def test_spaces_are_found_by_what_their_meta_contains(client, listed, wanted, found):
    page = client.learning_spaces.list(user="space lister", filter_by_meta=wanted)
    assert ids(page) == [listed[at].id for at in found]


def test_a_filter_of_nothing_is_none(client, listed):
    for text in ("", "null", "{}"):
        page = client.request("GET", "/learning_spaces", params={"user": "space lister", "filter_by_meta": text})
        assert len(page["items"]) == 4


def test_a_filter_goes_with_pages(client, listed):
    how = {"user": "space lister", "filter_by_meta": {"source": "cli"}, "limit": 1}
    first = client.learning_spaces.list(**how)
    second = client.learning_spaces.list(**how, cursor=first.next_cursor)
    assert (ids(first), ids(second)) == ([listed[0].id], [listed[1].id])
    assert first.has_more and not second.has_more


def test_a_list_of_nobody_we_know_is_empty(fresh):
    fresh.learning_spaces.create(user="somebody")
    assert fresh.request("GET", "/learning_spaces", params={"user": "nobody"}) == {"items": [], "has_more": False}


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("limit", 0, "limit"),
        ("limit", 201, "limit"),
        ("limit", -1, "limit"),
        ("limit", "x", "limit"),
        ("cursor", "garbage", "cursor"),
        ("time_desc", "maybe", "time_desc"),
        ("user", "a\0b", "user"),
        ("filter_by_meta", "[1]", "invalid filter_by_meta JSON"),
        ("filter_by_meta", '"x"', "invalid filter_by_meta JSON"),
        ("filter_by_meta", "{broken", "invalid filter_by_meta JSON"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused_by_name(client, name, value, words):
    with refused(400, words):
        client.request("GET", "/learning_spaces", params={name: value})


# ----- meta -----


def test_an_update_sets_keys_of_the_first_level(client):
    space = client.learning_spaces.create(meta={"a": 1, "deep": {"x": 1}})
    update = client.learning_spaces.update
    merged = update(space.id, meta={"b": 2, "deep": {"y": 2}})
    assert merged.meta == {"a": 1, "b": 2, "deep": {"y": 2}}
    assert datetime.fromisoformat(merged.updated_at) > datetime.fromisoformat(space.updated_at)
    assert merged.created_at == space.created_at
    # Null is a value.
    assert update(space.id, meta={"a": None}).meta == {"a": None, "b": 2, "deep": {"y": 2}}
    last = update(space.id, meta={})
    assert last.meta == {"a": None, "b": 2, "deep": {"y": 2}}
    assert client.learning_spaces.get(space.id) == last
    shown = client.request("GET", f"/learning_spaces/{space.id}")
    assert "a" in shown["meta"]


def test_a_space_without_meta_gets_some(client, space):
    assert client.learning_spaces.update(space.id, meta={"a": 1}).meta == {"a": 1}


@pytest.mark.parametrize(
    "body, words",
    [
        ({}, "meta"),
        ({"meta": None}, "meta"),
        ({"meta": [1]}, "meta"),
        ({"meta": "x"}, "meta"),
        ({"meta": {"a": "\0"}}, "meta"),
        ([], "body"),
        (b"{", "body"),
        (b"", "body"),
    ],
)
def test_an_update_of_no_object_is_refused(server, client, body, words):
    space = client.learning_spaces.create(meta={"a": 1})
    answer = send(server, "PATCH", f"/{space.id}", body)
    assert answer.status == 400 and words in answer.refusal()
    assert client.learning_spaces.get(space.id) == space


def test_meta_does_not_grow_over_1_mib(client, space):
    kept = client.learning_spaces.update(space.id, meta={"a": "x" * (1 << 19)})
    with refused(413, "meta"):
        client.learning_spaces.update(space.id, meta={"b": "x" * (1 << 19)})
    assert client.learning_spaces.get(space.id) == kept


# ----- skills in a space -----


def test_a_skill_may_be_in_several_spaces(client, space):
    other, skill = client.learning_spaces.create(), add_skill(client, name="shared")
    link = client.learning_spaces.include_skill(space.id, skill_id=skill.id)
    assert (link.learning_space_id, link.skill_id) == (space.id, skill.id)
    client.learning_spaces.include_skill(other.id, skill_id=skill.id)
    for each in (space, other):
        assert client.learning_spaces.list_skills(each.id)[-1] == skill
    client.skills.delete(skill.id)
    assert names(client, space) == names(client, other) == DEFAULTS


def test_a_skill_shows_in_a_space_as_it_is_now(client, space):
    """Plugins fetch again what has moved."""
    skill = add_skill(client)
    client.learning_spaces.include_skill(space.id, skill_id=skill.id)
    client.artifacts.upsert(skill.disk_id, file=("b.txt", b"b"), file_path="/a/")
    shown = client.learning_spaces.list_skills(space.id)[-1]
    assert shown == client.skills.get(skill.id)
    assert paths(shown) == ["SKILL.md", "a/b.txt"] and shown.updated_at != skill.updated_at
    assert client.learning_spaces.list_skills(space.id)[-1] == shown


def test_a_space_has_one_skill_of_each_name(client, space):
    skill, twin = add_skill(client, name="contacts"), add_skill(client, name="contacts")
    include = client.learning_spaces.include_skill
    include(space.id, skill_id=skill.id)
    with refused(409, "skill already included in this space"):
        include(space.id, skill_id=skill.id)
    with refused(409, "skill with name 'contacts' already exists in this space"):
        include(space.id, skill_id=twin.id)
    assert client.learning_spaces.list_skills(space.id)[2:] == [skill]
    # When the one is gone there is room for the other.
    client.learning_spaces.exclude_skill(space.id, skill_id=skill.id)
    include(space.id, skill_id=twin.id)
    assert client.learning_spaces.list_skills(space.id)[2:] == [twin]


def test_an_excluded_skill_stays_a_skill(client, space):
    skill = add_skill(client, name="leaving")
    exclude = client.learning_spaces.exclude_skill
    client.learning_spaces.include_skill(space.id, skill_id=skill.id)
    for _ in range(2):
        exclude(space.id, skill_id=skill.id)
    exclude(space.id, skill_id=NOBODYS)
    assert names(client, space) == DEFAULTS
    assert client.skills.get(skill.id) == skill
    client.learning_spaces.include_skill(space.id, skill_id=skill.id)
    assert names(client, space) == [*DEFAULTS, "leaving"]
    # Those that it began with may go as well.
    for each in client.learning_spaces.list_skills(space.id):
        exclude(space.id, skill_id=each.id)
    assert client.learning_spaces.list_skills(space.id) == []


@pytest.mark.parametrize("body", [{}, {"skill_id": ""}, {"skill_id": "nope"}, {"skill_id": 5}])
def test_a_skill_id_that_is_none_is_refused(server, client, space, body):
    answer = send(server, "POST", f"/{space.id}/skills", body)
    assert answer.status == 400 and "skill_id" in answer.refusal()
    with refused(400, "skill_id"):
        client.learning_spaces.exclude_skill(space.id, skill_id="nope")
    assert names(client, space) == DEFAULTS


# ----- deleted -----


def test_a_deleted_space_leaves_its_skills_and_sessions(client, space, session):
    say(client, session, "kept")
    skills = client.learning_spaces.list_skills(space.id)
    learn(client, space, session)
    client.learning_spaces.delete(space.id)
    spaces = client.learning_spaces
    for call in (
        lambda: spaces.get(space.id),
        lambda: spaces.delete(space.id),
        lambda: spaces.list_skills(space.id),
        lambda: spaces.list_sessions(space.id),
        lambda: spaces.get_session(space.id, session_id=session.id),
        lambda: spaces.update(space.id, meta={"a": 1}),
    ):
        with refused(404, "learning space not found"):
            call()
    assert space.id not in ids(spaces.list(limit=200, time_desc=True))
    assert [client.skills.get(skill.id) for skill in skills] == skills
    assert client.sessions.get_messages(session.id).items[0]["content"] == "kept"
    # The session may be learned by another one now.
    assert learn(client, spaces.create(), session).status == "pending"


# ----- learning -----


def test_a_session_is_learned_by_one_space(client, space, session):
    other = client.learning_spaces.create()
    learned = learn(client, space, session)
    assert (learned.learning_space_id, learned.session_id, learned.status) == (space.id, session.id, "pending")
    for each in (space, other):
        with refused(409, "already learned"):
            learn(client, each, session)
    assert client.learning_spaces.list_sessions(other.id) == []
    with refused(404, "learning space session not found"):
        client.learning_spaces.get_session(other.id, session_id=session.id)


def test_the_session_may_stand_in_the_query(server, client, space, session):
    answer = exchange(server, "POST", f"{SPACES}/{space.id}/learn?session_id={session.id}")
    assert answer.status == 201
    assert (answer.json()["data"]["session_id"], answer.json()["data"]["status"]) == (session.id, "pending")
    assert [each.session_id for each in client.learning_spaces.list_sessions(space.id)] == [session.id]


@pytest.mark.parametrize("body", [{}, {"session_id": ""}, {"session_id": "nope"}, {"session_id": 7}, b"{"])
def test_a_session_id_that_is_none_is_refused(server, client, space, body):
    answer = send(server, "POST", f"/{space.id}/learn", body)
    assert answer.status == 400 and ("session_id" in answer.refusal() or body == b"{")
    with refused(400, "session_id"):
        client.learning_spaces.get_session(space.id, session_id="nope")
    assert client.learning_spaces.list_sessions(space.id) == []


def test_a_session_without_messages_is_completed_when_somebody_looks(client, space, session):
    learned = learn(client, space, session)
    first = client.learning_spaces.get_session(space.id, session_id=session.id)
    assert first.status == "completed"
    # Nothing else changes, but when it did.
    times = {"status": "pending", "updated_at": learned.updated_at}
    assert first.model_copy(update=times) == learned
    assert client.learning_spaces.get_session(space.id, session_id=session.id) == first
    # The word stays, whatever comes later.
    say(client, session)
    assert status(client, space, session) == "completed"


def test_looking_at_the_list_is_looking(client, space):
    sessions = [client.sessions.create() for _ in range(3)]
    for session in sessions:
        learn(client, space, session)
    say(client, sessions[1])
    listed = client.learning_spaces.list_sessions(space.id)
    assert [each.session_id for each in listed] == [session.id for session in sessions]
    assert [each.status for each in listed] == ["completed", "pending", "completed"]


def test_a_session_whose_messages_wait_is_pending(client, space, session):
    """There is no model here, so they wait."""
    say(client, session)
    learn(client, space, session)
    with pytest.raises(TimeoutError, match="pending"):
        client.learning_spaces.wait_for_learning(space.id, session_id=session.id, timeout=0)


def test_a_session_that_could_not_be_observed_has_failed(server, client, space, session):
    say(client, session)
    learn(client, space, session)
    server.psql(f"update messages set session_task_process_status = 'failed' where session_id = '{session.id}'")
    assert client.learning_spaces.wait_for_learning(space.id, session_id=session.id).status == "failed"


def test_tasks_that_are_open_at_the_end_are_closed_and_failed_ones_stay(server, client, space, session):
    for order, state in enumerate(["pending", "running", "failed", "success"], 1):
        add_task(server, session, order, state)
    learn(client, space, session)
    for _ in range(3):
        assert status(client, space, session) == "pending"

    def states():
        return [task.status for task in client.sessions.get_tasks(session.id).items]

    ends = ["success", "success", "failed", "success"]
    eventually(lambda: states() == ends, "the open tasks end")
    # There is something to learn, so it has not come to its end.
    assert status(client, space, session) not in ("completed", "failed")


def test_tasks_of_a_conversation_that_goes_on_stay_open(server, client, space, session):
    ended = client.sessions.create()
    say(client, session)
    for each in (session, ended):
        add_task(server, each, 1, "running")
        learn(client, space, each)

    def state(session):
        (task,) = client.sessions.get_tasks(session.id).items
        return task.status

    assert [each.status for each in client.learning_spaces.list_sessions(space.id)] == ["pending"] * 2
    eventually(lambda: state(ended) == "success", "the task of the other session ends")
    assert state(session) == "running"


def test_tasks_that_have_ended_already_are_learned(server, client, space, session):
    for order, state in enumerate(["success", "failed", "running"], 1):
        add_task(server, session, order, state)
    learn(client, space, session)
    of_session = f"select id::text from tasks where session_id = '{session.id}'"
    assert server.psql(f"select count(*) from jobs where kind = 'distill' and dedupe_key in ({of_session})") == "2"


def test_a_deleted_session_leaves_its_space(client, space, session):
    learn(client, space, session)
    client.sessions.delete(session.id)
    assert client.learning_spaces.list_sessions(space.id) == []
    with refused(404, "learning space session not found"):
        client.learning_spaces.wait_for_learning(space.id, session_id=session.id)


def test_a_session_that_is_not_learned_is_404_at_once(client, space, session):
    for session_id in (session.id, NOBODYS):
        with refused(404, "learning space session not found"):
            client.learning_spaces.wait_for_learning(space.id, session_id=session_id)


@pytest.fixture(scope="module")
def observer():
    """A server with a model that finds no tasks, whose messages wait for a flush."""
    with temporary_home() as home:
        server = Server(home, LLM_SDK="mock", SESSION_MESSAGE_BUFFER_DEFAULT_TTL_SECONDS="1h")
        try:
            yield server.wait_until_ready()
            server.stop()
        finally:
            server.close()


def test_a_session_is_completed_when_all_was_observed_and_nothing_found(observer):
    with observer.client() as client:
        space, session = client.learning_spaces.create(), client.sessions.create()
        before = client.learning_spaces.list_skills(space.id)
        learn(client, space, session)
        say(client, session, "Simple Hello")
        assert status(client, space, session) == "pending"
        assert client.sessions.flush(session.id).status == 200
        assert client.learning_spaces.wait_for_learning(space.id, session_id=session.id).status == "completed"
        assert client.learning_spaces.list_skills(space.id) == before


def test_a_session_may_be_learned_after_the_end(observer):
    with observer.client() as client:
        space, session = client.learning_spaces.create(), client.sessions.create()
        say(client, session)
        assert client.sessions.flush(session.id).status == 200
        assert learn(client, space, session).status == "pending"
        assert client.learning_spaces.wait_for_learning(space.id, session_id=session.id).status == "completed"


# ----- whose they are -----


@pytest.mark.parametrize("whose", ["another project's", "nobody's"])
def test_a_space_that_is_not_ours_is_not_there(client, stranger, space, session, whose):
    space_id = space.id if whose == "another project's" else NOBODYS
    spaces, skill, theirs = stranger.learning_spaces, add_skill(stranger), stranger.sessions.create()
    for call in (
        lambda: spaces.get(space_id),
        lambda: spaces.update(space_id, meta={"a": 1}),
        lambda: spaces.delete(space_id),
        lambda: spaces.list_skills(space_id),
        lambda: spaces.include_skill(space_id, skill_id=skill.id),
        lambda: spaces.exclude_skill(space_id, skill_id=skill.id),
        lambda: spaces.learn(space_id, session_id=theirs.id),
        lambda: spaces.list_sessions(space_id),
        lambda: spaces.get_session(space_id, session_id=theirs.id),
    ):
        with refused(404, "learning space not found"):
            call()
    assert space.id not in ids(spaces.list(limit=200))
    assert client.learning_spaces.get(space.id) == space
    assert names(client, space) == DEFAULTS


def test_what_is_not_ours_does_not_come_into_a_space(client, stranger, space):
    skill, session = add_skill(stranger), stranger.sessions.create()
    for skill_id in (skill.id, NOBODYS):
        with refused(404, "skill not found"):
            client.learning_spaces.include_skill(space.id, skill_id=skill_id)
    for session_id in (session.id, NOBODYS):
        with refused(404, "session not found"):
            client.learning_spaces.learn(space.id, session_id=session_id)
    assert names(client, space) == DEFAULTS
    assert client.learning_spaces.list_sessions(space.id) == []


def test_a_space_id_that_is_none_is_refused(client, session):
    spaces = client.learning_spaces
    for call in (
        lambda: spaces.get("nope"),
        lambda: spaces.update("nope", meta={}),
        lambda: spaces.delete("nope"),
        lambda: spaces.list_skills("nope"),
        lambda: spaces.include_skill("nope", skill_id=NOBODYS),
        lambda: spaces.exclude_skill("nope", skill_id=NOBODYS),
        lambda: spaces.learn("nope", session_id=session.id),
        lambda: spaces.list_sessions("nope"),
        lambda: spaces.get_session("nope", session_id=session.id),
    ):
        with refused(400, "space_id"):
            call()


# ----- sent twice -----


def test_what_is_sent_again_is_done_once(server, client, session):
    def send_twice(path, body, key):
        first, again = (send(server, "POST", path, body, **{"Idempotency-Key": key}) for _ in range(2))
        assert (first.status, first.headers["Idempotent-Replayed"]) == (201, None)
        assert (again.status, again.headers["Idempotent-Replayed"]) == (201, "true")
        assert again.body == first.body
        return first.json()["data"]

    made = send_twice("", {"user": "space sent twice"}, "a-space")
    assert ids(client.learning_spaces.list(user="space sent twice")) == [made["id"]]
    assert len(client.skills.list_catalog(user="space sent twice").items) == 2
    learned = send_twice(f"/{made['id']}/learn", {"session_id": session.id}, "a-session")
    assert [each.id for each in client.learning_spaces.list_sessions(made["id"])] == [learned["id"]]
    skill = add_skill(client)
    send_twice(f"/{made['id']}/skills", {"skill_id": skill.id}, "a-skill")
    assert [each.id for each in client.learning_spaces.list_skills(made["id"])][2:] == [skill.id]


# ----- the asynchronous client -----


def test_async_quickstart(server):
    async def steps(client):
        spaces = client.learning_spaces
        space = await spaces.create(user="space async", meta={"a": 1})
        assert await spaces.get(space.id) == space
        assert (await spaces.list(user="space async", filter_by_meta={"a": 1})).items == [space]
        assert (await spaces.update(space.id, meta={"b": 2})).meta == {"a": 1, "b": 2}
        skill = await add_skill(client)
        await spaces.include_skill(space.id, skill_id=skill.id)
        assert (await spaces.list_skills(space.id))[2:] == [skill]
        await spaces.exclude_skill(space.id, skill_id=skill.id)
        session = await client.sessions.create()
        assert (await spaces.learn(space.id, session_id=session.id)).status == "pending"
        done = await spaces.wait_for_learning(space.id, session_id=session.id)
        assert done.status == "completed"
        assert await spaces.get_session(space.id, session_id=session.id) == done
        assert await spaces.list_sessions(space.id) == [done]
        await spaces.delete(space.id)
        with refused(404, "learning space not found"):
            await spaces.get(space.id)

    asynchronously(server, steps)


async def outcomes(calls):
    """The statuses of requests that are sent at once, in their order; a success is 0."""
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert all(not isinstance(each, Exception) or isinstance(each, APIError) for each in done), done
    return sorted(getattr(each, "status_code", 0) for each in done)


def test_of_many_who_learn_a_session_at_once_one_does(server):
    async def steps(client):
        spaces = await asyncio.gather(*(client.learning_spaces.create() for _ in range(6)))
        session = await client.sessions.create()
        calls = [client.learning_spaces.learn(space.id, session_id=session.id) for space in spaces]
        assert await outcomes(calls) == [0] + [409] * 5
        learned = [await client.learning_spaces.list_sessions(space.id) for space in spaces]
        assert sorted(map(len, learned)) == [0] * 5 + [1]

    asynchronously(server, steps)


def test_of_many_skills_of_one_name_at_once_one_comes_in(server):
    async def steps(client):
        space = await client.learning_spaces.create()
        skills = [await add_skill(client, name="twin") for _ in range(6)]
        calls = [client.learning_spaces.include_skill(space.id, skill_id=skill.id) for skill in skills]
        assert await outcomes(calls) == [0] + [409] * 5
        assert [skill.name for skill in await client.learning_spaces.list_skills(space.id)] == [*DEFAULTS, "twin"]

    asynchronously(server, steps)


def test_of_many_updates_at_once_none_is_lost(server):
    async def steps(client):
        space = await client.learning_spaces.create()
        await asyncio.gather(*(client.learning_spaces.update(space.id, meta={f"k{n}": n}) for n in range(16)))
        assert (await client.learning_spaces.get(space.id)).meta == {f"k{n}": n for n in range(16)}

    asynchronously(server, steps)


def test_many_spaces_of_one_new_user_at_once(server):
    async def steps(client):
        create = client.learning_spaces.create
        spaces = await asyncio.gather(*(create(user="space new to all spaces") for _ in range(8)))
        assert len({space.user_id for space in spaces}) == 1
        for space in spaces:
            skills = await client.learning_spaces.list_skills(space.id)
            assert [skill.name for skill in skills] == DEFAULTS

    asynchronously(server, steps)
