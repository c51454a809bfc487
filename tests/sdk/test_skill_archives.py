"""Archives of skills: their files, the front matter of SKILL.md, and invalid archives."""

import io
import os
import shutil
import stat
import struct
import zipfile

import pytest

from acontext.errors import APIError
from zip_fixtures import add_skill, pack, skill_paths, send_archive, skill_md
from support import new_project, raises_error
from raw_http import FORM, exchange, form_part, form_body

MIB = 1 << 20
SKILL_MD = ("SKILL.md", skill_md())


@pytest.fixture(scope="module")
def client_without_skills(server):
    _, key = new_project(server)
    with server.client(key) as client:
        yield client


@pytest.fixture
def empty_client(client_without_skills):
    """A client of a project without disks and users. What a test stores is deleted after it."""
    client = client_without_skills
    yield client
    for disk in client.disks.list(limit=200).items:
        client.disks.delete(disk.id)
    for user in client.users.list().items:
        client.users.delete(user.identifier)


def create_from_skill_md(client, text):
    """Creates a skill with this SKILL.md, and returns its name and description."""
    skill = send_archive(client, pack(("SKILL.md", text)))
    return skill.name, skill.description


def front_matter(name, description="words"):
    return f"---\nname: {name}\ndescription: {description}\n---\n"


def assert_empty(client):
    assert client.skills.list_catalog().items == []
    assert client.disks.list().items == []
    assert client.users.list().items == []


# ----- files -----


def test_files_are_returned_in_archive_order_and_later_by_path(client):
    texts = [("data/pages.json", "{}"), ("a.txt", "a"), ("data/deep/x.csv", "a,b\n1,2\n")]
    created = send_archive(client, pack(("scripts/run.py", "pass\n"), SKILL_MD, *texts))
    assert [(file.path, file.mime) for file in created.file_index] == [
        ("scripts/run.py", "text/x-python; charset=utf-8"),
        ("SKILL.md", "text/markdown; charset=utf-8"),
        ("data/pages.json", "application/json"),
        ("a.txt", "text/plain; charset=utf-8"),
        ("data/deep/x.csv", "text/csv"),
    ]
    current = client.skills.get(created.id)
    assert skill_paths(current) == ["SKILL.md", "a.txt", "data/pages.json", "data/deep/x.csv", "scripts/run.py"]
    assert sorted(current.file_index, key=str) == sorted(created.file_index, key=str)
    assert current.model_copy(update={"file_index": created.file_index}) == created


@pytest.mark.parametrize(
    "packed, expected",
    [
        # A directory that contains all files is removed.
        (["kit/SKILL.md", "kit/ref/a.md"], ["SKILL.md", "ref/a.md"]),
        (["kit/", "kit/SKILL.md", "kit/ref/", "kit/ref/a.md"], ["SKILL.md", "ref/a.md"]),
        # Only one level is removed, and only if it contains all files.
        (["a/b/SKILL.md", "a/b/x.txt"], ["b/SKILL.md", "b/x.txt"]),
        (["a/SKILL.md", "b/x.txt"], ["a/SKILL.md", "b/x.txt"]),
        (["kit/SKILL.md", "x.txt"], ["kit/SKILL.md", "x.txt"]),
        (["kit/SKILL.md", "kit2/x.txt"], ["kit/SKILL.md", "kit2/x.txt"]),
        # Files that macOS adds are ignored, also when the common directory is determined.
        (
            ["kit/SKILL.md", "__MACOSX/kit/._SKILL.md", "kit/.DS_Store", "kit/._a.txt", "kit/a.txt", "kit/.keep"],
            ["SKILL.md", "a.txt", ".keep"],
        ),
        (["__MACOSX/._x", "SKILL.md"], ["SKILL.md"]),
        # A path can be written in several ways.
        (["./SKILL.md", "./a//b.txt"], ["SKILL.md", "a/b.txt"]),
        (["SKILL.md", "größe/寿司 (1).txt"], ["SKILL.md", "größe/寿司 (1).txt"]),
        (["SKILL.md", "100%/a_b&c#d?.txt"], ["SKILL.md", "100%/a_b&c#d?.txt"]),
    ],
)
def test_files_have_their_paths_in_the_archive(client, packed, expected):
    skill = send_archive(client, pack(*((name, skill_md() if name.endswith("SKILL.md") else "x") for name in packed)))
    assert skill_paths(skill) == expected
    for path in expected:
        assert client.skills.get_file(skill_id=skill.id, file_path=path).content.raw in (skill_md(), "x", "")


def test_an_empty_file_is_accepted(client):
    skill = add_skill(client, ("empty.txt", ""), (".gitkeep", ""))
    assert skill_paths(skill) == ["SKILL.md", "empty.txt", ".gitkeep"]
    assert client.skills.get_file(skill_id=skill.id, file_path="empty.txt").content.raw == ""


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_may_be_compressed_or_not(client, method):
    skill = send_archive(client, pack(SKILL_MD, ("a.txt", "a" * 5000), method=method))
    assert client.skills.get_file(skill_id=skill.id, file_path="a.txt").content.raw == "a" * 5000


def test_an_archive_may_be_a_tuple_with_a_stream(client):
    skill = client.skills.create(file=("KIT.ZIP", io.BytesIO(pack(SKILL_MD)), "text/plain"))
    assert skill_paths(skill) == ["SKILL.md"]


class Pipe(io.BytesIO):
    """A stream in which the writer of an archive cannot seek."""

    def seekable(self):
        return False

    def tell(self):
        raise io.UnsupportedOperation

    seek = tell


def test_an_archive_may_be_written_to_a_pipe(client):
    """The sizes then follow the contents."""
    with zipfile.ZipFile(pipe := Pipe(), "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in (SKILL_MD, ("a.txt", "a" * 5000)):
            packed.writestr(name, content)
    skill = send_archive(client, pipe.getvalue())
    assert client.skills.get_file(skill_id=skill.id, file_path="a.txt").content.raw == "a" * 5000


def test_an_archive_may_use_zip64(client):
    with zipfile.ZipFile(archive := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in (SKILL_MD, ("a.txt", "a" * 5000)):
            with packed.open(name, "w", force_zip64=True) as file:
                file.write(content.encode())
    skill = send_archive(client, archive.getvalue())
    assert client.skills.get_file(skill_id=skill.id, file_path="a.txt").content.raw == "a" * 5000


def test_a_name_without_utf_8_is_read_as_cp437(client):
    skill = send_archive(client, pack(SKILL_MD, ("gr--e.txt", "x")).replace(b"gr--e", b"gr\x94\xe1e"))
    assert skill_paths(skill) == ["SKILL.md", "größe.txt"]


@pytest.mark.parametrize("name", ["SKILL.md", "skill.md", "Skill.MD", "SKILL.MD"])
def test_the_name_of_skill_md_is_case_insensitive(client, name):
    skill = send_archive(client, pack((name, skill_md("any-case")), ("x.txt", "x")))
    assert (skill.name, skill_paths(skill)) == ("any-case", [name, "x.txt"])


@pytest.mark.parametrize(
    "files, name",
    [
        (["SKILL.md", "examples/SKILL.md"], "SKILL.md"),
        (["examples/SKILL.md", "SKILL.md"], "SKILL.md"),
        (["a/b/c/SKILL.md", "x/SKILL.md"], "x/SKILL.md"),
        # Both have the same depth, so the first one is used.
        (["b/SKILL.md", "a/skill.md"], "b/SKILL.md"),
    ],
)
def test_the_skill_md_nearest_to_the_root_is_used(client, files, name):
    skill = send_archive(client, pack(*((file, front_matter("from " + file)) for file in files)))
    assert skill.name == "from-" + name.replace("/", "-")
    assert skill_paths(skill) == files


# ----- front matter -----


@pytest.mark.parametrize(
    "text, name, description",
    [
        (front_matter('"My Skill: v1/2"', '"Has: signs / in <it>"'), "My-Skill--v1-2", "Has: signs / in <it>"),
        (front_matter('"a*b?c<d>e|f"'), "a-b-c-d-e-f", "words"),
        (front_matter("'a\\b\"c'"), "a-b-c", "words"),
        (front_matter("寿司; $x"), "寿司;-$x", "words"),
        # The value of a scalar is its text, whatever its type.
        (front_matter("123", "45.50"), "123", "45.50"),
        (front_matter("0x1F", "true"), "0x1F", "true"),
        (front_matter("no", "2024-01-02"), "no", "2024-01-02"),
        (front_matter("a", '"gr\\u00f6\\u00dfe"'), "a", "größe"),
        (front_matter("a", "|\n  one\n  two"), "a", "one\ntwo"),
        (front_matter("a", ">-\n  one\n  two"), "a", "one two"),
        ("---\nversion: 3\nname: a\ntags: [b, {c: d}]\ndescription: words\nmore:\n  name: inner\n---\n", "a", "words"),
        # Without two lines of dashes, the whole file is YAML.
        ("name: bare\ndescription: No dashes\n", "bare", "No dashes"),
        ("---\nname: half\ndescription: One line of dashes\n", "half", "One line of dashes"),
        # Editors on Windows write a byte order mark or CRLF.
        ("\ufeff" + front_matter("bom"), "bom", "words"),
        ("\ufeffname: bom\ndescription: No dashes\n", "bom", "No dashes"),
        (front_matter("a").replace("\n", "\r\n"), "a", "words"),
        # Dashes further down do not belong to the front matter.
        (front_matter("a") + "# Body\n\n---\nname: b\n---\n", "a", "words"),
    ],
)
def test_name_and_description_are_read_from_skill_md(client, text, name, description):
    assert create_from_skill_md(client, text) == (name, description)


def test_skill_md_is_stored_unchanged(client):
    text = "\ufeff" + skill_md(body="Body: größe\r\n\t---\n")
    skill = send_archive(client, pack(("SKILL.md", text)))
    assert client.skills.get_file(skill_id=skill.id, file_path="SKILL.md").content.raw == text


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "YAML front matter"),
        ("---\n---\n", "YAML front matter"),
        ("---\ndescription: b\n---\n", "name is required in SKILL.md"),
        (front_matter('""'), "name is required in SKILL.md"),
        (front_matter("null"), "name is required in SKILL.md"),
        (front_matter("~"), "name is required in SKILL.md"),
        (front_matter(""), "name is required in SKILL.md"),
        ("---\nname: a\n---\n", "description is required in SKILL.md"),
        (front_matter("a", ""), "description is required in SKILL.md"),
        (front_matter("a", "''"), "description is required in SKILL.md"),
        ("# Only text\n\nNo settings at all.\n", "parse SKILL.md YAML"),
        (front_matter("[a"), "parse SKILL.md YAML"),
        (front_matter("[a, b]"), "parse SKILL.md YAML"),
        (front_matter("{a: b}"), "parse SKILL.md YAML"),
        (front_matter("a: b: c"), "parse SKILL.md YAML"),
        (front_matter("a\nname: b"), "parse SKILL.md YAML"),
        (b"---\nname: \xff\ndescription: b\n---\n", "parse SKILL.md YAML"),
        # The name cannot be used for a directory.
        (front_matter(".."), "name in SKILL.md"),
        (front_matter('"a\\tb"'), "name in SKILL.md"),
        (front_matter('"a\\0b"'), "name in SKILL.md"),
        (front_matter("n" * 256), "name in SKILL.md"),
        (front_matter("a", '"a\\0b"'), "description in SKILL.md"),
    ],
)
def test_an_invalid_skill_md_is_rejected(empty_client, text, words):
    with raises_error(400, words):
        send_archive(empty_client, pack(("SKILL.md", text), ("a.txt", "a")), user="alice")
    assert_empty(empty_client)


@pytest.mark.parametrize(
    "files", [[], ["README.md"], ["SKILL.md.txt", "MYSKILL.md"], ["SKILL.md/a.txt"], ["SKILL.md/"], ["._SKILL.md"]]
)
def test_an_archive_without_a_skill_md_is_rejected(empty_client, files):
    with raises_error(400, "SKILL.md file is required"):
        send_archive(empty_client, pack(*((name, "") for name in files)))
    assert_empty(empty_client)


# ----- invalid archives -----


def entry_of_type(file_type, name="odd"):
    """Returns an entry with this Unix file type."""
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3
    entry.external_attr = (file_type | 0o777) << 16
    return entry


def patch_headers(archive, name, local, central, format, value):
    """Returns the archive with a field changed in both headers of an entry, at the offsets `local` and `central`."""
    archive, name = bytearray(archive), name.encode()
    first, last = archive.index(name), archive.rindex(name)
    struct.pack_into(format, archive, first - 30 + local, value)
    struct.pack_into(format, archive, last - 46 + central, value)
    return bytes(archive)


def with_declared_size(archive, name, size):
    return patch_headers(archive, name, 22, 24, "<I", size)


@pytest.mark.parametrize(
    "files",
    [
        # The path leads out of the directory.
        ["../evil.txt"],
        ["a/../../evil.txt"],
        [".."],
        ["a/.."],
        ["/etc/passwd"],
        ["//host/share.txt"],
        ["C:/evil.txt"],
        ["..\\evil.txt"],
        ["C:\\evil.txt"],
        ["a\\b.txt"],
        # Two paths collide.
        ["a.txt", "a.txt"],
        ["a.txt", "./a.txt"],
        ["a.txt", "A.TXT"],
        ["größe.txt", "GRÖßE.txt"],
        ["a/b.txt", "A/B.txt"],
        ["skill.md"],
        ["a", "a/b.txt"],
        ["a/b.txt", "A"],
        # The path is not a valid name.
        ["a\tb.txt"],
        ["a\nb.txt"],
        ["n" * 1025],
        ["d" * 1025 + "/a.txt"],
    ],
)
def test_an_archive_with_unsafe_paths_is_rejected(empty_client, files):
    with raises_error(400, "file: "):
        send_archive(empty_client, pack(SKILL_MD, *((name, "x") for name in files)), user="alice")
    assert_empty(empty_client)


@pytest.mark.parametrize("file_type", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_only_regular_files_are_accepted(empty_client, file_type):
    with raises_error(400, "odd"):
        send_archive(empty_client, pack(SKILL_MD, (entry_of_type(file_type), "/etc/passwd")))
    assert_empty(empty_client)


def test_the_mode_of_a_regular_file_is_accepted(client):
    archive = pack(SKILL_MD, (entry_of_type(stat.S_IFREG), "x"), (entry_of_type(0, "bare"), "x"))
    assert skill_paths(send_archive(client, archive)) == ["SKILL.md", "odd", "bare"]


def test_scripts_stay_executable(client, tmp_path):
    """The archive is made from real files, as a user makes it. Only whether a file is executable is kept of its mode."""
    source = tmp_path / "kit"
    modes = {"SKILL.md": 0o644, "scripts/run.sh": 0o755, "scripts/own.sh": 0o700, "notes.md": 0o600}
    for name, mode in modes.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(skill_md() if name == "SKILL.md" else name)
        path.chmod(mode)
    archive = shutil.make_archive(str(tmp_path / "kit"), "zip", source)
    skill = send_archive(client, open(archive, "rb").read())
    with zipfile.ZipFile(io.BytesIO(client.skills.download_zip(skill.id))) as downloaded:
        found = {entry.filename: stat.S_IMODE(entry.external_attr >> 16) for entry in downloaded.infolist()}
    assert found == {"SKILL.md": 0o644, "scripts/run.sh": 0o755, "scripts/own.sh": 0o755, "notes.md": 0o644}


def test_an_encrypted_file_is_rejected(empty_client):
    with raises_error(400, "secret.txt", "encrypted"):
        send_archive(empty_client, patch_headers(pack(SKILL_MD, ("secret.txt", "x" * 50)), "secret.txt", 6, 8, "<H", 1))
    assert_empty(empty_client)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_rare_compression_methods_are_rejected(empty_client, method):
    with raises_error(400, "SKILL.md", "deflate"):
        send_archive(empty_client, pack(SKILL_MD, method=method))
    assert_empty(empty_client)


VALID_ARCHIVE = pack(SKILL_MD, ("a.txt", "words " * 500), method=zipfile.ZIP_STORED)


@pytest.mark.parametrize(
    "archive",
    [
        b"",
        b"this is no archive",
        b"PK\x05\x06",
        VALID_ARCHIVE[:-1],
        VALID_ARCHIVE[: len(VALID_ARCHIVE) // 2],
        VALID_ARCHIVE[100:],
        VALID_ARCHIVE.replace(b"words words", b"words w0rds", 1),
        # The central directory has another name than the local header.
        VALID_ARCHIVE[:1000] + VALID_ARCHIVE[1000:].replace(b"a.txt", b"b.txt"),
        with_declared_size(VALID_ARCHIVE, "a.txt", 10),
    ],
    ids=["empty", "text", "end", "cut", "half", "tail", "changed", "renamed", "less"],
)
def test_a_broken_archive_is_rejected(empty_client, archive):
    with raises_error(400, "file: "):
        send_archive(empty_client, archive, user="alice")
    assert_empty(empty_client)


# ----- limits -----


@pytest.mark.parametrize(
    "archive, words",
    [
        (pack(SKILL_MD, ("big.bin", bytes(16 * MIB + 1))), "big.bin"),
        (pack(SKILL_MD, *((f"{n}.bin", bytes(15 * MIB)) for n in range(4))), "52428800"),
        (pack(("SKILL.md", skill_md() + "x" * MIB)), "SKILL.md"),
    ],
    ids=["file", "all files", "SKILL.md"],
)
def test_an_archive_with_too_large_contents_is_413(empty_client, archive, words):
    with raises_error(413, words):
        send_archive(empty_client, archive, user="alice")
    assert_empty(empty_client)


def test_an_archive_with_a_wrong_declared_size_is_rejected(empty_client):
    archive = with_declared_size(pack(SKILL_MD, ("big.bin", bytes(60 * MIB))), "big.bin", 10)
    with pytest.raises(APIError) as caught:
        send_archive(empty_client, archive)
    assert caught.value.status_code in (400, 413)
    assert_empty(empty_client)


def test_an_archive_over_50_mib_is_413(empty_client):
    with raises_error(413, "50.00MB"):
        send_archive(empty_client, bytes(50 * MIB + 1))
    with raises_error(413, "50.00MB"):
        send_archive(empty_client, bytes(60 * MIB))
    assert_empty(empty_client)


def test_files_of_exactly_the_limit_are_accepted(client):
    content = os.urandom(MIB) + bytes(15 * MIB)
    text = skill_md()
    skill = send_archive(client, pack(("SKILL.md", text + "x" * (MIB - len(text))), ("big.bin", content)))
    assert skill_paths(skill) == ["SKILL.md", "big.bin"]


def test_a_skill_may_have_up_to_1000_files(client, empty_client):
    files = [(f"{n:03}/a.txt", "") for n in range(999)]
    # Directories and files that archivers add do not count.
    ignored = [("directory/", ""), (".DS_Store", "x"), ("__MACOSX/a", "x")]
    with raises_error(400, "1000"):
        send_archive(empty_client, pack(SKILL_MD, *files, ("one-more.txt", "")))
    assert_empty(empty_client)
    assert len(send_archive(client, pack(SKILL_MD, *files, *ignored)).file_index) == 1000


def test_too_many_empty_directories_are_rejected(empty_client):
    with raises_error(400, "1000"):
        send_archive(empty_client, pack(SKILL_MD, *((f"{n}/", "") for n in range(10_001))))
    assert_empty(empty_client)


# ----- the multipart form -----


def send_form(client, name="kit.zip", field="file", **texts):
    return client.request(
        "POST", "/agent_skills", data=texts, files={field: (name, io.BytesIO(pack(SKILL_MD)), "application/zip")}
    )


@pytest.mark.parametrize("name", ["kit.tar.gz", "zip", "kit.zip.txt", "kitzip", "kit"])
def test_an_archive_must_have_the_extension_zip(empty_client, name):
    with raises_error(400, "file must be a zip archive"):
        send_form(empty_client, name=name)
    assert_empty(empty_client)


@pytest.mark.parametrize("name", [".zip", "a.zip", "a.ZiP", "größe 寿司.zip", "from/elsewhere/a.zip"])
def test_the_rest_of_the_filename_does_not_matter(client, name):
    assert send_form(client, name=name)["name"] == "kit"


def test_a_file_in_another_field_is_ignored(empty_client):
    with raises_error(400, "file is required"):
        send_form(empty_client, field="archive", user="alice")
    assert_empty(empty_client)


@pytest.mark.parametrize(
    "content_type, body",
    [
        (FORM, form_body(form_part("user", b"alice"))),
        (FORM, form_body(form_part("file", b"just text"))),
        (FORM, form_body(*(form_part("file", pack(SKILL_MD), filename=name) for name in ("a.zip", "b.zip")))),
        (FORM, form_body(form_part("file", pack(SKILL_MD), filename="a.zip"))[:-40]),
        ("multipart/form-data", b""),
        ("application/json", b'{"file": "kit.zip"}'),
        (None, b""),
    ],
    ids=["no file", "a text", "two files", "cut", "no boundary", "JSON", "nothing"],
)
def test_a_form_must_have_exactly_one_file(server, content_type, body):
    response = exchange(server, "POST", "/api/v1/agent_skills", {"Content-Type": content_type}, body)
    assert (response.status, response.error_message().split(":")[0]) == (400, "parameter error")


@pytest.mark.parametrize("meta", ["[1]", '"text"', "12", "true", "{broken", '{"a": 1} more', "{'a': 1}"])
def test_metadata_that_is_not_an_object_is_rejected(empty_client, meta):
    with raises_error(400, "invalid meta JSON format"):
        send_form(empty_client, meta=meta, user="alice")
    assert_empty(empty_client)


def test_metadata_and_user_must_be_valid(empty_client):
    with raises_error(400, "meta", "NUL"):
        send_archive(empty_client, pack(SKILL_MD), meta={"a": "\0"})
    with raises_error(413, "meta"):
        send_archive(empty_client, pack(SKILL_MD), meta={"a": "x" * MIB})
    with raises_error(400, "user"):
        send_archive(empty_client, pack(SKILL_MD), user="u" * 1025)
    with raises_error(400, "user", "NUL"):
        send_archive(empty_client, pack(SKILL_MD), user="a\0b")
    assert_empty(empty_client)


def test_empty_fields_are_treated_as_absent(client):
    for meta in ("", "null"):
        created = send_form(client, user="", meta=meta)
        assert (created["user_id"], created["meta"]) == (None, None)
