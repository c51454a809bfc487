"""Skills as users of the SDK work with them: creation, reading, download, changes on the disk, deletion."""

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
from zip_fixtures import add_skill, pack, skill_paths, send_archive, skill_md, unpack
from support import run_async, wait_until, open_link, raises_error
from raw_http import FORM, exchange, form_part, form_body

MIB = 1 << 20
UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"
# The smallest PNG: one pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010804000000b51c0c02"
    "0000000b4944415478da6364f80f00010501012718e3660000000049454e44ae426082"
)
# A file of each type; some contents do not match their names.
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


def get_file(client, skill, path, **options):
    return client.skills.get_file(skill_id=skill.id, file_path=path, **options)


def put_file(client, skill, name, content="x", directory="/", **options):
    """Stores a file on the skill's disk."""
    file = FileUpload(name, content.encode())
    return client.artifacts.upsert(skill.disk_id, file=file, file_path=directory, **options)


def remove_file(client, skill, name, directory="/"):
    client.artifacts.delete(skill.disk_id, file_path=directory, filename=name)


def list_skills(client, **options):
    """Returns the entries of the list as JSON."""
    return client.request("GET", "/agent_skills", params=options)["items"]


def ids(entries):
    return [entry["id"] for entry in entries]


def disk_ids(client):
    return [disk.id for disk in client.disks.list(limit=200, time_desc=True).items]


def updated_at(skill):
    return datetime.fromisoformat(skill.updated_at)


def download_zip(server, skill, key=None):
    """Downloads the archive, and returns the whole response."""
    url = f"{server.base_url}/agent_skills/{skill.id}/download_zip"
    return httpx.get(url, headers={"Authorization": f"Bearer {key or server.key}"}, trust_env=False)


def test_quickstart(client, tmp_path):
    """The whole life of a skill, in the order of the quickstart."""
    archive = pack(("SKILL.md", skill_md("pdf", "Reads PDF files")), ("scripts/run.py", "pass\n"), ("logo.png", PNG))
    skill = client.skills.create(file=FileUpload("pdf.zip", archive), user="skill quickstart", meta={"version": "1.0"})
    assert (skill.name, skill.description, skill.meta) == ("pdf", "Reads PDF files", {"version": "1.0"})
    assert skill_paths(skill) == ["SKILL.md", "scripts/run.py", "logo.png"]

    (entry,) = client.skills.list_catalog(user="skill quickstart").items
    assert (entry.name, entry.description) == ("pdf", "Reads PDF files")
    assert client.skills.get(skill.id).id == skill.id
    assert get_file(client, skill, "scripts/run.py").content.raw == "pass\n"
    assert open_link(get_file(client, skill, "logo.png").url).content == PNG

    download = client.skills.download(skill_id=skill.id, path=str(tmp_path / "pdf"))
    assert (download.name, download.description) == ("pdf", "Reads PDF files")
    assert (tmp_path / "pdf" / "logo.png").read_bytes() == PNG
    assert sorted(unpack(client.skills.download_zip(skill.id))) == sorted(skill_paths(skill))

    client.skills.delete(skill.id)
    assert client.skills.list_catalog(user="skill quickstart").items == []
    with raises_error(404, "skill not found"):
        client.skills.get(skill.id)


# ----- a skill -----


def test_a_skill_is_a_disk_with_a_name(client):
    skill = add_skill(client, ("notes/a.md", "# a\n"))
    assert skill.disk_id in disk_ids(client)
    assert client.artifacts.list(skill.disk_id).directories == ["notes"]
    (artifact,) = client.artifacts.list(skill.disk_id, path="/notes/").artifacts
    mime = "text/markdown; charset=utf-8"
    assert artifact.meta == {"__artifact_info__": {"path": "/notes/", "filename": "a.md", "mime": mime, "size": 4}}
    matches = client.artifacts.grep_artifacts(skill.disk_id, query="shows one")
    assert [match.filename for match in matches] == ["SKILL.md"]


def test_the_response_of_the_creation_equals_later_reads(client):
    skill = add_skill(client, user="skill ann", meta={"a": 1})
    assert client.skills.get(skill.id) == skill
    assert skill.created_at == skill.updated_at
    (entry,) = list_skills(client, user="skill ann")
    assert entry == skill.model_dump(exclude={"disk_id"})
    (disk,) = client.disks.list(user="skill ann").items
    assert (disk.id, disk.user_id) == (skill.disk_id, skill.user_id)


def test_a_skill_without_a_user_contains_null(client):
    skill = add_skill(client)
    response = client.request("GET", f"/agent_skills/{skill.id}")
    assert (response["user_id"], response["meta"]) == (None, None)
    assert set(response) == set(type(skill).model_fields)


def test_two_skills_may_have_the_same_name(client):
    first, second = (add_skill(client, name="same", user="skill same name") for _ in range(2))
    assert first.id != second.id and first.disk_id != second.disk_id
    assert ids(list_skills(client, user="skill same name")) == [first.id, second.id]


def test_metadata_is_preserved(client):
    meta = {"text": "ü\n\"'", "n": [1, -2.5, 1e-7, 2**53 + 1, 10**30], "deep": {"a": {"b": [None, True]}}, "": ""}
    skill = add_skill(client, meta=meta)
    assert skill.meta == client.skills.get(skill.id).meta == meta
    assert add_skill(client, meta={}).meta == {}


def test_numbers_in_metadata_are_stored_with_all_digits(server):
    meta = b'{"long":12345678901234567890.123456789012345,"money":1.10}'
    form = form_body(form_part("meta", meta), form_part("file", pack(("SKILL.md", skill_md())), filename="kit.zip"))
    created = exchange(server, "POST", "/api/v1/agent_skills", {"Content-Type": FORM}, form)
    assert created.status == 201
    current = exchange(server, "GET", f"/api/v1/agent_skills/{created.json()['data']['id']}")
    for response in (created, current):
        assert b"12345678901234567890.123456789012345" in response.body and b"1.10" in response.body


# ----- the list -----


@pytest.fixture(scope="module")
def five_skills(client):
    return [add_skill(client, name=f"s{number}", user="skill pager") for number in range(5)]


def read_pages(client, **options):
    """Returns the names on each page."""
    pages, cursor = [], None
    while True:
        page = client.skills.list_catalog(limit=2, cursor=cursor, **options)
        pages.append([item.name for item in page.items])
        assert bool(page.next_cursor) == page.has_more
        if not page.has_more:
            return pages
        cursor = page.next_cursor


def test_paging_returns_every_skill_once_in_both_directions(client, five_skills):
    assert read_pages(client, user="skill pager") == [["s0", "s1"], ["s2", "s3"], ["s4"]]
    assert read_pages(client, user="skill pager", time_desc=True) == [["s4", "s3"], ["s2", "s1"], ["s0"]]
    full_page = client.skills.list_catalog(user="skill pager", limit=5)
    assert len(full_page.items) == 5 and not full_page.has_more and full_page.next_cursor is None


def test_a_list_can_be_limited_to_one_user(client, five_skills):
    other = add_skill(client, name="other", user="skill pager@example.org")
    without_user = add_skill(client, name="without-user")
    assert ids(list_skills(client, user="skill pager")) == [skill.id for skill in five_skills]
    assert ids(list_skills(client, user="skill pager@example.org")) == [other.id]
    assert list_skills(client, user="skill page") == []
    newest = ids(list_skills(client, user="", time_desc="true", limit=2))
    assert newest == [without_user.id, other.id]


def test_a_page_has_twenty_skills_by_default(client):
    for _ in range(21):
        add_skill(client, user="skill many")
    assert len(list_skills(client, user="skill many")) == len(list_skills(client, user="skill many", limit="")) == 20
    assert len(list_skills(client, user="skill many", limit=200)) == 21
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
def test_the_error_names_an_invalid_list_parameter(client, name, value):
    with raises_error(400, name):
        list_skills(client, **{name: value})


def test_an_empty_list_is_returned(fresh_client):
    assert fresh_client.request("GET", "/agent_skills") == {"items": [], "has_more": False}


# ----- files of a skill -----


@pytest.mark.parametrize(
    "name, content, mime, content_type",
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
def test_text_is_returned_inline(client, name, content, mime, content_type):
    skill = add_skill(client, (f"in/{name}", content))
    response = client.request("GET", f"/agent_skills/{skill.id}/file", params={"file_path": f"in/{name}"})
    assert response == {"path": f"in/{name}", "mime": mime, "content": {"type": content_type, "raw": content}}


@pytest.mark.parametrize("path", ["img/logo.png", "img/größe 寿司.bin", "broken.json", "data/odd.csv", "wide.txt"])
def test_other_content_is_returned_as_a_signed_url(client, kit, path):
    file = client.request("GET", f"/agent_skills/{kit.id}/file", params={"file_path": path})
    assert set(file) == {"path", "mime", "url"} and file["path"] == path
    assert urlsplit(file["url"]).path.startswith("/api/v1/material/")
    response = open_link(file["url"])
    assert (response.status_code, response.content) == (200, FILES[path])
    assert response.headers["content-type"] == file["mime"]
    assert response.headers["etag"] == f'"{hashlib.sha256(FILES[path]).hexdigest()}"'


def test_a_signed_url_expires(client, kit):
    assert open_link(get_file(client, kit, "img/logo.png", expire=60).url).content == PNG
    assert open_link(get_file(client, kit, "img/logo.png", expire=7 * 24 * 3600).url).content == PNG
    expiring = get_file(client, kit, "img/logo.png", expire=1).url
    wait_until(lambda: open_link(expiring).status_code == 404, "a signed URL of one second expires", seconds=5)


@pytest.mark.parametrize("expire", [0, -60, 7 * 24 * 3600 + 1, "1m", "1.5"])
def test_a_signed_url_with_an_invalid_expiry_is_rejected(client, kit, expire):
    with raises_error(400, "expire"):
        client.request(
            "GET", f"/agent_skills/{kit.id}/file", params={"file_path": "img/logo.png", "expire": expire}
        )


@pytest.mark.parametrize(
    "path", ["./data/pages.json", "img/../data/pages.json", "data//pages.json", "data/./pages.json"]
)
def test_a_path_is_resolved(client, kit, path):
    file = get_file(client, kit, path)
    assert (file.path, file.content.raw) == (path, '{"pages": 3}')


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
def test_an_unknown_file_is_404(client, kit, path):
    with raises_error(404, "file not found"):
        get_file(client, kit, path)


def test_the_path_of_a_file_is_required(client, kit):
    for params in ({}, {"file_path": ""}):
        with raises_error(400, "file_path is required"):
            client.request("GET", f"/agent_skills/{kit.id}/file", params=params)


# ----- the whole skill -----


def test_a_download_contains_every_file_unchanged(client, kit, tmp_path):
    download = client.skills.download(skill_id=kit.id, path=str(tmp_path))
    assert sorted(download.files) == sorted(FILES)
    assert Path(download.dir_path) == tmp_path.resolve()
    assert {path: (tmp_path / path).read_bytes() for path in download.files} == FILES


def test_an_archive_contains_every_file_unchanged(client, kit):
    archive = client.skills.download_zip(kit.id)
    assert unpack(archive) == FILES
    with zipfile.ZipFile(io.BytesIO(archive)) as packed:
        assert packed.namelist() == skill_paths(client.skills.get(kit.id))
        assert {entry.compress_type for entry in packed.infolist()} == {zipfile.ZIP_DEFLATED}
        changed = datetime(*packed.getinfo("SKILL.md").date_time)
        assert abs((changed - updated_at(kit).replace(tzinfo=None)).total_seconds()) < 3
    # An upload of the archive creates the same skill.
    copy = send_archive(client, archive)
    assert (copy.name, copy.description) == (kit.name, kit.description)
    assert unpack(client.skills.download_zip(copy.id)) == FILES


@pytest.mark.parametrize(
    "name, ascii_name, encoded_name",
    [
        ("kit", "kit", "kit"),
        ("'größe \"x\" (1)'", "gr__e--x--(1)", "gr%C3%B6%C3%9Fe--x--%281%29"),
        ("50%;寿司", "50%;__", "50%25%3B%E5%AF%BF%E5%8F%B8"),
    ],
)
def test_the_archive_is_named_after_the_skill(server, client, name, ascii_name, encoded_name):
    response = download_zip(server, send_archive(client, pack(("SKILL.md", skill_md(name)))))
    assert (response.status_code, response.headers["content-type"]) == (200, "application/zip")
    assert response.headers["x-content-type-options"] == "nosniff"
    expected = f"attachment; filename=\"{ascii_name}.zip\"; filename*=UTF-8''{encoded_name}.zip"
    assert response.headers["content-disposition"] == expected


def test_an_archive_may_have_up_to_200_files(client):
    skill = add_skill(client, *((f"{n}.txt", str(n)) for n in range(199)))
    assert len(unpack(client.skills.download_zip(skill.id))) == 200
    put_file(client, skill, "one-more.txt")
    with raises_error(413, "too many files (201)", "200"):
        client.skills.download_zip(skill.id)
    assert len(client.skills.get(skill.id).file_index) == 201


def test_an_archive_may_have_up_to_50_mib(client):
    rest = 2 * MIB - len(skill_md())
    skill = add_skill(client, *((f"{n}.bin", bytes(16 * MIB)) for n in range(3)), ("rest.bin", bytes(rest)))
    assert sum(map(len, unpack(client.skills.download_zip(skill.id)).values())) == 50 * MIB
    put_file(client, skill, "one-more.txt")
    with raises_error(413, f"{50 * MIB + 1} bytes", f"{50 * MIB} bytes"):
        client.skills.download_zip(skill.id)


# ----- changes on the disk -----


def test_every_change_on_the_disk_updates_the_skill(client):
    skill = add_skill(client, ("a.txt", "a"))
    other_skill = add_skill(client)
    steps = [
        (lambda: put_file(client, skill, "new.md", "# new\n", "/notes/"), ["SKILL.md", "a.txt", "notes/new.md"]),
        (lambda: put_file(client, skill, "new.md", "# newer\n", "/notes/"), ["SKILL.md", "a.txt", "notes/new.md"]),
        (
            lambda: client.artifacts.update(skill.disk_id, file_path="/", filename="a.txt", meta={"a": 1}),
            ["SKILL.md", "a.txt", "notes/new.md"],
        ),
        (lambda: remove_file(client, skill, "new.md", "/notes/"), ["SKILL.md", "a.txt"]),
        (lambda: put_file(client, skill, "SKILL.md", skill_md("renamed", "Changed")), ["SKILL.md", "a.txt"]),
        (lambda: remove_file(client, skill, "SKILL.md"), ["a.txt"]),
        (lambda: remove_file(client, skill, "a.txt"), []),
    ]
    before = skill
    for change, expected in steps:
        change()
        now = client.skills.get(skill.id)
        assert skill_paths(now) == expected
        assert updated_at(now) > updated_at(before)
        # Reading the skill or the list does not change the time.
        assert client.skills.get(skill.id) == now
        (listed,) = [entry for entry in list_skills(client, time_desc="true", limit=50) if entry["id"] == skill.id]
        assert listed["updated_at"] == now.updated_at
        before = now
    # The name and the description are those of the creation.
    changing = {"file_index", "updated_at"}
    assert now.model_dump(exclude=changing) == skill.model_dump(exclude=changing)
    assert client.skills.get(other_skill.id) == other_skill
    assert unpack(client.skills.download_zip(skill.id)) == {}


def test_each_of_many_changes_updates_the_time(client):
    skill = add_skill(client)
    times = [updated_at(skill)]
    for number in range(20):
        put_file(client, skill, "a.txt", str(number))
        times.append(updated_at(client.skills.get(skill.id)))
    assert times == sorted(set(times))


def test_reading_does_not_update_the_time(client, kit, tmp_path):
    before = client.skills.get(kit.id)
    get_file(client, kit, "SKILL.md")
    client.skills.download(skill_id=kit.id, path=str(tmp_path))
    client.skills.download_zip(kit.id)
    client.artifacts.grep_artifacts(kit.disk_id, query="words")
    assert client.skills.get(kit.id) == before


def test_a_rejected_change_does_not_update_the_time(client):
    skill = add_skill(client)
    with raises_error(400):
        put_file(client, skill, "a.txt", directory="/../")
    with raises_error(404):
        remove_file(client, skill, "none.txt")
    assert client.skills.get(skill.id) == skill


def test_an_edited_file_is_returned_with_its_new_content(client):
    skill = add_skill(client, ("a.bin", b"\0first"))
    first = get_file(client, skill, "a.bin").url
    put_file(client, skill, "a.bin", "\0the second")
    assert open_link(get_file(client, skill, "a.bin").url).content == b"\0the second"
    assert open_link(first).content == b"\0first"
    put_file(client, skill, "SKILL.md", "changed")
    assert get_file(client, skill, "SKILL.md").content.raw == "changed"
    assert unpack(client.skills.download_zip(skill.id)) == {"SKILL.md": b"changed", "a.bin": b"\0the second"}


# ----- deletion -----


def test_deleting_a_skill_deletes_its_disk(client):
    skill, other = (add_skill(client, ("logo.png", PNG + bytes([n])), user="skill deleter") for n in range(2))
    link = get_file(client, skill, "logo.png").url
    client.skills.delete(skill.id)
    for call, words in [
        (lambda: client.skills.get(skill.id), "skill not found"),
        (lambda: get_file(client, skill, "logo.png"), "file not found"),
        (lambda: client.skills.download_zip(skill.id), "skill not found"),
        (lambda: client.skills.delete(skill.id), "agent skill not found or access denied"),
    ]:
        with raises_error(404, words):
            call()
    with raises_error(403):
        client.artifacts.list(skill.disk_id)
    assert ids(list_skills(client, user="skill deleter")) == [other.id]
    assert [disk.id for disk in client.disks.list(user="skill deleter").items] == [other.disk_id]
    assert open_link(link).status_code == 404
    assert client.skills.get(other.id) == other


def test_deleting_a_disk_deletes_its_skill(client):
    skill = add_skill(client, user="skill disk deleter")
    client.disks.delete(skill.disk_id)
    with raises_error(404, "skill not found"):
        client.skills.get(skill.id)
    assert list_skills(client, user="skill disk deleter") == []


def test_equal_content_survives_the_deletion_of_one_skill(client):
    content = b"\0equal in both"
    first, second = add_skill(client, ("a.bin", content)), add_skill(client, ("a.bin", content))
    client.skills.delete(first.id)
    assert open_link(get_file(client, second, "a.bin").url).content == content


# ----- access -----


@pytest.mark.parametrize("owner", ["another project", "no project"])
def test_a_skill_of_another_project_is_404(client, other_client, kit, owner):
    skill_id = kit.id if owner == "another project" else UNKNOWN_ID
    skills = other_client.skills
    for call, words in [
        (lambda: skills.get(skill_id), "skill not found"),
        (lambda: skills.get_file(skill_id=skill_id, file_path="SKILL.md"), "file not found"),
        (lambda: skills.get_file(skill_id=skill_id, file_path="img/logo.png"), "file not found"),
        (lambda: skills.download_zip(skill_id), "skill not found"),
        (lambda: skills.delete(skill_id), "agent skill not found or access denied"),
    ]:
        with raises_error(404, words):
            call()
    assert kit.id not in ids(list_skills(other_client, limit=200))
    assert unpack(client.skills.download_zip(kit.id)) == FILES


@pytest.mark.parametrize("skill_id", ["not-an-id", "123", UNKNOWN_ID + "0"])
def test_an_invalid_id_is_rejected(client, skill_id):
    for call in (
        lambda: client.skills.get(skill_id),
        lambda: client.skills.get_file(skill_id=skill_id, file_path="SKILL.md"),
        lambda: client.skills.delete(skill_id),
    ):
        with raises_error(400, "skill_id"):
            call()
    with raises_error(400, "invalid skill id"):
        client.skills.download_zip(skill_id)


def test_skill_routes_require_an_api_key(server, kit):
    path = f"/api/v1/agent_skills/{kit.id}"
    for url in ("/api/v1/agent_skills", path, f"{path}/file?file_path=SKILL.md", f"{path}/download_zip"):
        for key in (None, "Bearer sk-ac-wrong"):
            assert exchange(server, "GET", url, {"Authorization": key}).status == 401


# ----- idempotency -----


def test_a_repeated_upload_creates_one_skill(server, client):
    archive = pack(("SKILL.md", skill_md()), ("a.txt", "a"))

    def upload(user):
        form = form_body(form_part("user", user.encode()), form_part("file", archive, filename="kit.zip"))
        headers = {"Content-Type": FORM, "Idempotency-Key": "the-upload-of-a-kit"}
        return exchange(server, "POST", "/api/v1/agent_skills", headers, form)

    first, again, other = upload("skill once"), upload("skill once"), upload("skill not once")
    assert (first.status, first.headers["Idempotent-Replayed"]) == (201, None)
    assert (again.status, again.headers["Idempotent-Replayed"]) == (201, "true")
    assert again.body == first.body
    assert ids(list_skills(client, user="skill once")) == [json.loads(first.body)["data"]["id"]]
    assert other.status == 422 and "Idempotency-Key" in other.error_message()
    assert list_skills(client, user="skill not once") == []


# ----- the tools that the SDK gives to an agent -----


def test_the_tools_return_skills_and_their_files(client, kit):
    assert sorted(SKILL_TOOLS.tools) == ["get_skill", "get_skill_file"]
    context = SKILL_TOOLS.format_context(client, [kit.id])
    assert "<name>kit</name>" in context.get_context_prompt()
    output = SKILL_TOOLS.execute_tool(context, "get_skill", {"skill_name": "kit"})
    assert f"Files: {len(FILES)} file(s)" in output
    assert "  - scripts/run.py (text/x-python; charset=utf-8)" in output

    def read(path, **options):
        return SKILL_TOOLS.execute_tool(context, "get_skill_file", {"skill_name": "kit", "file_path": path, **options})

    assert read("scripts/run.py").endswith("Content (type: code):\nprint('run')")
    assert open_link(read("img/logo.png", expire=60).splitlines()[-1]).content == PNG
    with raises_error(404, "file not found"):
        read("none.txt")


# ----- the asynchronous client -----


def test_async_quickstart(server, tmp_path):
    async def steps(client):
        skill = await send_archive(client, pack(*FILES.items()), user="skill async", meta={"n": 1})
        assert sorted(skill_paths(await client.skills.get(skill.id))) == sorted(FILES)
        assert [item.name for item in (await client.skills.list_catalog(user="skill async")).items] == ["kit"]
        file = await client.skills.get_file(skill_id=skill.id, file_path="scripts/run.py")
        assert file.content.raw == "print('run')\n"
        await client.skills.download(skill_id=skill.id, path=str(tmp_path))
        assert {path: (tmp_path / path).read_bytes() for path in skill_paths(skill)} == FILES
        assert unpack(await client.skills.download_zip(skill.id)) == FILES
        context = await SKILL_TOOLS.async_format_context(client, [skill.id])
        assert "SKILL.md" in await SKILL_TOOLS.async_execute_tool(context, "get_skill", {"skill_name": "kit"})
        await client.skills.delete(skill.id)
        with raises_error(404, "skill not found"):
            await client.skills.get(skill.id)

    run_async(server, steps)


def test_skills_with_equal_files_are_created_concurrently(server):
    """All requests need contents that none of them has stored yet."""
    archive = pack(("SKILL.md", skill_md()), *((f"{n}.txt", f"new to all {n}") for n in range(20)))

    async def steps(client):
        skills = await asyncio.gather(*(send_archive(client, archive, user="skill new to all") for _ in range(12)))
        assert len({skill.id for skill in skills}) == 12
        assert len({skill.user_id for skill in skills}) == 1
        for skill in skills:
            assert unpack(await client.skills.download_zip(skill.id)) == unpack(archive)

    run_async(server, steps)


def test_files_that_are_stored_concurrently_are_in_the_skill(server):
    async def steps(client):
        skill = await send_archive(client, pack(("SKILL.md", skill_md())))
        puts = [
            client.artifacts.upsert(skill.disk_id, file=FileUpload(f"{n:02}.txt", str(n).encode())) for n in range(16)
        ]
        await asyncio.gather(*puts)
        now = await client.skills.get(skill.id)
        assert skill_paths(now) == [f"{n:02}.txt" for n in range(16)] + ["SKILL.md"]
        assert updated_at(now) > updated_at(skill)

    run_async(server, steps)
