"""Disks and artifacts, as an application uses them with the SDK."""

import asyncio
import hashlib
import io
from datetime import datetime, timedelta
from urllib.parse import urlsplit

import httpx
import pytest

from acontext import FileUpload
from support import ADMIN_TOKEN, new_project, open_link, raises_error, run_async, wait_until

MIB = 1 << 20
# The smallest PNG: one pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010804000000b51c0c02"
    "0000000b4944415478da6364f80f00010501012718e3660000000049454e44ae426082"
)
UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"


def store_file(client, disk, path, content="", **options):
    """Stores a file under its full path."""
    directory, _, name = path.rpartition("/")
    content = content.encode() if isinstance(content, str) else content
    return client.artifacts.upsert(disk.id, file=FileUpload(name, content), file_path=f"{directory}/", **options)


def get_file(client, disk, path, **options):
    directory, _, name = path.rpartition("/")
    return client.artifacts.get(disk.id, file_path=f"{directory}/", filename=name, **options)


def user_metadata(artifact):
    return {key: value for key, value in artifact.meta.items() if key != "__artifact_info__"}


def file_info(artifact):
    return artifact.meta["__artifact_info__"]


def full_paths(artifacts):
    return [artifact.path + artifact.filename for artifact in artifacts]


def parse_time(text):
    time = datetime.fromisoformat(text)
    assert time.utcoffset() == timedelta(0), text
    return time


def test_quickstart(client):
    """Creates, uses and deletes a disk, in the order of a quick start guide."""
    assert client.ping() == "pong"
    disk = client.disks.create()

    artifact = client.disks.artifacts.upsert(
        disk.id,
        file=FileUpload(filename="notes.md", content=b"# Notes\n\nBuy milk.\n"),
        file_path="/docs/",
        meta={"author": "alice"},
    )
    assert (artifact.disk_id, artifact.path, artifact.filename) == (disk.id, "/docs/", "notes.md")
    assert user_metadata(artifact) == {"author": "alice"}

    response = client.disks.artifacts.get(
        disk.id, file_path="/docs/", filename="notes.md", with_public_url=True, with_content=True
    )
    assert response.artifact == artifact
    assert (response.content.type, response.content.raw) == ("text", "# Notes\n\nBuy milk.\n")
    download = open_link(response.public_url)
    assert (download.status_code, download.content) == (200, b"# Notes\n\nBuy milk.\n")

    updated = client.disks.artifacts.update(disk.id, file_path="/docs/", filename="notes.md", meta={"author": "bob"})
    assert user_metadata(updated.artifact) == {"author": "bob"}

    listed = client.disks.artifacts.list(disk.id, path="/docs/")
    assert listed.artifacts == [updated.artifact]
    assert client.disks.artifacts.list(disk.id).directories == ["docs"]
    assert full_paths(client.disks.artifacts.grep_artifacts(disk.id, query="buy m.lk")) == ["/docs/notes.md"]
    assert full_paths(client.disks.artifacts.glob_artifacts(disk.id, query="/docs/*.md")) == ["/docs/notes.md"]

    client.disks.artifacts.delete(disk.id, file_path="/docs/", filename="notes.md")
    assert client.disks.artifacts.list(disk.id, path="/docs/").artifacts == []
    client.disks.delete(disk.id)
    assert disk.id not in [each.id for each in client.disks.list(limit=200, time_desc=True).items]


# ----- disks -----


def test_a_disk_belongs_to_a_project_and_optionally_a_user(client):
    without_user = client.disks.create()
    first, second = client.disks.create(user="alice@example.org"), client.disks.create(user="alice@example.org")
    other = client.disks.create(user="a/b ü寿司")
    assert without_user.user_id is None
    assert first.user_id == second.user_id != other.user_id is not None
    assert {disk.project_id for disk in (first, second, other)} == {without_user.project_id}
    assert len({without_user.id, first.id, second.id, other.id}) == 4
    assert parse_time(first.created_at) == parse_time(first.updated_at)

    assert [disk.id for disk in client.disks.list(user="alice@example.org").items] == [first.id, second.id]
    assert client.disks.list(user="a/b ü寿司").items == [other]
    assert client.disks.list(user="alice").items == []


def test_paging_returns_every_disk_once_in_both_orders(client):
    disk_ids = [client.disks.create(user="pager").id for _ in range(5)]

    def read_pages(**order):
        pages, cursor = [], None
        while True:
            page = client.disks.list(user="pager", limit=2, cursor=cursor, **order)
            pages.append([disk.id for disk in page.items])
            if not page.has_more:
                assert not page.next_cursor
                return pages
            cursor = page.next_cursor

    assert read_pages() == [disk_ids[:2], disk_ids[2:4], disk_ids[4:]]
    assert read_pages(time_desc=True) == [disk_ids[:2:-1], disk_ids[2:0:-1], disk_ids[:1]]
    single_page = client.disks.list(user="pager", limit=5)
    assert len(single_page.items) == 5 and not single_page.has_more


def test_the_default_page_has_twenty_disks(client):
    for _ in range(21):
        client.disks.create(user="many")
    page = client.disks.list(user="many")
    assert len(page.items) == 20 and page.has_more
    assert len(client.disks.list(user="many", limit=200).items) == 21


@pytest.mark.parametrize(
    "name, value", [("limit", 0), ("limit", -1), ("limit", 201), ("cursor", "garbage"), ("cursor", "MTIzfDQ1Ng")]
)
def test_invalid_paging_is_an_error_that_names_the_parameter(client, name, value):
    with raises_error(400, name):
        client.disks.list(**{name: value})


def test_a_disk_is_deleted_with_its_files(client):
    disk = client.disks.create(user="deleter")
    store_file(client, disk, "/a/b.txt", "b")
    url = get_file(client, disk, "/a/b.txt").public_url
    client.disks.delete(disk.id)
    assert client.disks.list(user="deleter").items == []
    with raises_error(403):
        get_file(client, disk, "/a/b.txt")
    with raises_error(404):
        store_file(client, disk, "/a/b.txt", "b")
    with raises_error(404):
        client.disks.delete(disk.id)
    assert open_link(url).status_code == 404


# ----- content -----


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
def test_stored_text_is_returned_unchanged(client, disk, name, content, mime, kind):
    artifact = store_file(client, disk, f"/texts/{name}", content)
    assert file_info(artifact) == {"path": "/texts/", "filename": name, "mime": mime, "size": len(content.encode())}
    response = get_file(client, disk, f"/texts/{name}")
    assert (response.content.type, response.content.raw) == (kind, content)
    download = open_link(response.public_url)
    assert download.content == content.encode()
    assert download.headers["content-type"] == mime


@pytest.mark.parametrize(
    "name, content, mime",
    [
        ("pixel.png", PNG, "image/png"),
        # The media type is derived from the content, not from the name.
        ("pixel.txt", PNG, "image/png"),
        ("raw.bin", bytes(range(256)) * 1000, "application/octet-stream"),
        ("long.bin", b"\0" + b"x" * (3 * MIB), "application/octet-stream"),
    ],
)
def test_stored_bytes_are_returned_unchanged(client, disk, name, content, mime):
    artifact = store_file(client, disk, f"/{name}", content)
    assert (file_info(artifact)["mime"], file_info(artifact)["size"]) == (mime, len(content))
    download = open_link(get_file(client, disk, f"/{name}").public_url)
    assert download.content == content
    assert download.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'


def test_binary_files_have_no_content_in_the_response(client, disk):
    store_file(client, disk, "/raw.bin", bytes(range(256)))
    assert get_file(client, disk, "/raw.bin").content is None


@pytest.mark.parametrize("name, content", [("broken.json", '{"a": '), ("broken.csv", 'a,b\n1,2,3\n"x"y,2\n')])
def test_unparsable_files_have_no_content_in_the_response(client, disk, name, content):
    store_file(client, disk, f"/{name}", content)
    response = get_file(client, disk, f"/{name}")
    assert response.content is None
    assert open_link(response.public_url).text == content


def test_a_file_can_be_a_stream_or_a_tuple(client, disk):
    client.artifacts.upsert(disk.id, file=FileUpload("stream.txt", io.BytesIO(b"from a stream"), "text/plain"))
    client.artifacts.upsert(disk.id, file=("tuple.txt", b"from a tuple"))
    assert get_file(client, disk, "/stream.txt").content.raw == "from a stream"
    assert get_file(client, disk, "/tuple.txt").content.raw == "from a tuple"


def test_link_and_content_are_only_returned_if_requested(client, disk):
    store_file(client, disk, "/a.txt", "a")
    both = get_file(client, disk, "/a.txt")
    assert both.public_url and both.content
    neither = get_file(client, disk, "/a.txt", with_public_url=False, with_content=False)
    assert neither.public_url is None and neither.content is None


@pytest.mark.parametrize(
    "sent_path, sent_name, path, name",
    [
        (None, "a.txt", "/", "a.txt"),
        ("/docs/", "a.txt", "/docs/", "a.txt"),
        ("docs/deep/", "a.txt", "/docs/deep/", "a.txt"),
        # The text after the last slash is not part of the directory.
        ("/docs", "a.txt", "/", "a.txt"),
        ("/docs/b.txt", "a.txt", "/docs/", "a.txt"),
        # Directories in the name of the upload are ignored.
        ("/docs/", "from/elsewhere/a.txt", "/docs/", "a.txt"),
        ("/über uns/寿司/", "größe (1) & more.txt", "/über uns/寿司/", "größe (1) & more.txt"),
        ("/100%/a_b/", "50%_+a=b&c#d?.txt", "/100%/a_b/", "50%_+a=b&c#d?.txt"),
        ("/", "n" * 255, "/", "n" * 255),
        ("/", "n" * 1024, "/", "n" * 1024),
    ],
)
def test_a_file_is_stored_under_its_normalized_path(client, disk, sent_path, sent_name, path, name):
    artifact = client.artifacts.upsert(disk.id, file=FileUpload(sent_name, b"at its path"), file_path=sent_path)
    assert (artifact.path, artifact.filename) == (path, name)
    assert client.artifacts.get(disk.id, file_path=path, filename=name).content.raw == "at its path"
    assert full_paths(client.artifacts.list(disk.id, path=path).artifacts) == [path + name]


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
def test_an_invalid_path_is_an_error(client, disk, path, name):
    with raises_error(400):
        client.artifacts.upsert(disk.id, file=FileUpload(name, b"x"), file_path=path)
    assert client.artifacts.glob_artifacts(disk.id, query="*") == []


def test_replacing_a_file_keeps_its_creation_time(client, disk):
    first = store_file(client, disk, "/a.txt", "first", meta={"n": 1})
    old_link = get_file(client, disk, "/a.txt").public_url
    second = store_file(client, disk, "/a.txt", "the second")
    assert user_metadata(second) == {}
    assert file_info(second)["size"] == len("the second")
    assert second.created_at == first.created_at
    assert parse_time(second.updated_at) > parse_time(first.updated_at)
    assert get_file(client, disk, "/a.txt").content.raw == "the second"
    assert client.artifacts.list(disk.id).artifacts == [second]
    # A public link refers to a content, not to a path, and earlier versions are kept.
    assert open_link(old_link).text == "first"


def test_files_with_equal_content_are_independent(client, disk, other_client):
    store_file(client, disk, "/a.txt", "the same in all three")
    store_file(client, disk, "/b.txt", "the same in all three")
    other_disk = other_client.disks.create()
    store_file(other_client, other_disk, "/c.txt", "the same in all three")
    client.artifacts.delete(disk.id, file_path="/", filename="a.txt")
    assert get_file(client, disk, "/b.txt").content.raw == "the same in all three"
    client.disks.delete(disk.id)
    assert get_file(other_client, other_disk, "/c.txt").content.raw == "the same in all three"


# ----- meta -----


def test_meta_is_returned_unchanged(client, disk):
    meta = {"text": "ü\n\"'", "n": [1, -2.5, 1e-7, 2**53 + 1, 10**30], "deep": {"a": {"b": [None, True]}}, "": ""}
    assert user_metadata(store_file(client, disk, "/a.txt", "a", meta=meta)) == meta
    assert user_metadata(get_file(client, disk, "/a.txt").artifact) == meta


def test_an_update_replaces_all_meta(client, disk):
    stored = store_file(client, disk, "/a.txt", "a", meta={"one": 1, "two": 2})
    updated = client.artifacts.update(disk.id, file_path="/", filename="a.txt", meta={"two": "zwei"}).artifact
    assert user_metadata(updated) == {"two": "zwei"}
    assert file_info(updated) == file_info(stored)
    assert updated.created_at == stored.created_at
    assert parse_time(updated.updated_at) > parse_time(stored.updated_at)
    assert get_file(client, disk, "/a.txt").artifact == updated
    cleared = client.artifacts.update(disk.id, file_path="/", filename="a.txt", meta={}).artifact
    assert user_metadata(cleared) == {}
    assert get_file(client, disk, "/a.txt").content.raw == "a"


def test_the_reserved_key_in_meta_is_an_error(client, disk):
    with raises_error(400, "__artifact_info__"):
        store_file(client, disk, "/a.txt", "a", meta={"__artifact_info__": {}})
    assert client.artifacts.list(disk.id).artifacts == []
    stored = store_file(client, disk, "/a.txt", "a")
    with raises_error(400, "__artifact_info__"):
        client.artifacts.update(disk.id, file_path="/", filename="a.txt", meta={"__artifact_info__": {}})
    assert get_file(client, disk, "/a.txt").artifact == stored


# ----- public links -----


def test_a_link_is_the_same_within_an_hour(client, disk):
    """A prompt that contains the link must not change. The link may change if an hour ends between two requests."""
    store_file(client, disk, "/a.txt", "a")
    first_pair = {get_file(client, disk, "/a.txt").public_url for _ in range(2)}
    second_pair = {get_file(client, disk, "/a.txt").public_url for _ in range(2)}
    assert len(first_pair) == 1 or len(second_pair) == 1


def test_a_link_expires(client, disk):
    store_file(client, disk, "/a.txt", "a")
    assert open_link(get_file(client, disk, "/a.txt", expire=60).public_url).status_code == 200
    link = get_file(client, disk, "/a.txt", expire=1).public_url
    wait_until(lambda: open_link(link).status_code == 404, "a link of one second has expired", seconds=5)


@pytest.mark.parametrize("expire", [0, -1, 7 * 24 * 3600 + 1, 2**63 - 1])
def test_an_invalid_expiry_is_an_error(client, disk, expire):
    store_file(client, disk, "/a.txt", "a")
    with raises_error(400, "expire"):
        get_file(client, disk, "/a.txt", expire=expire)


def test_a_link_can_be_valid_for_a_week(client, disk):
    store_file(client, disk, "/a.txt", "a")
    assert open_link(get_file(client, disk, "/a.txt", expire=7 * 24 * 3600).public_url).text == "a"


def test_a_link_is_valid_while_the_project_has_the_content(client, disk):
    store_file(client, disk, "/a.txt", "content of two files")
    store_file(client, disk, "/b.txt", "content of two files")
    url = get_file(client, disk, "/a.txt").public_url
    client.artifacts.delete(disk.id, file_path="/", filename="a.txt")
    assert open_link(url).text == "content of two files"
    client.artifacts.delete(disk.id, file_path="/", filename="b.txt")
    response = open_link(url)
    assert (response.status_code, response.json()["code"]) == (404, 404)


def test_a_modified_link_is_404(client, disk):
    store_file(client, disk, "/a.txt", "a")
    url = get_file(client, disk, "/a.txt").public_url
    start = len(url) - len(urlsplit(url).path.rpartition("/")[2])
    for offset in (start, (start + len(url)) // 2, len(url) - 3):
        modified = url[:offset] + ("A" if url[offset] != "A" else "B") + url[offset + 1 :]
        assert open_link(modified).status_code == 404, offset
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
        store_file(client, disk, path, content)
    return disk


def test_a_listing_contains_one_directory(client, tree):
    root = client.artifacts.list(tree.id)
    assert full_paths(root.artifacts) == ["/data.bin", "/readme.md"]
    assert root.directories == ["docs", "src"]
    assert client.artifacts.list(tree.id, path="/") == root
    docs = client.artifacts.list(tree.id, path="/docs/")
    assert full_paths(docs.artifacts) == ["/docs/a.md", "/docs/b.md"]
    assert docs.directories == ["deep"]
    missing = client.artifacts.list(tree.id, path="/doc/")
    assert (missing.artifacts, missing.directories) == ([], [])


@pytest.mark.parametrize("path", ["docs", "/docs", "docs/", "/docs/../"])
def test_a_listing_requires_the_path_of_a_directory(client, tree, path):
    with raises_error(400):
        client.artifacts.list(tree.id, path=path)


@pytest.mark.parametrize(
    "query, expected",
    [
        ("todo", ["/readme.md", "/docs/b.md", "/src/main.py"]),
        ("(?-i)todo", ["/docs/b.md"]),
        # Anchors match at the start and end of lines.
        ("^todo", ["/readme.md", "/docs/b.md"]),
        (r"^def \w+\(\):$", ["/src/main.py"]),
        ("alpha|gamma", ["/docs/a.md", "/docs/deep/c.md"]),
        ("no such words", []),
    ],
)
def test_grep_finds_files_by_their_content(client, tree, query, expected):
    assert full_paths(client.artifacts.grep_artifacts(tree.id, query=query)) == expected


def test_grep_searches_only_the_current_content(client, disk):
    store_file(client, disk, "/a.txt", "before")
    store_file(client, disk, "/a.txt", "after")
    assert client.artifacts.grep_artifacts(disk.id, query="before") == []
    assert full_paths(client.artifacts.grep_artifacts(disk.id, query="after")) == ["/a.txt"]


@pytest.mark.parametrize(
    "query, expected",
    [
        ("*.md", ["/readme.md", "/docs/a.md", "/docs/b.md", "/docs/deep/c.md"]),
        ("**/*.py", ["/src/a_b.py", "/src/axb.py", "/src/main.py"]),
        ("/docs/*.md", ["/docs/a.md", "/docs/b.md", "/docs/deep/c.md"]),
        ("/docs/?.md", ["/docs/a.md", "/docs/b.md"]),
        ("/docs/[bc].md", ["/docs/b.md"]),
        # `_` and `%` are ordinary characters, although they are wildcards in SQL.
        ("/src/a_b.py", ["/src/a_b.py"]),
        ("*100%.txt", ["/src/100%.txt"]),
        ("*%*", ["/src/100%.txt"]),
        ("*.PY", []),
        ("docs/*.md", []),
    ],
)
def test_glob_finds_files_by_their_paths(client, tree, query, expected):
    assert full_paths(client.artifacts.glob_artifacts(tree.id, query=query)) == expected


@pytest.mark.parametrize("method", ["grep_artifacts", "glob_artifacts"])
def test_a_search_has_a_limit(client, disk, method):
    search = getattr(client.artifacts, method)
    for number in range(3):
        store_file(client, disk, f"/{number}.txt", ".txt")
    query = "*.txt" if method == "glob_artifacts" else "txt"
    assert full_paths(search(disk.id, query=query, limit=2)) == ["/0.txt", "/1.txt"]
    for limit in (-1, 201):
        with raises_error(400, "limit"):
            search(disk.id, query=query, limit=limit)
    with raises_error(400, "query"):
        search(disk.id, query="x" * 1001)


@pytest.mark.parametrize("query", ["(", "[", "a{2,1}", "(?P<n>", "((a{1000}){1000}){1000}"])
def test_an_invalid_regular_expression_is_an_error(client, tree, query):
    with raises_error(400, "query"):
        client.artifacts.grep_artifacts(tree.id, query=query)


def test_a_search_is_limited_to_its_disk(client, tree):
    other_disk = client.disks.create()
    assert client.artifacts.grep_artifacts(other_disk.id, query="todo") == []
    assert client.artifacts.glob_artifacts(other_disk.id, query="*") == []


def test_a_deleted_file_is_404_and_not_listed(client, tree):
    client.artifacts.delete(tree.id, file_path="/docs/", filename="a.md")
    with raises_error(404, "artifact not found"):
        get_file(client, tree, "/docs/a.md")
    assert full_paths(client.artifacts.list(tree.id, path="/docs/").artifacts) == ["/docs/b.md"]
    assert client.artifacts.grep_artifacts(tree.id, query="alpha") == []
    assert "/docs/a.md" not in full_paths(client.artifacts.glob_artifacts(tree.id, query="*"))


# ----- errors -----


def test_a_missing_file_is_404(client, disk):
    store_file(client, disk, "/a.txt", "a")
    for call in (
        lambda location: client.artifacts.get(disk.id, **location),
        lambda location: client.artifacts.update(disk.id, **location, meta={"a": 1}),
        lambda location: client.artifacts.delete(disk.id, **location),
    ):
        with raises_error(404, "artifact not found"):
            call({"file_path": "/", "filename": "b.txt"})
        with raises_error(404, "artifact not found"):
            call({"file_path": "/b/", "filename": "a.txt"})
        # Names are case-sensitive.
        with raises_error(404, "artifact not found"):
            call({"file_path": "/", "filename": "A.txt"})


@pytest.mark.parametrize("owner", ["another project", "none"])
def test_a_disk_of_another_project_cannot_be_used(client, disk, other_client, owner):
    stored = store_file(client, disk, "/a.txt", "a", meta={"n": 1})
    disk_id = disk.id if owner == "another project" else UNKNOWN_ID
    location = {"file_path": "/", "filename": "a.txt"}
    files = other_client.artifacts
    for call in (
        lambda: files.get(disk_id, **location),
        lambda: files.update(disk_id, **location, meta={"n": 2}),
        lambda: files.delete(disk_id, **location),
        lambda: files.list(disk_id),
        lambda: files.grep_artifacts(disk_id, query="a"),
        lambda: files.glob_artifacts(disk_id, query="*"),
    ):
        with raises_error(403, "does not belong to this project"):
            call()
    for call in (
        lambda: files.upsert(disk_id, file=FileUpload("a.txt", b"changed")),
        lambda: other_client.disks.delete(disk_id),
    ):
        with raises_error(404, "disk not found or access denied"):
            call()
    assert disk.id not in [each.id for each in other_client.disks.list(limit=200).items]
    assert get_file(client, disk, "/a.txt").artifact == stored
    assert get_file(client, disk, "/a.txt").content.raw == "a"


def test_projects_do_not_share_users(client, other_client):
    own_disk, other_disk = client.disks.create(user="shared"), other_client.disks.create(user="shared")
    assert own_disk.user_id != other_disk.user_id
    assert client.disks.list(user="shared").items == [own_disk]
    assert other_client.disks.list(user="shared").items == [other_disk]


def test_an_invalid_disk_id_is_an_error_that_names_it(client):
    for call in (
        lambda: client.disks.delete("not-an-id"),
        lambda: client.artifacts.list("not-an-id"),
        lambda: client.artifacts.upsert("not-an-id", file=FileUpload("a.txt", b"a")),
    ):
        with raises_error(400, "disk_id"):
            call()


def test_a_file_of_exactly_the_limit_is_stored(client, disk):
    content = b"\0" * (16 * MIB)
    assert file_info(store_file(client, disk, "/big.bin", content))["size"] == len(content)
    assert open_link(get_file(client, disk, "/big.bin").public_url).content == content


@pytest.mark.parametrize("size", [16 * MIB + 1, 40 * MIB])
def test_a_file_over_the_limit_is_413(client, disk, size):
    """The larger file is rejected because of its content length, while the SDK is still sending it."""
    with raises_error(413, "16.00MB"):
        store_file(client, disk, "/big.bin", b"\0" * size)
    assert client.artifacts.list(disk.id).artifacts == []
    store_file(client, disk, "/small.bin", b"\0")


@pytest.mark.parametrize(
    "key", ["sk-ac-wrong", "sk-ac-", "your-root-api-bearer-token", "sk-ac-your-root-api-bearer-token2", "sk-ac-ü"]
)
def test_an_invalid_key_is_401(server, key):
    if not key.isascii():
        # The SDK cannot send this key, so the request is sent with httpx.
        response = httpx.get(
            f"{server.base_url}/ping", headers={b"Authorization": f"Bearer {key}".encode()}, trust_env=False
        )
        assert (response.status_code, response.json()["code"]) == (401, 401)
        return
    with server.client(key) as client:
        for call in (client.ping, client.disks.list, client.disks.create, lambda: client.disks.delete(UNKNOWN_ID)):
            with raises_error(401, "Unauthorized"):
                call()


def test_a_project_is_deleted_with_its_key(server, client):
    project, key = new_project(server)
    with server.client(key) as deleted_client:
        disk = deleted_client.disks.create()
        store_file(deleted_client, disk, "/a.txt", "a")
        url = get_file(deleted_client, disk, "/a.txt").public_url
        response = httpx.delete(
            f"{server.origin}/admin/v1/project/{project}", headers={"X-Access-Token": ADMIN_TOKEN}, trust_env=False
        )
        assert response.status_code == 200
        with raises_error(401):
            deleted_client.disks.list()
    assert open_link(url).status_code == 404
    assert client.ping() == "pong"


def test_projects_are_managed_only_with_the_admin_token(server, client):
    url = f"{server.origin}/admin/v1/project"
    for headers in ({}, {"Authorization": f"Bearer {server.key}"}, {"X-Access-Token": "wrong"}):
        assert httpx.post(url, json={}, headers=headers, trust_env=False).status_code == 401
        assert httpx.delete(f"{url}/{UNKNOWN_ID}", headers=headers, trust_env=False).status_code == 401
    with raises_error(401), server.client(ADMIN_TOKEN) as operator:
        operator.disks.list()


# ----- the asynchronous client -----


def test_async_quickstart(server):
    async def steps(client):
        assert await client.ping() == "pong"
        disk = await client.disks.create(user="async")
        files = client.disks.artifacts
        await files.upsert(disk.id, file=FileUpload("a.md", b"# Async\n"), file_path="/docs/", meta={"n": 1})
        location = {"file_path": "/docs/", "filename": "a.md"}
        response = await files.get(disk.id, **location, with_public_url=True, with_content=True)
        assert response.content.raw == "# Async\n"
        assert open_link(response.public_url).text == "# Async\n"
        assert user_metadata((await files.update(disk.id, **location, meta={"n": 2})).artifact) == {"n": 2}
        assert (await files.list(disk.id)).directories == ["docs"]
        assert full_paths(await files.grep_artifacts(disk.id, query="async")) == ["/docs/a.md"]
        assert full_paths(await files.glob_artifacts(disk.id, query="*.md")) == ["/docs/a.md"]
        await files.delete(disk.id, **location)
        with raises_error(404, "artifact not found"):
            await files.get(disk.id, **location)
        assert [each.id for each in (await client.disks.list(user="async")).items] == [disk.id]
        await client.disks.delete(disk.id)
        with raises_error(403):
            await files.list(disk.id)

    run_async(server, steps)


def test_concurrent_uploads_of_many_files(server):
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
        responses = await asyncio.gather(
            *(client.artifacts.get(disk.id, file_path="/", filename=name) for name in contents)
        )
        assert [each.content.raw for each in responses] == list(contents.values())

    run_async(server, steps)


def test_concurrent_writes_of_one_file(server):
    """All writes succeed, one of them is the last, and concurrent reads return one of the contents completely."""

    async def steps(client):
        disk = await client.disks.create()
        contents = [f"{number} " * 50_000 for number in range(12)]
        upsert, location = client.artifacts.upsert, {"file_path": "/", "filename": "a.txt"}
        await upsert(disk.id, file=FileUpload("a.txt", contents[0].encode()))
        writes = [upsert(disk.id, file=FileUpload("a.txt", content.encode())) for content in contents]
        reads = [client.artifacts.get(disk.id, **location) for _ in range(12)]
        results = await asyncio.gather(*(step for pair in zip(writes, reads) for step in pair))
        assert {read.content.raw for read in results[1::2]} <= set(contents)
        listed = await client.artifacts.list(disk.id)
        assert len(listed.artifacts) == 1
        assert (await client.artifacts.get(disk.id, **location)).content.raw in contents

    run_async(server, steps)


def test_concurrent_requests_create_a_user_once(server):
    async def steps(client):
        disks = await asyncio.gather(*(client.disks.create(user="created once") for _ in range(16)))
        assert len({disk.user_id for disk in disks}) == 1

    run_async(server, steps)
