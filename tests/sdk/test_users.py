"""Users: a request with a new user identifier creates one, and its deletion also deletes everything it owns."""

import asyncio
from urllib.parse import quote

import pytest

from acontext import FileUpload
from zip_fixtures import add_skill
from support import run_async, new_project, open_link, raises_error, store_text
from raw_http import exchange

USERS = "/api/v1/user"
# Identifiers with a meaning in a path, in SQL or in a program that does not escape them.
IDENTIFIERS = [
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
    """The key of a project whose users are only those of these tests."""
    return new_project(server)[1]


@pytest.fixture(scope="module")
def client(server, key):
    with server.client(key) as client:
        yield client


@pytest.fixture
def send_request(server, key):
    """Returns a function that sends a request with an unmodified path."""
    return lambda method, path, **headers: exchange(
        server, method, USERS + path, {"Authorization": f"Bearer {key}"} | headers
    )


def count_resources(client, identifier):
    counts = client.users.get_resources(identifier).counts
    return counts.sessions_count, counts.disks_count, counts.skills_count


def identifiers(page):
    return [user.identifier for user in page.items]


# ----- creation -----


def test_a_user_is_created_by_its_first_use(fresh_client):
    assert fresh_client.request("GET", "/user/ls") == {"items": [], "has_more": False}
    session = fresh_client.sessions.create(user="by session")
    disk = fresh_client.disks.create(user="by disk")
    skill = add_skill(fresh_client, user="by skill")
    space = fresh_client.learning_spaces.create(user="by space")
    fresh_client.sessions.create(user="by disk")
    fresh_client.disks.create()
    users = fresh_client.users.list().items
    assert [user.identifier for user in users] == ["by session", "by disk", "by skill", "by space"]
    assert [user.id for user in users] == [each.user_id for each in (session, disk, skill, space)]
    assert {user.project_id for user in users} == {disk.project_id}
    assert all(user.created_at and user.updated_at for user in users)


def test_reading_does_not_create_a_user(fresh_client):
    fresh_client.disks.list(user="unknown")
    fresh_client.sessions.list(user="unknown")
    fresh_client.skills.list_catalog(user="unknown")
    fresh_client.learning_spaces.list(user="unknown")
    fresh_client.users.delete("unknown")
    with raises_error(404, "user not found"):
        fresh_client.users.get_resources("unknown")
    assert fresh_client.users.list().items == []


def test_resources_are_counted(client):
    client.disks.create(user="ann")
    assert count_resources(client, "ann") == (0, 1, 0)
    for _ in range(2):
        client.sessions.create(user="ann")
    assert count_resources(client, "ann") == (2, 1, 0)
    # A skill has its own disk.
    add_skill(client, user="ann")
    assert count_resources(client, "ann") == (2, 2, 1)
    # A new space has two skills.
    client.learning_spaces.create(user="ann")
    assert count_resources(client, "ann") == (2, 4, 3)
    client.disks.create(user="anna")
    client.disks.create()
    assert count_resources(client, "ann") == (2, 4, 3)


# ----- identifiers -----


@pytest.mark.parametrize("identifier", IDENTIFIERS, ids=ascii)
def test_a_user_with_any_identifier_is_found_and_deleted(client, identifier):
    disk = client.disks.create(user=identifier)
    session = client.sessions.create(user=identifier)
    assert disk.user_id == session.user_id
    assert identifier in identifiers(client.users.list())
    assert count_resources(client, identifier) == (1, 1, 0)
    assert client.disks.list(user=identifier).items == [disk]
    client.users.delete(identifier)
    assert identifier not in identifiers(client.users.list())
    with raises_error(404, "user not found"):
        client.users.get_resources(identifier)


@pytest.mark.parametrize("identifier", [".", "..", "../x", "..%2F"])
def test_dots_in_an_identifier_are_not_resolved(client, send_request, identifier):
    """The test sends raw requests, because the SDK resolves dots as browsers do."""
    client.disks.create(user=identifier)
    path = "/" + quote(identifier, safe="").replace(".", "%2E")
    response = send_request("GET", f"{path}/resources")
    assert (response.status, response.json()["data"]["counts"]["disks_count"]) == (200, 1)
    assert send_request("DELETE", path).status == 200
    assert identifier not in identifiers(client.users.list())


def test_similar_identifiers_are_different_users(client):
    alike = ["Ann B", "ann b", "Ann B ", " Ann B", "Ann%20B", "Ann+B", "A\u0308nn", "\u00c4nn"]
    assert len({client.disks.create(user=identifier).user_id for identifier in alike}) == len(alike)
    for identifier in alike:
        assert count_resources(client, identifier) == (0, 1, 0)
    client.users.delete("Ann B")
    assert [count_resources(client, identifier) for identifier in alike[1:]] == [(0, 1, 0)] * (len(alike) - 1)


def test_an_invalid_identifier_is_rejected(client, send_request):
    for identifier in ("u" * 1025, "ü" * 513, "a\0b"):
        for call in (
            lambda: client.disks.create(user=identifier),
            lambda: client.sessions.create(user=identifier),
            lambda: client.learning_spaces.create(user=identifier),
            lambda: add_skill(client, user=identifier),
        ):
            with raises_error(400, "user"):
                call()
        with raises_error(400, "identifier"):
            client.users.get_resources(identifier)
    response = send_request("GET", "/%FF/resources")
    assert response.status == 400 and "identifier" in response.error_message()


def test_a_user_named_ls_does_not_hide_the_list(client):
    client.disks.create(user="ls")
    assert "ls" in identifiers(client.users.list())
    client.users.delete("ls")
    assert "ls" not in identifiers(client.users.list())


# ----- list -----


@pytest.fixture(scope="module")
def client_with_many_users(server):
    """A client of a project with more users than a list without a limit returns, and the users' identifiers."""
    project, key = new_project(server)
    server.psql(
        "insert into users (project_id, identifier, created_at)"
        f" select '{project}', 'u' || n, '2026-01-01'::timestamptz + n / 2 * interval '1 ms'"
        " from generate_series(0, 10000) n"
    )
    with server.client(key) as client:
        yield client, [f"u{n}" for n in range(10_001)]


def read_pages(client, **options):
    """Returns all pages."""
    pages, cursor = [], None
    while True:
        pages.append(client.users.list(cursor=cursor, **options))
        assert bool(pages[-1].next_cursor) == pages[-1].has_more
        if not pages[-1].has_more:
            return pages
        cursor = pages[-1].next_cursor


@pytest.mark.parametrize("limit", [None, 0])
@pytest.mark.parametrize("newest_first", [False, True])
def test_a_list_without_a_limit_has_up_to_10000_users(client_with_many_users, limit, newest_first):
    client, expected = client_with_many_users
    pages = read_pages(client, limit=limit, time_desc=newest_first)
    assert [len(page.items) for page in pages] == [10_000, 1]
    listed = [identifier for page in pages for identifier in identifiers(page)]
    assert sorted(listed) == sorted(expected)
    # Two users have the same creation time.
    times = [int(identifier[1:]) // 2 for identifier in listed]
    assert times == sorted(times, reverse=newest_first)


def test_a_list_with_a_limit_has_up_to_200_users(client_with_many_users):
    client, _ = client_with_many_users
    for limit in (1, 2, 199, 200):
        page = client.users.list(limit=limit)
        assert len(page.items) == limit and page.has_more
    first = client.users.list(limit=200)
    second = client.users.list(limit=200, cursor=first.next_cursor)
    assert len(set(identifiers(first) + identifiers(second))) == 400


def test_paging_returns_every_user_once_in_both_directions(fresh_client):
    expected = [f"u{number}" for number in range(5)]
    for identifier in expected:
        fresh_client.disks.create(user=identifier)
    pages = [identifiers(page) for page in read_pages(fresh_client, limit=2)]
    assert pages == [expected[:2], expected[2:4], expected[4:]]
    pages = [identifiers(page) for page in read_pages(fresh_client, limit=2, time_desc=True)]
    assert pages == [expected[:2:-1], expected[2:0:-1], expected[:1]]
    assert [identifiers(page) for page in read_pages(fresh_client, limit=5)] == [expected]
    assert identifiers(fresh_client.users.list()) == identifiers(fresh_client.users.list(limit=0)) == expected
    assert identifiers(fresh_client.users.list(time_desc=True)) == expected[::-1]


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
def test_the_error_names_an_invalid_list_parameter(client, name, value):
    with raises_error(400, name):
        client.request("GET", "/user/ls", params={"limit": 5, name: value})


# ----- deletion -----


def test_deleting_a_user_deletes_everything_of_the_user(client):
    identifier = "leaver"
    session, disk = client.sessions.create(user=identifier), client.disks.create(user=identifier)
    store_text(client, session)
    client.artifacts.upsert(disk.id, file=FileUpload("a.txt", b"only the leaver has this"))
    link = client.artifacts.get(disk.id, file_path="/", filename="a.txt").public_url
    skill, space = add_skill(client, user=identifier), client.learning_spaces.create(user=identifier)
    other_space = client.learning_spaces.create(user="stayer")
    for space_id in (space.id, other_space.id):
        client.learning_spaces.include_skill(space_id, skill_id=skill.id)
    client.learning_spaces.learn(other_space.id, session_id=session.id)
    assert count_resources(client, identifier) == (1, 4, 3)

    client.users.delete(identifier)
    for items in (
        client.sessions.list(user=identifier).items,
        client.disks.list(user=identifier).items,
        client.skills.list_catalog(user=identifier).items,
        client.learning_spaces.list(user=identifier).items,
    ):
        assert items == []
    for status, call in [
        (404, lambda: client.users.get_resources(identifier)),
        (404, lambda: client.sessions.get_messages(session.id)),
        (403, lambda: client.artifacts.list(disk.id)),
        (404, lambda: client.skills.get(skill.id)),
        (404, lambda: client.learning_spaces.get(space.id)),
    ]:
        with raises_error(status):
            call()
    assert open_link(link).status_code == 404
    # The space of the other user still exists, without the content of the deleted user.
    assert client.learning_spaces.list(user="stayer").items == [other_space]
    assert len(client.learning_spaces.list_skills(other_space.id)) == 2
    assert client.learning_spaces.list_sessions(other_space.id) == []
    assert count_resources(client, "stayer") == (0, 2, 2)


def test_bytes_that_another_user_also_has_are_preserved(client):
    for name in ("first", "second"):
        disk = client.disks.create(user=name)
        client.artifacts.upsert(disk.id, file=FileUpload("a.txt", b"both users have this"))
    client.users.delete("first")
    assert client.artifacts.get(disk.id, file_path="/", filename="a.txt").content.raw == "both users have this"


def test_deleting_an_unknown_user_succeeds(client):
    for _ in range(2):
        assert client.request("DELETE", "/user/unknown", unwrap=False) == {"code": 0, "msg": ""}


def test_a_deleted_user_can_be_created_again(client):
    first = client.disks.create(user="phoenix")
    client.users.delete("phoenix")
    second = client.disks.create(user="phoenix")
    assert second.user_id != first.user_id
    assert count_resources(client, "phoenix") == (0, 1, 0)
    assert client.disks.list(user="phoenix").items == [second]


def test_users_belong_to_one_project(client, other_client):
    disk, other_disk = client.disks.create(user="of both"), other_client.disks.create(user="of both")
    assert disk.user_id != other_disk.user_id
    other_client.users.delete("of both")
    assert count_resources(client, "of both") == (0, 1, 0)
    assert client.disks.list(user="of both").items == [disk]
    client.disks.create(user="of one")
    with raises_error(404, "user not found"):
        other_client.users.get_resources("of one")
    assert "of one" not in identifiers(other_client.users.list())


def test_a_repeated_delete_does_not_delete_a_new_user(client, send_request):
    client.disks.create(user="again")
    headers = {"Idempotency-Key": "delete-again"}
    first = send_request("DELETE", "/again", **headers)
    client.disks.create(user="again")
    replayed = send_request("DELETE", "/again", **headers)
    assert (first.status, first.headers["Idempotent-Replayed"]) == (200, None)
    assert (replayed.status, replayed.headers["Idempotent-Replayed"], replayed.body) == (200, "true", first.body)
    assert count_resources(client, "again") == (0, 1, 0)


def test_user_routes_require_an_api_key(server):
    for method, path in [("GET", "/ls"), ("GET", "/a/resources"), ("DELETE", "/a"), ("DELETE", "/ls")]:
        for key in (None, "Bearer sk-ac-wrong"):
            assert exchange(server, method, USERS + path, {"Authorization": key}).status == 401


# ----- the asynchronous client -----


def test_async_quickstart(server):
    async def steps(client):
        await client.disks.create(user="a/sync")
        assert "a/sync" in identifiers(await client.users.list())
        assert (await client.users.get_resources("a/sync")).counts.disks_count == 1
        await client.users.delete("a/sync")
        with raises_error(404, "user not found"):
            await client.users.get_resources("a/sync")

    run_async(server, steps)


def test_a_user_is_created_and_deleted_concurrently(server):
    """In every order of the requests, each remaining disk belongs to an existing user."""

    async def steps(client):
        calls = []
        for _ in range(8):
            calls += [client.disks.create(user="concurrent"), client.users.delete("concurrent")]
        results = await asyncio.gather(*calls)
        created = {disk.id for disk in results[::2]}
        remaining = {disk.id for disk in (await client.disks.list(limit=200, time_desc=True)).items} & created
        assert remaining == {disk.id for disk in (await client.disks.list(user="concurrent")).items}
        if remaining:
            assert (await client.users.get_resources("concurrent")).counts.disks_count == len(remaining)

    run_async(server, steps)
