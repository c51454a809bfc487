"""Users: they come into being when they are first named, and take along what is theirs when they go."""

import asyncio
from urllib.parse import quote

import pytest

from acontext import FileUpload
from packing import add_skill
from support import asynchronously, new_project, open_link, refused, say
from wire import exchange

USERS = "/api/v1/user"
# Names that mean something in a path, in SQL or to a careless program.
NAMES = [
    "alice@example.org",
    "a/b",
    "/",
    "a//b/",
    "50%",
    "%2F",
    "a b",
    " ",
    "a+b",
    "ü 寿司 🍣",
    "ls",
    "resources",
    "ls/resources",
    "a?b=c#d",
    "a\\b",
    "a\nb",
    "it's",
    "_",
    "u" * 1024,
]


@pytest.fixture(scope="module")
def key(server):
    """Of a project whose users are only those that these tests name."""
    return new_project(server)[1]


@pytest.fixture(scope="module")
def client(server, key):
    with server.client(key) as client:
        yield client


@pytest.fixture
def ask(server, key):
    """Sends a path as it is."""
    return lambda method, path, **headers: exchange(
        server, method, USERS + path, {"Authorization": f"Bearer {key}"} | headers
    )


def counts(client, name):
    found = client.users.get_resources(name).counts
    return found.sessions_count, found.disks_count, found.skills_count


def names(page):
    return [user.identifier for user in page.items]


# ----- made -----


def test_a_user_is_made_by_being_named(fresh):
    assert fresh.request("GET", "/user/ls") == {"items": [], "has_more": False}
    session = fresh.sessions.create(user="by session")
    disk = fresh.disks.create(user="by disk")
    skill = add_skill(fresh, user="by skill")
    space = fresh.learning_spaces.create(user="by space")
    fresh.sessions.create(user="by disk")
    fresh.disks.create()
    users = fresh.users.list().items
    assert [user.identifier for user in users] == ["by session", "by disk", "by skill", "by space"]
    assert [user.id for user in users] == [each.user_id for each in (session, disk, skill, space)]
    assert {user.project_id for user in users} == {disk.project_id}
    assert all(user.created_at and user.updated_at for user in users)


def test_looking_makes_no_user(fresh):
    fresh.disks.list(user="looked for")
    fresh.sessions.list(user="looked for")
    fresh.skills.list_catalog(user="looked for")
    fresh.learning_spaces.list(user="looked for")
    fresh.users.delete("looked for")
    with refused(404, "user not found"):
        fresh.users.get_resources("looked for")
    assert fresh.users.list().items == []


def test_resources_are_counted(client):
    client.disks.create(user="ann")
    assert counts(client, "ann") == (0, 1, 0)
    for _ in range(2):
        client.sessions.create(user="ann")
    assert counts(client, "ann") == (2, 1, 0)
    # A skill has a disk of its own.
    add_skill(client, user="ann")
    assert counts(client, "ann") == (2, 2, 1)
    # A space begins with two skills.
    client.learning_spaces.create(user="ann")
    assert counts(client, "ann") == (2, 4, 3)
    client.disks.create(user="anna")
    client.disks.create()
    assert counts(client, "ann") == (2, 4, 3)


# ----- names -----


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_user_of_any_name_is_found_and_deleted(client, name):
    disk = client.disks.create(user=name)
    session = client.sessions.create(user=name)
    assert disk.user_id == session.user_id
    assert name in names(client.users.list())
    assert counts(client, name) == (1, 1, 0)
    assert client.disks.list(user=name).items == [disk]
    client.users.delete(name)
    assert name not in names(client.users.list())
    with refused(404, "user not found"):
        client.users.get_resources(name)


@pytest.mark.parametrize("name", [".", "..", "../x", "..%2F"])
def test_dots_in_a_name_lead_nowhere(client, ask, name):
    """The SDK would resolve them, as browsers do."""
    client.disks.create(user=name)
    path = "/" + quote(name, safe="").replace(".", "%2E")
    found = ask("GET", f"{path}/resources")
    assert (found.status, found.json()["data"]["counts"]["disks_count"]) == (200, 1)
    assert ask("DELETE", path).status == 200
    assert name not in names(client.users.list())


def test_names_that_look_alike_are_different_users(client):
    alike = ["Ann B", "ann b", "Ann B ", " Ann B", "Ann%20B", "Ann+B", "A\u0308nn", "\u00c4nn"]
    assert len({client.disks.create(user=name).user_id for name in alike}) == len(alike)
    for name in alike:
        assert counts(client, name) == (0, 1, 0)
    client.users.delete("Ann B")
    assert [counts(client, name) for name in alike[1:]] == [(0, 1, 0)] * (len(alike) - 1)


def test_a_name_that_is_none_is_refused(client, ask):
    for name in ("u" * 1025, "ü" * 513, "a\0b"):
        for call in (
            lambda: client.disks.create(user=name),
            lambda: client.sessions.create(user=name),
            lambda: client.learning_spaces.create(user=name),
            lambda: add_skill(client, user=name),
        ):
            with refused(400, "user"):
                call()
        with refused(400, "identifier"):
            client.users.get_resources(name)
    answer = ask("GET", "/%FF/resources")
    assert answer.status == 400 and "identifier" in answer.refusal()


def test_a_user_who_is_called_ls_does_not_hide_the_list(client):
    client.disks.create(user="ls")
    assert "ls" in names(client.users.list())
    client.users.delete("ls")
    assert "ls" not in names(client.users.list())


# ----- listed -----


@pytest.fixture(scope="module")
def crowd(server):
    """A project with so many users that a list without a limit has an end, and how they are called."""
    project, key = new_project(server)
    server.psql(
        "insert into users (project_id, identifier, created_at)"
        f" select '{project}', 'u' || n, '2026-01-01'::timestamptz + n / 2 * interval '1 ms'"
        " from generate_series(0, 10000) n"
    )
    with server.client(key) as client:
        yield client, [f"u{n}" for n in range(10_001)]


def walk(client, **how):
    """All pages."""
    pages, cursor = [], None
    while True:
        pages.append(client.users.list(cursor=cursor, **how))
        assert bool(pages[-1].next_cursor) == pages[-1].has_more
        if not pages[-1].has_more:
            return pages
        cursor = pages[-1].next_cursor


@pytest.mark.parametrize("limit", [None, 0])
@pytest.mark.parametrize("newest_first", [False, True])
def test_a_list_without_a_limit_is_everybody_up_to_10000(crowd, limit, newest_first):
    client, everybody = crowd
    pages = walk(client, limit=limit, time_desc=newest_first)
    assert [len(page.items) for page in pages] == [10_000, 1]
    shown = [name for page in pages for name in names(page)]
    assert sorted(shown) == sorted(everybody)
    # Two of them came in each moment.
    moments = [int(name[1:]) // 2 for name in shown]
    assert moments == sorted(moments, reverse=newest_first)


def test_a_list_has_up_to_200_if_a_limit_is_given(crowd):
    client, _ = crowd
    for limit in (1, 2, 199, 200):
        page = client.users.list(limit=limit)
        assert len(page.items) == limit and page.has_more
    first = client.users.list(limit=200)
    second = client.users.list(limit=200, cursor=first.next_cursor)
    assert len(set(names(first) + names(second))) == 400


def test_paging_shows_every_user_once_in_both_directions(fresh):
    made = [f"u{number}" for number in range(5)]
    for name in made:
        fresh.disks.create(user=name)
    assert [names(page) for page in walk(fresh, limit=2)] == [made[:2], made[2:4], made[4:]]
    assert [names(page) for page in walk(fresh, limit=2, time_desc=True)] == [made[:2:-1], made[2:0:-1], made[:1]]
    assert [names(page) for page in walk(fresh, limit=5)] == [made]
    assert names(fresh.users.list()) == names(fresh.users.list(limit=0)) == made
    assert names(fresh.users.list(time_desc=True)) == made[::-1]


@pytest.mark.parametrize(
    "name, value",
    [
        ("limit", -1),
        ("limit", 201),
        ("limit", "abc"),
        ("limit", "1.5"),
        ("cursor", "garbage"),
        ("cursor", "MTJ8bm90LWEtdXVpZA"),
        ("time_desc", "maybe"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused_by_name(client, name, value):
    with refused(400, name):
        client.request("GET", "/user/ls", params={"limit": 5, name: value})


# ----- deleted -----


def test_a_user_takes_everything_along(client):
    name = "leaver"
    session, disk = client.sessions.create(user=name), client.disks.create(user=name)
    say(client, session)
    client.artifacts.upsert(disk.id, file=FileUpload("a.txt", b"only the leaver has this"))
    link = client.artifacts.get(disk.id, file_path="/", filename="a.txt").public_url
    skill, space = add_skill(client, user=name), client.learning_spaces.create(user=name)
    others = client.learning_spaces.create(user="stayer")
    for each in (space, others):
        client.learning_spaces.include_skill(each.id, skill_id=skill.id)
    client.learning_spaces.learn(others.id, session_id=session.id)
    assert counts(client, name) == (1, 4, 3)

    client.users.delete(name)
    for items in (
        client.sessions.list(user=name).items,
        client.disks.list(user=name).items,
        client.skills.list_catalog(user=name).items,
        client.learning_spaces.list(user=name).items,
    ):
        assert items == []
    for status, call in [
        (404, lambda: client.users.get_resources(name)),
        (404, lambda: client.sessions.get_messages(session.id)),
        (403, lambda: client.artifacts.list(disk.id)),
        (404, lambda: client.skills.get(skill.id)),
        (404, lambda: client.learning_spaces.get(space.id)),
    ]:
        with refused(status):
            call()
    assert open_link(link).status_code == 404
    # What is not the leaver's stays, without what was.
    assert client.learning_spaces.list(user="stayer").items == [others]
    assert len(client.learning_spaces.list_skills(others.id)) == 2
    assert client.learning_spaces.list_sessions(others.id) == []
    assert counts(client, "stayer") == (0, 2, 2)


def test_the_bytes_that_another_user_has_too_stay(client):
    for name in ("first", "second"):
        disk = client.disks.create(user=name)
        client.artifacts.upsert(disk.id, file=FileUpload("a.txt", b"both users have this"))
    client.users.delete("first")
    assert client.artifacts.get(disk.id, file_path="/", filename="a.txt").content.raw == "both users have this"


def test_a_user_who_is_not_there_can_be_deleted(client):
    for _ in range(2):
        assert client.request("DELETE", "/user/nobody", unwrap=False) == {"code": 0, "msg": ""}


def test_a_user_who_is_named_again_begins_anew(client):
    first = client.disks.create(user="phoenix")
    client.users.delete("phoenix")
    second = client.disks.create(user="phoenix")
    assert second.user_id != first.user_id
    assert counts(client, "phoenix") == (0, 1, 0)
    assert client.disks.list(user="phoenix").items == [second]


def test_users_are_of_one_project(client, stranger):
    mine, theirs = client.disks.create(user="of both"), stranger.disks.create(user="of both")
    assert mine.user_id != theirs.user_id
    stranger.users.delete("of both")
    assert counts(client, "of both") == (0, 1, 0)
    assert client.disks.list(user="of both").items == [mine]
    client.disks.create(user="of one")
    with refused(404, "user not found"):
        stranger.users.get_resources("of one")
    assert "of one" not in names(stranger.users.list())


def test_a_delete_that_is_sent_again_does_not_take_who_came_since(client, ask):
    client.disks.create(user="again")
    once = {"Idempotency-Key": "delete-again"}
    first = ask("DELETE", "/again", **once)
    client.disks.create(user="again")
    replayed = ask("DELETE", "/again", **once)
    assert (first.status, first.headers["Idempotent-Replayed"]) == (200, None)
    assert (replayed.status, replayed.headers["Idempotent-Replayed"], replayed.body) == (200, "true", first.body)
    assert counts(client, "again") == (0, 1, 0)


def test_users_want_a_key(server):
    for method, path in [("GET", "/ls"), ("GET", "/a/resources"), ("DELETE", "/a"), ("DELETE", "/ls")]:
        for key in (None, "Bearer sk-ac-wrong"):
            assert exchange(server, method, USERS + path, {"Authorization": key}).status == 401


# ----- the asynchronous client -----


def test_async_quickstart(server):
    async def steps(client):
        await client.disks.create(user="a/sync")
        assert "a/sync" in names(await client.users.list())
        assert (await client.users.get_resources("a/sync")).counts.disks_count == 1
        await client.users.delete("a/sync")
        with refused(404, "user not found"):
            await client.users.get_resources("a/sync")

    asynchronously(server, steps)


def test_a_user_is_named_and_deleted_at_once(server):
    """Whoever wins: nothing is left that belongs to nobody."""

    async def steps(client):
        calls = []
        for _ in range(8):
            calls += [client.disks.create(user="torn"), client.users.delete("torn")]
        done = await asyncio.gather(*calls)
        made = {disk.id for disk in done[::2]}
        left = {disk.id for disk in (await client.disks.list(limit=200, time_desc=True)).items} & made
        assert left == {disk.id for disk in (await client.disks.list(user="torn")).items}
        if left:
            assert (await client.users.get_resources("torn")).counts.disks_count == len(left)

    asynchronously(server, steps)
