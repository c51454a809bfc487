"""Disks and files, as users of the SDK work with them."""

import asyncio
import hashlib
import io
from datetime import datetime, timedelta
from urllib.parse import urlsplit

import httpx
import pytest

from acontext import FileUpload
from support import ADMIN_TOKEN, asynchronously, eventually, new_project, open_link, refused

MIB = 1 << 20
# The smallest PNG: one pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010804000000b51c0c02"
    "0000000b4944415478da6364f80f00010501012718e3660000000049454e44ae426082"
)
NOBODYS = "00000000-0000-4000-8000-000000000000"


def put(client, disk, path, content="", **how):
    """Stores a file under its full path."""
    folder, _, name = path.rpartition("/")
    content = content.encode() if isinstance(content, str) else content
    return client.artifacts.upsert(disk.id, file=FileUpload(name, content), file_path=f"{folder}/", **how)


def get(client, disk, path, **how):
    folder, _, name = path.rpartition("/")
    return client.artifacts.get(disk.id, file_path=f"{folder}/", filename=name, **how)


def own_meta(artifact):
    return {key: value for key, value in artifact.meta.items() if key != "__artifact_info__"}


def info(artifact):
    return artifact.meta["__artifact_info__"]


def names(artifacts):
    return [artifact.path + artifact.filename for artifact in artifacts]


def when(text):
    moment = datetime.fromisoformat(text)
    assert moment.utcoffset() == timedelta(0), text
    return moment


def test_quickstart(client):
    """The whole way from an empty disk to none, in the order in which newcomers go it."""
    assert client.ping() == "pong"
    disk = client.disks.create()

    artifact = client.disks.artifacts.upsert(
        disk.id,
        file=FileUpload(filename="notes.md", content=b"# Notes\n\nBuy milk.\n"),
        file_path="/docs/",
        meta={"author": "alice"},
    )
    assert (artifact.disk_id, artifact.path, artifact.filename) == (disk.id, "/docs/", "notes.md")
    assert own_meta(artifact) == {"author": "alice"}

    got = client.disks.artifacts.get(
        disk.id, file_path="/docs/", filename="notes.md", with_public_url=True, with_content=True
    )
    assert got.artifact == artifact
    assert (got.content.type, got.content.raw) == ("text", "# Notes\n\nBuy milk.\n")
    opened = open_link(got.public_url)
    assert (opened.status_code, opened.content) == (200, b"# Notes\n\nBuy milk.\n")

    updated = client.disks.artifacts.update(disk.id, file_path="/docs/", filename="notes.md", meta={"author": "bob"})
    assert own_meta(updated.artifact) == {"author": "bob"}

    listed = client.disks.artifacts.list(disk.id, path="/docs/")
    assert listed.artifacts == [updated.artifact]
    assert client.disks.artifacts.list(disk.id).directories == ["docs"]
    assert names(client.disks.artifacts.grep_artifacts(disk.id, query="buy m.lk")) == ["/docs/notes.md"]
    assert names(client.disks.artifacts.glob_artifacts(disk.id, query="/docs/*.md")) == ["/docs/notes.md"]

    client.disks.artifacts.delete(disk.id, file_path="/docs/", filename="notes.md")
    assert client.disks.artifacts.list(disk.id, path="/docs/").artifacts == []
    client.disks.delete(disk.id)
    assert disk.id not in [each.id for each in client.disks.list(limit=200, time_desc=True).items]


# ----- disks -----


def test_a_disk_belongs_to_a_project_and_to_a_user_if_one_is_named(client):
    nobodys = client.disks.create()
    first, second = client.disks.create(user="alice@example.org"), client.disks.create(user="alice@example.org")
    other = client.disks.create(user="a/b ü寿司")
    assert nobodys.user_id is None
    assert first.user_id == second.user_id != other.user_id is not None
    assert {disk.project_id for disk in (first, second, other)} == {nobodys.project_id}
    assert len({nobodys.id, first.id, second.id, other.id}) == 4
    assert when(first.created_at) == when(first.updated_at)

    assert [disk.id for disk in client.disks.list(user="alice@example.org").items] == [first.id, second.id]
    assert client.disks.list(user="a/b ü寿司").items == [other]
    assert client.disks.list(user="alice").items == []


def test_paging_shows_every_disk_once_in_both_directions(client):
    made = [client.disks.create(user="pager").id for _ in range(5)]

    def walk(**order):
        pages, cursor = [], None
        while True:
            page = client.disks.list(user="pager", limit=2, cursor=cursor, **order)
            pages.append([disk.id for disk in page.items])
            if not page.has_more:
                assert not page.next_cursor
                return pages
            cursor = page.next_cursor

    assert walk() == [made[:2], made[2:4], made[4:]]
    assert walk(time_desc=True) == [made[:2:-1], made[2:0:-1], made[:1]]
    whole = client.disks.list(user="pager", limit=5)
    assert len(whole.items) == 5 and not whole.has_more


def test_a_page_is_twenty_disks_unless_told_otherwise(client):
    for _ in range(21):
        client.disks.create(user="many")
    page = client.disks.list(user="many")
    assert len(page.items) == 20 and page.has_more
    assert len(client.disks.list(user="many", limit=200).items) == 21


@pytest.mark.parametrize(
    "name, value", [("limit", 0), ("limit", -1), ("limit", 201), ("cursor", "garbage"), ("cursor", "MTIzfDQ1Ng")]
)
def test_paging_that_makes_no_sense_is_refused_by_name(client, name, value):
    with refused(400, name):
        client.disks.list(**{name: value})


def test_a_deleted_disk_is_gone_with_its_files(client):
    disk = client.disks.create(user="deleter")
    put(client, disk, "/a/b.txt", "b")
    url = get(client, disk, "/a/b.txt").public_url
    client.disks.delete(disk.id)
    assert client.disks.list(user="deleter").items == []
    with refused(403):
        get(client, disk, "/a/b.txt")
    with refused(404):
        put(client, disk, "/a/b.txt", "b")
    with refused(404):
        client.disks.delete(disk.id)
    assert open_link(url).status_code == 404


# ----- what is stored -----


@pytest.mark.parametrize(
    "name, content, mime, kind",
    [
        ("plain.txt", "just words\n", "text/plain; charset=utf-8", "text"),
        ("größe 寿司.md", "# Größe\n\n寿司 and more\n", "text/markdown; charset=utf-8", "text"),
        ("script.py", "import os\nprint(os.name)\n", "text/x-python; charset=utf-8", "code"),
        ("data.json", '{"a": [1, 2, {"b": null}]}', "application/json", "json"),
        ("table.csv", "name,age\nalice,30\nbob,31\n", "text/csv", "csv"),
        ("settings.yaml", "a: 1\nb: two\n", "text/yaml; charset=utf-8", "text"),
        ("Makefile", "all:\n\techo done\n", "text/plain; charset=utf-8", "text"),
        ("empty.txt", "", "text/plain", "text"),
    ],
)
def test_text_comes_back_as_it_went_in(client, disk, name, content, mime, kind):
    artifact = put(client, disk, f"/texts/{name}", content)
    assert info(artifact) == {"path": "/texts/", "filename": name, "mime": mime, "size": len(content.encode())}
    got = get(client, disk, f"/texts/{name}")
    assert (got.content.type, got.content.raw) == (kind, content)
    opened = open_link(got.public_url)
    assert opened.content == content.encode()
    assert opened.headers["content-type"] == mime


@pytest.mark.parametrize(
    "name, content, mime",
    [
        ("pixel.png", PNG, "image/png"),
        # The name does not decide, the content does.
        ("pixel.txt", PNG, "image/png"),
        ("raw.bin", bytes(range(256)) * 1000, "application/octet-stream"),
        ("long.bin", b"\0" + b"x" * (3 * MIB), "application/octet-stream"),
    ],
)
def test_bytes_come_back_as_they_went_in(client, disk, name, content, mime):
    artifact = put(client, disk, f"/{name}", content)
    assert (info(artifact)["mime"], info(artifact)["size"]) == (mime, len(content))
    opened = open_link(get(client, disk, f"/{name}").public_url)
    assert opened.content == content
    assert opened.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'


def test_what_is_no_text_has_no_content(client, disk):
    put(client, disk, "/raw.bin", bytes(range(256)))
    assert get(client, disk, "/raw.bin").content is None


@pytest.mark.parametrize("name, content", [("broken.json", '{"a": '), ("broken.csv", 'a,b\n1,2,3\n"x"y,2\n')])
def test_files_that_do_not_parse_are_delivered_without_content(client, disk, name, content):
    put(client, disk, f"/{name}", content)
    got = get(client, disk, f"/{name}")
    assert got.content is None
    assert open_link(got.public_url).text == content


def test_a_file_may_come_as_a_stream_or_a_tuple(client, disk):
    client.artifacts.upsert(disk.id, file=FileUpload("stream.txt", io.BytesIO(b"from a stream"), "text/plain"))
    client.artifacts.upsert(disk.id, file=("tuple.txt", b"from a tuple"))
    assert get(client, disk, "/stream.txt").content.raw == "from a stream"
    assert get(client, disk, "/tuple.txt").content.raw == "from a tuple"


def test_only_what_is_asked_for_is_answered(client, disk):
    put(client, disk, "/a.txt", "a")
    both = get(client, disk, "/a.txt")
    assert both.public_url and both.content
    neither = get(client, disk, "/a.txt", with_public_url=False, with_content=False)
    assert neither.public_url is None and neither.content is None


@pytest.mark.parametrize(
    "sent_path, sent_name, path, name",
    [
        (None, "a.txt", "/", "a.txt"),
        ("/docs/", "a.txt", "/docs/", "a.txt"),
        ("docs/deep/", "a.txt", "/docs/deep/", "a.txt"),
        # What follows the last slash is no part of the directory.
        ("/docs", "a.txt", "/", "a.txt"),
        ("/docs/b.txt", "a.txt", "/docs/", "a.txt"),
        # Nor is what a client puts before the name.
        ("/docs/", "from/elsewhere/a.txt", "/docs/", "a.txt"),
        ("/über uns/寿司/", "größe (1) & more.txt", "/über uns/寿司/", "größe (1) & more.txt"),
        ("/100%/a_b/", "50%_+a=b&c#d?.txt", "/100%/a_b/", "50%_+a=b&c#d?.txt"),
        ("/", "n" * 255, "/", "n" * 255),
        ("/", "n" * 1024, "/", "n" * 1024),
    ],
)
def test_a_file_is_found_where_it_was_put(client, disk, sent_path, sent_name, path, name):
    artifact = client.artifacts.upsert(disk.id, file=FileUpload(sent_name, b"here"), file_path=sent_path)
    assert (artifact.path, artifact.filename) == (path, name)
    assert client.artifacts.get(disk.id, file_path=path, filename=name).content.raw == "here"
    assert names(client.artifacts.list(disk.id, path=path).artifacts) == [path + name]


@pytest.mark.parametrize(
    "path, name",
    [
        ("/a/../b/", "x"),
        ("/../", "x"),
        ("/.../", "x"),
        ("C:\\docs/", "x"),
        ("/", ".."),
        ("/", "C:\\docs\\x"),
        ("/", "n" * 1025),
        ("/" + "d" * 1024 + "/", "x"),
    ],
)
def test_a_path_that_leads_elsewhere_is_refused(client, disk, path, name):
    with refused(400):
        client.artifacts.upsert(disk.id, file=FileUpload(name, b"x"), file_path=path)
    assert client.artifacts.glob_artifacts(disk.id, query="*") == []


def test_replacing_keeps_the_file_and_changes_its_content(client, disk):
    first = put(client, disk, "/a.txt", "first", meta={"kept": "no"})
    old_link = get(client, disk, "/a.txt").public_url
    second = put(client, disk, "/a.txt", "the second")
    assert own_meta(second) == {}
    assert info(second)["size"] == len("the second")
    assert second.created_at == first.created_at
    assert when(second.updated_at) > when(first.updated_at)
    assert get(client, disk, "/a.txt").content.raw == "the second"
    assert client.artifacts.list(disk.id).artifacts == [second]
    # A link stands for bytes, not for a name, and former contents are kept.
    assert open_link(old_link).text == "first"


def test_equal_content_is_two_files(client, disk, stranger):
    put(client, disk, "/a.txt", "the same in all three")
    put(client, disk, "/b.txt", "the same in all three")
    foreign = stranger.disks.create()
    put(stranger, foreign, "/c.txt", "the same in all three")
    client.artifacts.delete(disk.id, file_path="/", filename="a.txt")
    assert get(client, disk, "/b.txt").content.raw == "the same in all three"
    client.disks.delete(disk.id)
    assert get(stranger, foreign, "/c.txt").content.raw == "the same in all three"


# ----- meta -----


def test_meta_is_kept_as_it_is(client, disk):
    meta = {"text": "ü\n\"'", "n": [1, -2.5, 1e-7, 2**53 + 1, 10**30], "deep": {"a": {"b": [None, True]}}, "": ""}
    assert own_meta(put(client, disk, "/a.txt", "a", meta=meta)) == meta
    assert own_meta(get(client, disk, "/a.txt").artifact) == meta


def test_an_update_replaces_all_meta_and_nothing_else(client, disk):
    stored = put(client, disk, "/a.txt", "a", meta={"one": 1, "two": 2})
    updated = client.artifacts.update(disk.id, file_path="/", filename="a.txt", meta={"two": "zwei"}).artifact
    assert own_meta(updated) == {"two": "zwei"}
    assert info(updated) == info(stored)
    assert updated.created_at == stored.created_at
    assert when(updated.updated_at) > when(stored.updated_at)
    assert get(client, disk, "/a.txt").artifact == updated
    cleared = client.artifacts.update(disk.id, file_path="/", filename="a.txt", meta={}).artifact
    assert own_meta(cleared) == {}
    assert get(client, disk, "/a.txt").content.raw == "a"


def test_the_servers_own_key_in_meta_is_refused(client, disk):
    with refused(400, "__artifact_info__"):
        put(client, disk, "/a.txt", "a", meta={"__artifact_info__": {}})
    assert client.artifacts.list(disk.id).artifacts == []
    stored = put(client, disk, "/a.txt", "a")
    with refused(400, "__artifact_info__"):
        client.artifacts.update(disk.id, file_path="/", filename="a.txt", meta={"__artifact_info__": {}})
    assert get(client, disk, "/a.txt").artifact == stored


# ----- public links -----


def test_a_link_is_the_same_within_the_hour(client, disk):
    """So that a prompt which contains it stays the same. It may change when an hour ends between the two questions."""
    put(client, disk, "/a.txt", "a")
    links = {get(client, disk, "/a.txt").public_url for _ in range(2)}
    again = {get(client, disk, "/a.txt").public_url for _ in range(2)}
    assert len(links) == 1 or len(again) == 1


def test_a_link_ends(client, disk):
    put(client, disk, "/a.txt", "a")
    assert open_link(get(client, disk, "/a.txt", expire=60).public_url).status_code == 200
    short = get(client, disk, "/a.txt", expire=1).public_url
    eventually(lambda: open_link(short).status_code == 404, "the end of a link of one second", seconds=5)


@pytest.mark.parametrize("expire", [0, -1, 7 * 24 * 3600 + 1, 2**63 - 1])
def test_a_link_without_a_sensible_end_is_refused(client, disk, expire):
    put(client, disk, "/a.txt", "a")
    with refused(400, "expire"):
        get(client, disk, "/a.txt", expire=expire)


def test_a_link_may_live_a_week(client, disk):
    put(client, disk, "/a.txt", "a")
    assert open_link(get(client, disk, "/a.txt", expire=7 * 24 * 3600).public_url).text == "a"


def test_a_link_opens_as_long_as_the_project_keeps_the_bytes(client, disk):
    put(client, disk, "/a.txt", "kept twice")
    put(client, disk, "/b.txt", "kept twice")
    url = get(client, disk, "/a.txt").public_url
    client.artifacts.delete(disk.id, file_path="/", filename="a.txt")
    assert open_link(url).text == "kept twice"
    client.artifacts.delete(disk.id, file_path="/", filename="b.txt")
    gone = open_link(url)
    assert (gone.status_code, gone.json()["code"]) == (404, 404)


def test_a_changed_link_does_not_open(client, disk):
    put(client, disk, "/a.txt", "a")
    url = get(client, disk, "/a.txt").public_url
    start = len(url) - len(urlsplit(url).path.rpartition("/")[2])
    for at in (start, (start + len(url)) // 2, len(url) - 3):
        changed = url[:at] + ("A" if url[at] != "A" else "B") + url[at + 1 :]
        assert open_link(changed).status_code == 404, at
    assert open_link(url[:-1]).status_code == 404
    assert open_link(url).status_code == 200


# ----- listing and searching -----


@pytest.fixture
def tree(client, disk):
    for path, content in {
        "/readme.md": "# Tree\n\nTODO: describe it\n",
        "/docs/a.md": "alpha\n",
        "/docs/b.md": "beta\ntodo later\n",
        "/docs/deep/c.md": "gamma\n",
        "/src/main.py": "def main():\n    pass  # TODO\n",
        "/src/a_b.py": "x = 1\n",
        "/src/axb.py": "x = 2\n",
        "/src/100%.txt": "all\n",
        "/data.bin": b"\0\1\2 TODO",
    }.items():
        put(client, disk, path, content)
    return disk


def test_a_listing_shows_one_directory(client, tree):
    root = client.artifacts.list(tree.id)
    assert names(root.artifacts) == ["/data.bin", "/readme.md"]
    assert root.directories == ["docs", "src"]
    assert client.artifacts.list(tree.id, path="/") == root
    docs = client.artifacts.list(tree.id, path="/docs/")
    assert names(docs.artifacts) == ["/docs/a.md", "/docs/b.md"]
    assert docs.directories == ["deep"]
    nothing = client.artifacts.list(tree.id, path="/doc/")
    assert (nothing.artifacts, nothing.directories) == ([], [])


@pytest.mark.parametrize("path", ["docs", "/docs", "docs/", "/docs/../"])
def test_a_listing_wants_a_whole_directory(client, tree, path):
    with refused(400):
        client.artifacts.list(tree.id, path=path)


@pytest.mark.parametrize(
    "query, found",
    [
        ("todo", ["/readme.md", "/docs/b.md", "/src/main.py"]),
        ("(?-i)todo", ["/docs/b.md"]),
        # Anchors stand for lines.
        ("^todo", ["/readme.md", "/docs/b.md"]),
        (r"^def \w+\(\):$", ["/src/main.py"]),
        ("alpha|gamma", ["/docs/a.md", "/docs/deep/c.md"]),
        ("no such words", []),
    ],
)
def test_grep_finds_files_by_their_text(client, tree, query, found):
    assert names(client.artifacts.grep_artifacts(tree.id, query=query)) == found


def test_grep_sees_the_current_content_only(client, disk):
    put(client, disk, "/a.txt", "before")
    put(client, disk, "/a.txt", "after")
    assert client.artifacts.grep_artifacts(disk.id, query="before") == []
    assert names(client.artifacts.grep_artifacts(disk.id, query="after")) == ["/a.txt"]


@pytest.mark.parametrize(
    "query, found",
    [
        ("*.md", ["/readme.md", "/docs/a.md", "/docs/b.md", "/docs/deep/c.md"]),
        ("**/*.py", ["/src/a_b.py", "/src/axb.py", "/src/main.py"]),
        ("/docs/*.md", ["/docs/a.md", "/docs/b.md", "/docs/deep/c.md"]),
        ("/docs/?.md", ["/docs/a.md", "/docs/b.md"]),
        ("/docs/[bc].md", ["/docs/b.md"]),
        # Ordinary characters here, wildcards in SQL.
        ("/src/a_b.py", ["/src/a_b.py"]),
        ("*100%.txt", ["/src/100%.txt"]),
        ("*%*", ["/src/100%.txt"]),
        ("*.PY", []),
        ("docs/*.md", []),
    ],
)
def test_glob_finds_files_by_their_names(client, tree, query, found):
    assert names(client.artifacts.glob_artifacts(tree.id, query=query)) == found


@pytest.mark.parametrize("way", ["grep_artifacts", "glob_artifacts"])
def test_a_search_has_a_limit(client, disk, way):
    search = getattr(client.artifacts, way)
    for number in range(3):
        put(client, disk, f"/{number}.txt", ".txt")
    query = "*.txt" if way == "glob_artifacts" else "txt"
    assert names(search(disk.id, query=query, limit=2)) == ["/0.txt", "/1.txt"]
    for limit in (-1, 201):
        with refused(400, "limit"):
            search(disk.id, query=query, limit=limit)
    with refused(400, "query"):
        search(disk.id, query="x" * 1001)


@pytest.mark.parametrize("query", ["(", "[", "a{2,1}", "(?P<n>", "((a{1000}){1000}){1000}"])
def test_a_regular_expression_that_is_none_is_refused(client, tree, query):
    with refused(400, "query"):
        client.artifacts.grep_artifacts(tree.id, query=query)


def test_a_search_stays_on_its_disk(client, tree):
    elsewhere = client.disks.create()
    assert client.artifacts.grep_artifacts(elsewhere.id, query="todo") == []
    assert client.artifacts.glob_artifacts(elsewhere.id, query="*") == []


def test_a_deleted_file_is_gone_and_the_others_stay(client, tree):
    client.artifacts.delete(tree.id, file_path="/docs/", filename="a.md")
    with refused(404, "artifact not found"):
        get(client, tree, "/docs/a.md")
    assert names(client.artifacts.list(tree.id, path="/docs/").artifacts) == ["/docs/b.md"]
    assert client.artifacts.grep_artifacts(tree.id, query="alpha") == []
    assert "/docs/a.md" not in names(client.artifacts.glob_artifacts(tree.id, query="*"))


# ----- refusals -----


def test_a_file_that_is_not_there_is_404(client, disk):
    put(client, disk, "/a.txt", "a")
    for call in (
        lambda at: client.artifacts.get(disk.id, **at),
        lambda at: client.artifacts.update(disk.id, **at, meta={"a": 1}),
        lambda at: client.artifacts.delete(disk.id, **at),
    ):
        with refused(404, "artifact not found"):
            call({"file_path": "/", "filename": "b.txt"})
        with refused(404, "artifact not found"):
            call({"file_path": "/b/", "filename": "a.txt"})
        # Case counts.
        with refused(404, "artifact not found"):
            call({"file_path": "/", "filename": "A.txt"})


@pytest.mark.parametrize("whose", ["another project's", "nobody's"])
def test_a_disk_that_is_not_ours_is_closed(client, disk, stranger, whose):
    stored = put(client, disk, "/a.txt", "a", meta={"kept": True})
    disk_id = disk.id if whose == "another project's" else NOBODYS
    at = {"file_path": "/", "filename": "a.txt"}
    files = stranger.artifacts
    for call in (
        lambda: files.get(disk_id, **at),
        lambda: files.update(disk_id, **at, meta={"kept": False}),
        lambda: files.delete(disk_id, **at),
        lambda: files.list(disk_id),
        lambda: files.grep_artifacts(disk_id, query="a"),
        lambda: files.glob_artifacts(disk_id, query="*"),
    ):
        with refused(403, "does not belong to this project"):
            call()
    for call in (
        lambda: files.upsert(disk_id, file=FileUpload("a.txt", b"changed")),
        lambda: stranger.disks.delete(disk_id),
    ):
        with refused(404, "disk not found or access denied"):
            call()
    assert disk.id not in [each.id for each in stranger.disks.list(limit=200).items]
    assert get(client, disk, "/a.txt").artifact == stored
    assert get(client, disk, "/a.txt").content.raw == "a"


def test_projects_share_no_users(client, stranger):
    mine, theirs = client.disks.create(user="shared"), stranger.disks.create(user="shared")
    assert mine.user_id != theirs.user_id
    assert client.disks.list(user="shared").items == [mine]
    assert stranger.disks.list(user="shared").items == [theirs]


def test_a_disk_id_that_is_none_is_refused_by_name(client):
    for call in (
        lambda: client.disks.delete("not-an-id"),
        lambda: client.artifacts.list("not-an-id"),
        lambda: client.artifacts.upsert("not-an-id", file=FileUpload("a.txt", b"a")),
    ):
        with refused(400, "disk_id"):
            call()


def test_a_file_of_just_the_limit_is_stored(client, disk):
    content = b"\0" * (16 * MIB)
    assert info(put(client, disk, "/big.bin", content))["size"] == len(content)
    assert open_link(get(client, disk, "/big.bin").public_url).content == content


@pytest.mark.parametrize("size", [16 * MIB + 1, 40 * MIB])
def test_a_file_over_the_limit_is_413(client, disk, size):
    """Also where it is so large that its length alone tells, while the SDK is still sending."""
    with refused(413, "16.00MB"):
        put(client, disk, "/big.bin", b"\0" * size)
    assert client.artifacts.list(disk.id).artifacts == []
    put(client, disk, "/small.bin", b"\0")


@pytest.mark.parametrize(
    "key", ["sk-ac-wrong", "sk-ac-", "your-root-api-bearer-token", "sk-ac-your-root-api-bearer-token2", "sk-ac-ü"]
)
def test_a_wrong_key_is_401(server, key):
    if not key.isascii():
        # The SDK cannot send this one; the socket can.
        answer = httpx.get(
            f"{server.base_url}/ping", headers={b"Authorization": f"Bearer {key}".encode()}, trust_env=False
        )
        assert (answer.status_code, answer.json()["code"]) == (401, 401)
        return
    with server.client(key) as client:
        for call in (client.ping, client.disks.list, client.disks.create, lambda: client.disks.delete(NOBODYS)):
            with refused(401, "Unauthorized"):
                call()


def test_a_deleted_project_is_gone_with_its_key(server, client):
    project, key = new_project(server)
    with server.client(key) as doomed:
        disk = doomed.disks.create()
        put(doomed, disk, "/a.txt", "a")
        url = get(doomed, disk, "/a.txt").public_url
        gone = httpx.delete(
            f"{server.origin}/admin/v1/project/{project}", headers={"X-Access-Token": ADMIN_TOKEN}, trust_env=False
        )
        assert gone.status_code == 200
        with refused(401):
            doomed.disks.list()
    assert open_link(url).status_code == 404
    assert client.ping() == "pong"


def test_projects_are_made_by_the_operator_only(server, client):
    url = f"{server.origin}/admin/v1/project"
    for headers in ({}, {"Authorization": f"Bearer {server.key}"}, {"X-Access-Token": "wrong"}):
        assert httpx.post(url, json={}, headers=headers, trust_env=False).status_code == 401
        assert httpx.delete(f"{url}/{NOBODYS}", headers=headers, trust_env=False).status_code == 401
    with refused(401), server.client(ADMIN_TOKEN) as operator:
        operator.disks.list()


# ----- the asynchronous client -----


def test_async_quickstart(server):
    async def steps(client):
        assert await client.ping() == "pong"
        disk = await client.disks.create(user="async")
        files = client.disks.artifacts
        await files.upsert(disk.id, file=FileUpload("a.md", b"# Async\n"), file_path="/docs/", meta={"n": 1})
        at = {"file_path": "/docs/", "filename": "a.md"}
        got = await files.get(disk.id, **at, with_public_url=True, with_content=True)
        assert got.content.raw == "# Async\n"
        assert open_link(got.public_url).text == "# Async\n"
        assert own_meta((await files.update(disk.id, **at, meta={"n": 2})).artifact) == {"n": 2}
        assert (await files.list(disk.id)).directories == ["docs"]
        assert names(await files.grep_artifacts(disk.id, query="async")) == ["/docs/a.md"]
        assert names(await files.glob_artifacts(disk.id, query="*.md")) == ["/docs/a.md"]
        await files.delete(disk.id, **at)
        with refused(404, "artifact not found"):
            await files.get(disk.id, **at)
        assert [each.id for each in (await client.disks.list(user="async")).items] == [disk.id]
        await client.disks.delete(disk.id)
        with refused(403):
            await files.list(disk.id)

    asynchronously(server, steps)


def test_many_files_at_once(server):
    async def steps(client):
        disk = await client.disks.create()
        contents = {f"{number:02}.txt": f"content {number}" for number in range(40)}
        await asyncio.gather(
            *(
                client.artifacts.upsert(disk.id, file=FileUpload(name, content.encode()))
                for name, content in contents.items()
            )
        )
        listed = await client.artifacts.list(disk.id)
        assert [artifact.filename for artifact in listed.artifacts] == sorted(contents)
        got = await asyncio.gather(
            *(client.artifacts.get(disk.id, file_path="/", filename=name) for name in contents)
        )
        assert [each.content.raw for each in got] == list(contents.values())

    asynchronously(server, steps)


def test_many_writers_of_one_file(server):
    """All succeed, one is the last, and readers in between see one content or another, whole."""

    async def steps(client):
        disk = await client.disks.create()
        contents = [f"{number} " * 50_000 for number in range(12)]
        upsert, at = client.artifacts.upsert, {"file_path": "/", "filename": "a.txt"}
        await upsert(disk.id, file=FileUpload("a.txt", contents[0].encode()))
        writes = [upsert(disk.id, file=FileUpload("a.txt", content.encode())) for content in contents]
        reads = [client.artifacts.get(disk.id, **at) for _ in range(12)]
        done = await asyncio.gather(*(step for pair in zip(writes, reads) for step in pair))
        assert {read.content.raw for read in done[1::2]} <= set(contents)
        listed = await client.artifacts.list(disk.id)
        assert len(listed.artifacts) == 1
        assert (await client.artifacts.get(disk.id, **at)).content.raw in contents

    asynchronously(server, steps)


def test_many_requests_name_a_new_user_at_once(server):
    async def steps(client):
        disks = await asyncio.gather(*(client.disks.create(user="new to all") for _ in range(16)))
        assert len({disk.user_id for disk in disks}) == 1

    asynchronously(server, steps)
