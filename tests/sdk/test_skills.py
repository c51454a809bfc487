"""Skills, as users of the SDK work with them: made, looked at, fetched, edited on their disk, deleted."""

import asyncio
import hashlib
import io
import json
import zipfile
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from acontext import FileUpload
from acontext.agent.skill import SKILL_TOOLS
from packing import add_skill, pack, paths, send_archive, skill_md, unpack
from support import asynchronously, eventually, open_link, refused
from wire import FORM, exchange, part, upload

MIB = 1 << 20
NOBODYS = "00000000-0000-4000-8000-000000000000"
# The smallest PNG: one pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010804000000b51c0c02"
    "0000000b4944415478da6364f80f00010501012718e3660000000049454e44ae426082"
)
# A file of each kind, some of which are not what they are called.
FILES = {
    "SKILL.md": skill_md().encode(),
    "bom.txt": "\ufeffwords\r\nlines\n".encode(),
    "broken.json": b'{"a": ',
    "data/odd.csv": b'a,b\n1,2,3\n"x"y,2\n',
    "data/pages.json": b'{"pages": 3}',
    "empty.txt": b"",
    "img/logo.png": PNG,
    "img/größe 寿司.bin": bytes(range(256)) * 300,
    "scripts/run.py": b"print('run')\n",
    "wide.txt": "in two bytes each, größe\n".encode("utf-16"),
}


@pytest.fixture(scope="module")
def kit(client):
    return send_archive(client, pack(*FILES.items()))


def get(client, skill, path, **how):
    return client.skills.get_file(skill_id=skill.id, file_path=path, **how)


def put(client, skill, name, content="x", folder="/", **how):
    """Stores a file on the skill's disk."""
    return client.artifacts.upsert(skill.disk_id, file=FileUpload(name, content.encode()), file_path=folder, **how)


def remove(client, skill, name, folder="/"):
    client.artifacts.delete(skill.disk_id, file_path=folder, filename=name)


def catalog(client, **how):
    """All entries of the list, as they come."""
    return client.request("GET", "/agent_skills", params=how)["items"]


def ids(entries):
    return [entry["id"] for entry in entries]


def disks(client):
    return [disk.id for disk in client.disks.list(limit=200, time_desc=True).items]


def when(skill):
    return datetime.fromisoformat(skill.updated_at)


def download(server, skill, key=None):
    """The archive with the head of the answer."""
    url = f"{server.base_url}/agent_skills/{skill.id}/download_zip"
    return httpx.get(url, headers={"Authorization": f"Bearer {key or server.key}"}, trust_env=False)


def test_quickstart(client, tmp_path):
    """The whole way from an archive to nothing, in the order in which newcomers go it."""
    archive = pack(("SKILL.md", skill_md("pdf", "Reads PDF files")), ("scripts/run.py", "pass\n"), ("logo.png", PNG))
    skill = client.skills.create(file=FileUpload("pdf.zip", archive), user="skill newcomer", meta={"version": "1.0"})
    assert (skill.name, skill.description, skill.meta) == ("pdf", "Reads PDF files", {"version": "1.0"})
    assert paths(skill) == ["SKILL.md", "scripts/run.py", "logo.png"]

    (entry,) = client.skills.list_catalog(user="skill newcomer").items
    assert (entry.name, entry.description) == ("pdf", "Reads PDF files")
    assert client.skills.get(skill.id).id == skill.id
    assert get(client, skill, "scripts/run.py").content.raw == "pass\n"
    assert open_link(get(client, skill, "logo.png").url).content == PNG

    done = client.skills.download(skill_id=skill.id, path=str(tmp_path / "pdf"))
    assert (done.name, done.description) == ("pdf", "Reads PDF files")
    assert (tmp_path / "pdf" / "logo.png").read_bytes() == PNG
    assert sorted(unpack(client.skills.download_zip(skill.id))) == sorted(paths(skill))

    client.skills.delete(skill.id)
    assert client.skills.list_catalog(user="skill newcomer").items == []
    with refused(404, "skill not found"):
        client.skills.get(skill.id)


# ----- what a skill is -----


def test_a_skill_is_a_disk_with_a_name(client):
    skill = add_skill(client, ("notes/a.md", "# a\n"))
    assert skill.disk_id in disks(client)
    assert client.artifacts.list(skill.disk_id).directories == ["notes"]
    (artifact,) = client.artifacts.list(skill.disk_id, path="/notes/").artifacts
    mime = "text/markdown; charset=utf-8"
    assert artifact.meta == {"__artifact_info__": {"path": "/notes/", "filename": "a.md", "mime": mime, "size": 4}}
    found = client.artifacts.grep_artifacts(skill.disk_id, query="shows one")
    assert [each.filename for each in found] == ["SKILL.md"]


def test_what_is_answered_is_what_is_found(client):
    skill = add_skill(client, user="skill ann", meta={"a": 1})
    assert client.skills.get(skill.id) == skill
    assert skill.created_at == skill.updated_at
    (entry,) = catalog(client, user="skill ann")
    assert entry == skill.model_dump(exclude={"disk_id"})
    (disk,) = client.disks.list(user="skill ann").items
    assert (disk.id, disk.user_id) == (skill.disk_id, skill.user_id)


def test_a_skill_of_nobody_says_so(client):
    skill = add_skill(client)
    shown = client.request("GET", f"/agent_skills/{skill.id}")
    assert (shown["user_id"], shown["meta"]) == (None, None)
    assert set(shown) == set(type(skill).model_fields)


def test_names_may_repeat(client):
    first, second = (add_skill(client, name="twin", user="skill twins") for _ in range(2))
    assert first.id != second.id and first.disk_id != second.disk_id
    assert ids(catalog(client, user="skill twins")) == [first.id, second.id]


def test_meta_is_kept_as_it_is(client):
    meta = {"text": "ü\n\"'", "n": [1, -2.5, 1e-7, 2**53 + 1, 10**30], "deep": {"a": {"b": [None, True]}}, "": ""}
    skill = add_skill(client, meta=meta)
    assert skill.meta == client.skills.get(skill.id).meta == meta
    assert add_skill(client, meta={}).meta == {}


def test_numbers_in_meta_keep_all_their_digits(server):
    meta = b'{"long":12345678901234567890.123456789012345,"money":1.10}'
    form = upload(part("meta", meta), part("file", pack(("SKILL.md", skill_md())), filename="kit.zip"))
    made = exchange(server, "POST", "/api/v1/agent_skills", {"Content-Type": FORM}, form)
    assert made.status == 201
    got = exchange(server, "GET", f"/api/v1/agent_skills/{made.json()['data']['id']}")
    for answer in (made, got):
        assert b"12345678901234567890.123456789012345" in answer.body and b"1.10" in answer.body


# ----- the list -----


@pytest.fixture(scope="module")
def five(client):
    return [add_skill(client, name=f"s{number}", user="skill pager") for number in range(5)]


def walk(client, **how):
    """The names on each page."""
    pages, cursor = [], None
    while True:
        page = client.skills.list_catalog(limit=2, cursor=cursor, **how)
        pages.append([item.name for item in page.items])
        assert bool(page.next_cursor) == page.has_more
        if not page.has_more:
            return pages
        cursor = page.next_cursor


def test_paging_shows_every_skill_once_in_both_directions(client, five):
    assert walk(client, user="skill pager") == [["s0", "s1"], ["s2", "s3"], ["s4"]]
    assert walk(client, user="skill pager", time_desc=True) == [["s4", "s3"], ["s2", "s1"], ["s0"]]
    whole = client.skills.list_catalog(user="skill pager", limit=5)
    assert len(whole.items) == 5 and not whole.has_more and whole.next_cursor is None


def test_a_list_is_of_one_user_if_one_is_named(client, five):
    other = add_skill(client, name="other", user="skill pager@example.org")
    nobodys = add_skill(client, name="nobodys")
    assert ids(catalog(client, user="skill pager")) == [skill.id for skill in five]
    assert ids(catalog(client, user="skill pager@example.org")) == [other.id]
    assert catalog(client, user="skill page") == []
    newest = ids(catalog(client, user="", time_desc="true", limit=2))
    assert newest == [nobodys.id, other.id]


def test_a_page_is_twenty_skills_unless_told_otherwise(client):
    for _ in range(21):
        add_skill(client, user="skill many")
    assert len(catalog(client, user="skill many")) == len(catalog(client, user="skill many", limit="")) == 20
    assert len(catalog(client, user="skill many", limit=200)) == 21
    assert len(client.skills.list_catalog(user="skill many").items) == 21


@pytest.mark.parametrize(
    "name, value",
    [
        ("limit", 0),
        ("limit", 201),
        ("limit", -1),
        ("limit", "abc"),
        ("limit", "1.5"),
        ("cursor", "garbage"),
        ("cursor", "!!!!"),
        ("cursor", "MTJ8bm90LWEtdXVpZA"),
        ("time_desc", "maybe"),
        ("user", "a\0b"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused_by_name(client, name, value):
    with refused(400, name):
        catalog(client, **{name: value})


def test_an_empty_list_is_a_list(fresh):
    assert fresh.request("GET", "/agent_skills") == {"items": [], "has_more": False}


# ----- its files -----


@pytest.mark.parametrize(
    "name, content, mime, kind",
    [
        ("a.md", "# a\n", "text/markdown; charset=utf-8", "text"),
        ("a.py", "pass\n", "text/x-python; charset=utf-8", "code"),
        ("a.js", "let a = 1\n", "text/javascript; charset=utf-8", "code"),
        ("a.sh", "echo a\n", "text/x-shellscript; charset=utf-8", "code"),
        ("a.json", '{"a": [1, 2.50]}', "application/json", "json"),
        ("a.csv", "h1,h2\n1,2\n", "text/csv", "csv"),
        ("a.yaml", "a: 1\n", "text/yaml; charset=utf-8", "text"),
        ("größe.txt", "größe\r\n寿司", "text/plain; charset=utf-8", "text"),
        ("Makefile", "all:\n\techo\n", "text/plain; charset=utf-8", "text"),
    ],
)
def test_text_is_given_as_it_is(client, name, content, mime, kind):
    skill = add_skill(client, (f"in/{name}", content))
    shown = client.request("GET", f"/agent_skills/{skill.id}/file", params={"file_path": f"in/{name}"})
    assert shown == {"path": f"in/{name}", "mime": mime, "content": {"type": kind, "raw": content}}


@pytest.mark.parametrize("path", ["img/logo.png", "img/größe 寿司.bin", "broken.json", "data/odd.csv", "wide.txt"])
def test_what_is_no_text_of_its_kind_is_given_by_a_link(client, kit, path):
    shown = client.request("GET", f"/agent_skills/{kit.id}/file", params={"file_path": path})
    assert set(shown) == {"path", "mime", "url"} and shown["path"] == path
    assert urlsplit(shown["url"]).path.startswith("/api/v1/material/")
    opened = open_link(shown["url"])
    assert (opened.status_code, opened.content) == (200, FILES[path])
    assert opened.headers["content-type"] == shown["mime"]
    assert opened.headers["etag"] == f'"{hashlib.sha256(FILES[path]).hexdigest()}"'


def test_a_link_ends(client, kit):
    assert open_link(get(client, kit, "img/logo.png", expire=60).url).content == PNG
    assert open_link(get(client, kit, "img/logo.png", expire=7 * 24 * 3600).url).content == PNG
    short = get(client, kit, "img/logo.png", expire=1).url
    eventually(lambda: open_link(short).status_code == 404, "the end of a link of one second", seconds=5)


@pytest.mark.parametrize("expire", [0, -60, 7 * 24 * 3600 + 1, "1m", "1.5"])
def test_a_link_without_a_sensible_end_is_refused(client, kit, expire):
    with refused(400, "expire"):
        client.request(
            "GET", f"/agent_skills/{kit.id}/file", params={"file_path": "img/logo.png", "expire": expire}
        )


@pytest.mark.parametrize(
    "path", ["./data/pages.json", "img/../data/pages.json", "data//pages.json", "data/./pages.json"]
)
def test_a_path_is_resolved(client, kit, path):
    got = get(client, kit, path)
    assert (got.path, got.content.raw) == (path, '{"pages": 3}')


@pytest.mark.parametrize(
    "path",
    [
        "pages.json",
        "data",
        "data/",
        "skill.md",
        "/SKILL.md",
        "../SKILL.md",
        "data/../../SKILL.md",
        "SKILL.md/",
        "..",
        "a\0",
    ],
)
def test_a_file_that_is_not_there_is_404(client, kit, path):
    with refused(404, "file not found"):
        get(client, kit, path)


def test_a_path_is_needed(client, kit):
    for params in ({}, {"file_path": ""}):
        with refused(400, "file_path is required"):
            client.request("GET", f"/agent_skills/{kit.id}/file", params=params)


# ----- all of it -----


def test_a_download_is_every_file_as_it_was(client, kit, tmp_path):
    done = client.skills.download(skill_id=kit.id, path=str(tmp_path))
    assert sorted(done.files) == sorted(FILES)
    assert Path(done.dir_path) == tmp_path.resolve()
    assert {path: (tmp_path / path).read_bytes() for path in done.files} == FILES


def test_an_archive_is_every_file_as_it_was(client, kit):
    archive = client.skills.download_zip(kit.id)
    assert unpack(archive) == FILES
    with zipfile.ZipFile(io.BytesIO(archive)) as packed:
        assert packed.namelist() == paths(client.skills.get(kit.id))
        assert {entry.compress_type for entry in packed.infolist()} == {zipfile.ZIP_DEFLATED}
        changed = datetime(*packed.getinfo("SKILL.md").date_time)
        assert abs((changed - when(kit).replace(tzinfo=None)).total_seconds()) < 3
    # And it makes the same skill again.
    again = send_archive(client, archive)
    assert (again.name, again.description) == (kit.name, kit.description)
    assert unpack(client.skills.download_zip(again.id)) == FILES


@pytest.mark.parametrize(
    "name, plain, whole",
    [
        ("kit", "kit", "kit"),
        ("'größe \"x\" (1)'", "gr__e--x--(1)", "gr%C3%B6%C3%9Fe--x--%281%29"),
        ("50%;寿司", "50%;__", "50%25%3B%E5%AF%BF%E5%8F%B8"),
    ],
)
def test_an_archive_has_the_skills_name(server, client, name, plain, whole):
    answer = download(server, send_archive(client, pack(("SKILL.md", skill_md(name)))))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip")
    assert answer.headers["x-content-type-options"] == "nosniff"
    expected = f"attachment; filename=\"{plain}.zip\"; filename*=UTF-8''{whole}.zip"
    assert answer.headers["content-disposition"] == expected


def test_an_archive_has_up_to_200_files(client):
    skill = add_skill(client, *((f"{n}.txt", str(n)) for n in range(199)))
    assert len(unpack(client.skills.download_zip(skill.id))) == 200
    put(client, skill, "one-more.txt")
    with refused(413, "too many files (201)", "200"):
        client.skills.download_zip(skill.id)
    assert len(client.skills.get(skill.id).file_index) == 201


def test_an_archive_has_up_to_50_mib(client):
    rest = 2 * MIB - len(skill_md())
    skill = add_skill(client, *((f"{n}.bin", bytes(16 * MIB)) for n in range(3)), ("rest.bin", bytes(rest)))
    assert sum(map(len, unpack(client.skills.download_zip(skill.id)).values())) == 50 * MIB
    put(client, skill, "one-more.txt")
    with refused(413, f"{50 * MIB + 1} bytes", f"{50 * MIB} bytes"):
        client.skills.download_zip(skill.id)


# ----- edited on its disk -----


def test_every_change_on_the_disk_shows_and_moves_the_time(client):
    skill = add_skill(client, ("a.txt", "a"))
    others = add_skill(client)
    steps = [
        (lambda: put(client, skill, "new.md", "# new\n", "/notes/"), ["SKILL.md", "a.txt", "notes/new.md"]),
        (lambda: put(client, skill, "new.md", "# newer\n", "/notes/"), ["SKILL.md", "a.txt", "notes/new.md"]),
        (
            lambda: client.artifacts.update(skill.disk_id, file_path="/", filename="a.txt", meta={"a": 1}),
            ["SKILL.md", "a.txt", "notes/new.md"],
        ),
        (lambda: remove(client, skill, "new.md", "/notes/"), ["SKILL.md", "a.txt"]),
        (lambda: put(client, skill, "SKILL.md", skill_md("renamed", "Anew")), ["SKILL.md", "a.txt"]),
        (lambda: remove(client, skill, "SKILL.md"), ["a.txt"]),
        (lambda: remove(client, skill, "a.txt"), []),
    ]
    before = skill
    for change, shown in steps:
        change()
        now = client.skills.get(skill.id)
        assert paths(now) == shown
        assert when(now) > when(before)
        # It does not move by being looked at, wherever that is.
        assert client.skills.get(skill.id) == now
        (listed,) = [entry for entry in catalog(client, time_desc="true", limit=50) if entry["id"] == skill.id]
        assert listed["updated_at"] == now.updated_at
        before = now
    # The name and what it is for are those that it was made with.
    kept = {"file_index", "updated_at"}
    assert now.model_dump(exclude=kept) == skill.model_dump(exclude=kept)
    assert client.skills.get(others.id) == others
    assert unpack(client.skills.download_zip(skill.id)) == {}


def test_many_changes_move_the_time_each(client):
    skill = add_skill(client)
    times = [when(skill)]
    for number in range(20):
        put(client, skill, "a.txt", str(number))
        times.append(when(client.skills.get(skill.id)))
    assert times == sorted(set(times))


def test_reading_moves_no_time(client, kit, tmp_path):
    before = client.skills.get(kit.id)
    get(client, kit, "SKILL.md")
    client.skills.download(skill_id=kit.id, path=str(tmp_path))
    client.skills.download_zip(kit.id)
    client.artifacts.grep_artifacts(kit.disk_id, query="words")
    assert client.skills.get(kit.id) == before


def test_a_change_that_is_refused_moves_no_time(client):
    skill = add_skill(client)
    with refused(400):
        put(client, skill, "a.txt", folder="/../")
    with refused(404):
        remove(client, skill, "none.txt")
    assert client.skills.get(skill.id) == skill


def test_an_edited_file_is_given_as_it_is_now(client):
    skill = add_skill(client, ("a.bin", b"\0first"))
    first = get(client, skill, "a.bin").url
    put(client, skill, "a.bin", "\0the second")
    assert open_link(get(client, skill, "a.bin").url).content == b"\0the second"
    assert open_link(first).content == b"\0first"
    put(client, skill, "SKILL.md", "changed")
    assert get(client, skill, "SKILL.md").content.raw == "changed"
    assert unpack(client.skills.download_zip(skill.id)) == {"SKILL.md": b"changed", "a.bin": b"\0the second"}


# ----- deleted -----


def test_a_deleted_skill_is_gone_with_its_disk(client):
    skill, other = (add_skill(client, ("logo.png", PNG + bytes([n])), user="skill deleter") for n in range(2))
    link = get(client, skill, "logo.png").url
    client.skills.delete(skill.id)
    for call, words in [
        (lambda: client.skills.get(skill.id), "skill not found"),
        (lambda: get(client, skill, "logo.png"), "file not found"),
        (lambda: client.skills.download_zip(skill.id), "skill not found"),
        (lambda: client.skills.delete(skill.id), "agent skill not found or access denied"),
    ]:
        with refused(404, words):
            call()
    with refused(403):
        client.artifacts.list(skill.disk_id)
    assert ids(catalog(client, user="skill deleter")) == [other.id]
    assert [disk.id for disk in client.disks.list(user="skill deleter").items] == [other.disk_id]
    assert open_link(link).status_code == 404
    assert client.skills.get(other.id) == other


def test_a_skill_goes_with_its_disk(client):
    skill = add_skill(client, user="skill disk deleter")
    client.disks.delete(skill.disk_id)
    with refused(404, "skill not found"):
        client.skills.get(skill.id)
    assert catalog(client, user="skill disk deleter") == []


def test_equal_content_outlives_the_skill_that_came_first(client):
    content = b"\0equal in both"
    first, second = add_skill(client, ("a.bin", content)), add_skill(client, ("a.bin", content))
    client.skills.delete(first.id)
    assert open_link(get(client, second, "a.bin").url).content == content


# ----- whose it is -----


@pytest.mark.parametrize("whose", ["another project's", "nobody's"])
def test_a_skill_that_is_not_ours_is_not_there(client, stranger, kit, whose):
    skill_id = kit.id if whose == "another project's" else NOBODYS
    skills = stranger.skills
    for call, words in [
        (lambda: skills.get(skill_id), "skill not found"),
        (lambda: skills.get_file(skill_id=skill_id, file_path="SKILL.md"), "file not found"),
        (lambda: skills.get_file(skill_id=skill_id, file_path="img/logo.png"), "file not found"),
        (lambda: skills.download_zip(skill_id), "skill not found"),
        (lambda: skills.delete(skill_id), "agent skill not found or access denied"),
    ]:
        with refused(404, words):
            call()
    assert kit.id not in ids(catalog(stranger, limit=200))
    assert unpack(client.skills.download_zip(kit.id)) == FILES


@pytest.mark.parametrize("skill_id", ["not-an-id", "123", NOBODYS + "0"])
def test_an_id_that_is_none_is_refused(client, skill_id):
    for call in (
        lambda: client.skills.get(skill_id),
        lambda: client.skills.get_file(skill_id=skill_id, file_path="SKILL.md"),
        lambda: client.skills.delete(skill_id),
    ):
        with refused(400, "skill_id"):
            call()
    with refused(400, "invalid skill id"):
        client.skills.download_zip(skill_id)


def test_a_skill_wants_a_key(server, kit):
    path = f"/api/v1/agent_skills/{kit.id}"
    for url in ("/api/v1/agent_skills", path, f"{path}/file?file_path=SKILL.md", f"{path}/download_zip"):
        for key in (None, "Bearer sk-ac-wrong"):
            assert exchange(server, "GET", url, {"Authorization": key}).status == 401


# ----- sent twice -----


def test_an_upload_that_is_sent_again_makes_one_skill(server, client):
    archive = pack(("SKILL.md", skill_md()), ("a.txt", "a"))

    def send(user):
        form = upload(part("user", user.encode()), part("file", archive, filename="kit.zip"))
        headers = {"Content-Type": FORM, "Idempotency-Key": "the-upload-of-a-kit"}
        return exchange(server, "POST", "/api/v1/agent_skills", headers, form)

    first, again, other = send("skill once"), send("skill once"), send("skill not once")
    assert (first.status, first.headers["Idempotent-Replayed"]) == (201, None)
    assert (again.status, again.headers["Idempotent-Replayed"]) == (201, "true")
    assert again.body == first.body
    assert ids(catalog(client, user="skill once")) == [json.loads(first.body)["data"]["id"]]
    assert other.status == 422 and "Idempotency-Key" in other.refusal()
    assert catalog(client, user="skill not once") == []


# ----- the tools that the SDK gives to an agent -----


def test_the_tools_show_skills_and_their_files(client, kit):
    assert sorted(SKILL_TOOLS.tools) == ["get_skill", "get_skill_file"]
    context = SKILL_TOOLS.format_context(client, [kit.id])
    assert "<name>kit</name>" in context.get_context_prompt()
    shown = SKILL_TOOLS.execute_tool(context, "get_skill", {"skill_name": "kit"})
    assert f"Files: {len(FILES)} file(s)" in shown
    assert "  - scripts/run.py (text/x-python; charset=utf-8)" in shown

    def read(path, **how):
        return SKILL_TOOLS.execute_tool(context, "get_skill_file", {"skill_name": "kit", "file_path": path, **how})

    assert read("scripts/run.py").endswith("Content (type: code):\nprint('run')")
    assert open_link(read("img/logo.png", expire=60).splitlines()[-1]).content == PNG
    with refused(404, "file not found"):
        read("none.txt")


# ----- the asynchronous client -----


def test_async_quickstart(server, tmp_path):
    async def steps(client):
        skill = await send_archive(client, pack(*FILES.items()), user="skill async", meta={"n": 1})
        assert sorted(paths(await client.skills.get(skill.id))) == sorted(FILES)
        assert [item.name for item in (await client.skills.list_catalog(user="skill async")).items] == ["kit"]
        got = await client.skills.get_file(skill_id=skill.id, file_path="scripts/run.py")
        assert got.content.raw == "print('run')\n"
        await client.skills.download(skill_id=skill.id, path=str(tmp_path))
        assert {path: (tmp_path / path).read_bytes() for path in paths(skill)} == FILES
        assert unpack(await client.skills.download_zip(skill.id)) == FILES
        context = await SKILL_TOOLS.async_format_context(client, [skill.id])
        assert "SKILL.md" in await SKILL_TOOLS.async_execute_tool(context, "get_skill", {"skill_name": "kit"})
        await client.skills.delete(skill.id)
        with refused(404, "skill not found"):
            await client.skills.get(skill.id)

    asynchronously(server, steps)


def test_many_skills_of_equal_files_at_once(server):
    """All of them need what none has stored yet."""
    archive = pack(("SKILL.md", skill_md()), *((f"{n}.txt", f"new to all {n}") for n in range(20)))

    async def steps(client):
        skills = await asyncio.gather(*(send_archive(client, archive, user="skill new to all") for _ in range(12)))
        assert len({skill.id for skill in skills}) == 12
        assert len({skill.user_id for skill in skills}) == 1
        for skill in skills:
            assert unpack(await client.skills.download_zip(skill.id)) == unpack(archive)

    asynchronously(server, steps)


def test_what_many_put_on_its_disk_at_once_is_in_the_skill(server):
    async def steps(client):
        skill = await send_archive(client, pack(("SKILL.md", skill_md())))
        puts = [
            client.artifacts.upsert(skill.disk_id, file=FileUpload(f"{n:02}.txt", str(n).encode())) for n in range(16)
        ]
        await asyncio.gather(*puts)
        now = await client.skills.get(skill.id)
        assert paths(now) == [f"{n:02}.txt" for n in range(16)] + ["SKILL.md"]
        assert when(now) > when(skill)

    asynchronously(server, steps)
