"""What a skill may come as: the archive, what its SKILL.md says, and what is refused."""

import io
import os
import stat
import struct
import zipfile

import pytest

from acontext.errors import APIError
from packing import add_skill, pack, paths, send_archive, skill_md
from support import new_project, refused
from wire import FORM, exchange, part, upload

MIB = 1 << 20
MD = ("SKILL.md", skill_md())


@pytest.fixture(scope="module")
def storing_nothing(server):
    _, key = new_project(server)
    with server.client(key) as client:
        yield client


@pytest.fixture
def empty(storing_nothing):
    """A client of a project in which nothing is stored; what a test stores all the same does not trouble the next."""
    client = storing_nothing
    yield client
    for disk in client.disks.list(limit=200).items:
        client.disks.delete(disk.id)
    for user in client.users.list().items:
        client.users.delete(user.identifier)


def said(client, text):
    """What a skill is called, and what for, whose SKILL.md is this."""
    skill = send_archive(client, pack(("SKILL.md", text)))
    return skill.name, skill.description


def head(name, description="words"):
    return f"---\nname: {name}\ndescription: {description}\n---\n"


def assert_empty(client):
    assert client.skills.list_catalog().items == []
    assert client.disks.list().items == []
    assert client.users.list().items == []


# ----- which files there are -----


def test_files_are_shown_in_the_archives_order_and_later_by_path(client):
    texts = [("data/pages.json", "{}"), ("a.txt", "a"), ("data/deep/x.csv", "a,b\n1,2\n")]
    made = send_archive(client, pack(("scripts/run.py", "pass\n"), MD, *texts))
    assert [(file.path, file.mime) for file in made.file_index] == [
        ("scripts/run.py", "text/x-python; charset=utf-8"),
        ("SKILL.md", "text/markdown; charset=utf-8"),
        ("data/pages.json", "application/json"),
        ("a.txt", "text/plain; charset=utf-8"),
        ("data/deep/x.csv", "text/csv"),
    ]
    got = client.skills.get(made.id)
    assert paths(got) == ["SKILL.md", "a.txt", "data/pages.json", "data/deep/x.csv", "scripts/run.py"]
    assert sorted(got.file_index, key=str) == sorted(made.file_index, key=str)
    assert got.model_copy(update={"file_index": made.file_index}) == made


@pytest.mark.parametrize(
    "packed, shown",
    [
        # A folder that everything lies in is dropped.
        (["kit/SKILL.md", "kit/ref/a.md"], ["SKILL.md", "ref/a.md"]),
        (["kit/", "kit/SKILL.md", "kit/ref/", "kit/ref/a.md"], ["SKILL.md", "ref/a.md"]),
        # But one only, and only if everything does.
        (["a/b/SKILL.md", "a/b/x.txt"], ["b/SKILL.md", "b/x.txt"]),
        (["a/SKILL.md", "b/x.txt"], ["a/SKILL.md", "b/x.txt"]),
        (["kit/SKILL.md", "x.txt"], ["kit/SKILL.md", "x.txt"]),
        (["kit/SKILL.md", "kit2/x.txt"], ["kit/SKILL.md", "kit2/x.txt"]),
        # What a Mac adds is left out, and does not keep the folder.
        (
            ["kit/SKILL.md", "__MACOSX/kit/._SKILL.md", "kit/.DS_Store", "kit/._a.txt", "kit/a.txt", "kit/.keep"],
            ["SKILL.md", "a.txt", ".keep"],
        ),
        (["__MACOSX/._x", "SKILL.md"], ["SKILL.md"]),
        # Several ways to write a path.
        (["./SKILL.md", "./a//b.txt"], ["SKILL.md", "a/b.txt"]),
        (["SKILL.md", "größe/寿司 (1).txt"], ["SKILL.md", "größe/寿司 (1).txt"]),
        (["SKILL.md", "100%/a_b&c#d?.txt"], ["SKILL.md", "100%/a_b&c#d?.txt"]),
    ],
)
def test_a_file_lies_where_the_archive_has_it(client, packed, shown):
    skill = send_archive(client, pack(*((name, skill_md() if name.endswith("SKILL.md") else "x") for name in packed)))
    assert paths(skill) == shown
    for path in shown:
        assert client.skills.get_file(skill_id=skill.id, file_path=path).content.raw in (skill_md(), "x", "")


def test_an_empty_file_is_a_file(client):
    skill = add_skill(client, ("empty.txt", ""), (".gitkeep", ""))
    assert paths(skill) == ["SKILL.md", "empty.txt", ".gitkeep"]
    assert client.skills.get_file(skill_id=skill.id, file_path="empty.txt").content.raw == ""


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_may_be_packed_or_not(client, method):
    skill = send_archive(client, pack(MD, ("a.txt", "a" * 5000), method=method))
    assert client.skills.get_file(skill_id=skill.id, file_path="a.txt").content.raw == "a" * 5000


def test_an_archive_may_come_as_a_stream_of_a_tuple(client):
    skill = client.skills.create(file=("KIT.ZIP", io.BytesIO(pack(MD)), "text/plain"))
    assert paths(skill) == ["SKILL.md"]


class Pipe(io.BytesIO):
    """What a packer cannot go back in."""

    def seekable(self):
        return False

    def tell(self):
        raise io.UnsupportedOperation

    seek = tell


def test_an_archive_may_be_packed_into_a_pipe(client):
    """Then sizes stand behind the contents."""
    with zipfile.ZipFile(pipe := Pipe(), "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in (MD, ("a.txt", "a" * 5000)):
            packed.writestr(name, content)
    skill = send_archive(client, pipe.getvalue())
    assert client.skills.get_file(skill_id=skill.id, file_path="a.txt").content.raw == "a" * 5000


def test_an_archive_may_be_written_for_large_files(client):
    with zipfile.ZipFile(archive := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in (MD, ("a.txt", "a" * 5000)):
            with packed.open(name, "w", force_zip64=True) as file:
                file.write(content.encode())
    skill = send_archive(client, archive.getvalue())
    assert client.skills.get_file(skill_id=skill.id, file_path="a.txt").content.raw == "a" * 5000


def test_an_old_packers_name_is_read_in_its_charset(client):
    skill = send_archive(client, pack(MD, ("gr--e.txt", "x")).replace(b"gr--e", b"gr\x94\xe1e"))
    assert paths(skill) == ["SKILL.md", "größe.txt"]


@pytest.mark.parametrize("name", ["SKILL.md", "skill.md", "Skill.MD", "SKILL.MD"])
def test_skill_md_may_be_written_in_any_case(client, name):
    skill = send_archive(client, pack((name, skill_md("any-case")), ("x.txt", "x")))
    assert (skill.name, paths(skill)) == ("any-case", [name, "x.txt"])


@pytest.mark.parametrize(
    "files, name",
    [
        (["SKILL.md", "examples/SKILL.md"], "SKILL.md"),
        (["examples/SKILL.md", "SKILL.md"], "SKILL.md"),
        (["a/b/c/SKILL.md", "x/SKILL.md"], "x/SKILL.md"),
        # As near as each other: the first.
        (["b/SKILL.md", "a/skill.md"], "b/SKILL.md"),
    ],
)
def test_the_skill_md_nearest_to_the_root_counts(client, files, name):
    skill = send_archive(client, pack(*((file, head("from " + file)) for file in files)))
    assert skill.name == "from-" + name.replace("/", "-")
    assert paths(skill) == files


# ----- what SKILL.md says -----


@pytest.mark.parametrize(
    "text, name, description",
    [
        (head('"My Skill: v1/2"', '"Has: signs / in <it>"'), "My-Skill--v1-2", "Has: signs / in <it>"),
        (head('"a*b?c<d>e|f"'), "a-b-c-d-e-f", "words"),
        (head("'a\\b\"c'"), "a-b-c", "words"),
        (head("寿司; $x"), "寿司;-$x", "words"),
        # A scalar is the text that stands there.
        (head("123", "45.50"), "123", "45.50"),
        (head("0x1F", "true"), "0x1F", "true"),
        (head("no", "2024-01-02"), "no", "2024-01-02"),
        (head("a", '"gr\\u00f6\\u00dfe"'), "a", "größe"),
        (head("a", "|\n  one\n  two"), "a", "one\ntwo"),
        (head("a", ">-\n  one\n  two"), "a", "one two"),
        ("---\nversion: 3\nname: a\ntags: [b, {c: d}]\ndescription: words\nmore:\n  name: inner\n---\n", "a", "words"),
        # Without two lines of dashes all of it is YAML.
        ("name: bare\ndescription: No dashes\n", "bare", "No dashes"),
        ("---\nname: half\ndescription: One line of dashes\n", "half", "One line of dashes"),
        # Editors of Windows.
        ("\ufeff" + head("bom"), "bom", "words"),
        ("\ufeffname: bom\ndescription: No dashes\n", "bom", "No dashes"),
        (head("a").replace("\n", "\r\n"), "a", "words"),
        # Dashes further down are no end.
        (head("a") + "# Body\n\n---\nname: b\n---\n", "a", "words"),
    ],
)
def test_name_and_description_are_what_skill_md_says(client, text, name, description):
    assert said(client, text) == (name, description)


def test_skill_md_is_kept_as_it_is(client):
    text = "\ufeff" + skill_md(body="Body: größe\r\n\t---\n")
    skill = send_archive(client, pack(("SKILL.md", text)))
    assert client.skills.get_file(skill_id=skill.id, file_path="SKILL.md").content.raw == text


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "YAML front matter"),
        ("---\n---\n", "YAML front matter"),
        ("---\ndescription: b\n---\n", "name is required in SKILL.md"),
        (head('""'), "name is required in SKILL.md"),
        (head("null"), "name is required in SKILL.md"),
        (head("~"), "name is required in SKILL.md"),
        (head(""), "name is required in SKILL.md"),
        ("---\nname: a\n---\n", "description is required in SKILL.md"),
        (head("a", ""), "description is required in SKILL.md"),
        (head("a", "''"), "description is required in SKILL.md"),
        ("# Only text\n\nNo settings at all.\n", "parse SKILL.md YAML"),
        (head("[a"), "parse SKILL.md YAML"),
        (head("[a, b]"), "parse SKILL.md YAML"),
        (head("{a: b}"), "parse SKILL.md YAML"),
        (head("a: b: c"), "parse SKILL.md YAML"),
        (head("a\nname: b"), "parse SKILL.md YAML"),
        (b"---\nname: \xff\ndescription: b\n---\n", "parse SKILL.md YAML"),
        # What can be no folder.
        (head(".."), "name in SKILL.md"),
        (head('"a\\tb"'), "name in SKILL.md"),
        (head('"a\\0b"'), "name in SKILL.md"),
        (head("n" * 256), "name in SKILL.md"),
        (head("a", '"a\\0b"'), "description in SKILL.md"),
    ],
)
def test_a_skill_md_that_says_too_little_is_refused(empty, text, words):
    with refused(400, words):
        send_archive(empty, pack(("SKILL.md", text), ("a.txt", "a")), user="alice")
    assert_empty(empty)


@pytest.mark.parametrize(
    "files", [[], ["README.md"], ["SKILL.md.txt", "MYSKILL.md"], ["SKILL.md/a.txt"], ["SKILL.md/"], ["._SKILL.md"]]
)
def test_an_archive_without_a_skill_md_is_refused(empty, files):
    with refused(400, "SKILL.md file is required"):
        send_archive(empty, pack(*((name, "") for name in files)))
    assert_empty(empty)


# ----- what is refused -----


def of_kind(kind, name="odd"):
    """An entry of another kind than a file."""
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3
    entry.external_attr = (kind | 0o777) << 16
    return entry


def patched(archive, name, local, central, format, value):
    """The archive with a field changed in both heads of an entry, `local` and `central` bytes from their beginnings."""
    archive, name = bytearray(archive), name.encode()
    first, last = archive.index(name), archive.rindex(name)
    struct.pack_into(format, archive, first - 30 + local, value)
    struct.pack_into(format, archive, last - 46 + central, value)
    return bytes(archive)


def says_size(archive, name, size):
    return patched(archive, name, 22, 24, "<I", size)


@pytest.mark.parametrize(
    "files",
    [
        # They lead elsewhere.
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
        # They would meet.
        ["a.txt", "a.txt"],
        ["a.txt", "./a.txt"],
        ["a.txt", "A.TXT"],
        ["größe.txt", "GRÖßE.txt"],
        ["a/b.txt", "A/B.txt"],
        ["skill.md"],
        ["a", "a/b.txt"],
        ["a/b.txt", "A"],
        # They are no names.
        ["a\tb.txt"],
        ["a\nb.txt"],
        ["n" * 1025],
        ["d" * 1025 + "/a.txt"],
    ],
)
def test_an_archive_that_does_harm_where_it_is_unpacked_is_refused(empty, files):
    with refused(400, "file: "):
        send_archive(empty, pack(MD, *((name, "x") for name in files)), user="alice")
    assert_empty(empty)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_only_files_are_taken(empty, kind):
    with refused(400, "odd"):
        send_archive(empty, pack(MD, (of_kind(kind), "/etc/passwd")))
    assert_empty(empty)


def test_an_ordinary_mode_does_no_harm(client):
    assert paths(send_archive(client, pack(MD, (of_kind(stat.S_IFREG), "x"), (of_kind(0, "bare"), "x")))) == [
        "SKILL.md",
        "odd",
        "bare",
    ]


def test_an_encrypted_file_is_refused(empty):
    with refused(400, "secret.txt", "encrypted"):
        send_archive(empty, patched(pack(MD, ("secret.txt", "x" * 50)), "secret.txt", 6, 8, "<H", 1))
    assert_empty(empty)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_rare_ways_of_packing_are_refused(empty, method):
    with refused(400, "SKILL.md", "deflate"):
        send_archive(empty, pack(MD, method=method))
    assert_empty(empty)


WHOLE = pack(MD, ("a.txt", "words " * 500), method=zipfile.ZIP_STORED)


@pytest.mark.parametrize(
    "archive",
    [
        b"",
        b"this is no archive",
        b"PK\x05\x06",
        WHOLE[:-1],
        WHOLE[: len(WHOLE) // 2],
        WHOLE[100:],
        WHOLE.replace(b"words words", b"words w0rds", 1),
        # The list names another file than the one that lies there.
        WHOLE[:1000] + WHOLE[1000:].replace(b"a.txt", b"b.txt"),
        says_size(WHOLE, "a.txt", 10),
    ],
    ids=["empty", "text", "end", "cut", "half", "tail", "changed", "renamed", "less"],
)
def test_a_broken_archive_is_refused(empty, archive):
    with refused(400, "file: "):
        send_archive(empty, archive, user="alice")
    assert_empty(empty)


# ----- limits -----


@pytest.mark.parametrize(
    "archive, words",
    [
        (pack(MD, ("big.bin", bytes(16 * MIB + 1))), "big.bin"),
        (pack(MD, *((f"{n}.bin", bytes(15 * MIB)) for n in range(4))), "52428800"),
        (pack(("SKILL.md", skill_md() + "x" * MIB)), "SKILL.md"),
    ],
    ids=["file", "all files", "SKILL.md"],
)
def test_an_archive_that_swells_is_413(empty, archive, words):
    with refused(413, words):
        send_archive(empty, archive, user="alice")
    assert_empty(empty)


def test_an_archive_that_swells_more_than_it_says_is_refused(empty):
    liar = says_size(pack(MD, ("big.bin", bytes(60 * MIB))), "big.bin", 10)
    with pytest.raises(APIError) as caught:
        send_archive(empty, liar)
    assert caught.value.status_code in (400, 413)
    assert_empty(empty)


def test_an_archive_over_50_mib_is_413(empty):
    with refused(413, "50.00MB"):
        send_archive(empty, bytes(50 * MIB + 1))
    with refused(413, "50.00MB"):
        send_archive(empty, bytes(60 * MIB))
    assert_empty(empty)


def test_a_file_of_just_the_limit_is_taken(client):
    content = os.urandom(MIB) + bytes(15 * MIB)
    text = skill_md()
    skill = send_archive(client, pack(("SKILL.md", text + "x" * (MIB - len(text))), ("big.bin", content)))
    assert paths(skill) == ["SKILL.md", "big.bin"]


def test_a_thousand_files_are_a_skill_and_one_more_is_none(client, empty):
    files = [(f"{n:03}/a.txt", "") for n in range(999)]
    # Folders and what packers add do not count.
    others = [("folder/", ""), (".DS_Store", "x"), ("__MACOSX/a", "x")]
    with refused(400, "1000"):
        send_archive(empty, pack(MD, *files, ("one-more.txt", "")))
    assert_empty(empty)
    assert len(send_archive(client, pack(MD, *files, *others)).file_index) == 1000


def test_an_endless_list_of_nothing_is_refused(empty):
    with refused(400, "1000"):
        send_archive(empty, pack(MD, *((f"{n}/", "") for n in range(10_001))))
    assert_empty(empty)


# ----- the form -----


def send_form(client, name="kit.zip", field="file", **texts):
    return client.request(
        "POST", "/agent_skills", data=texts, files={field: (name, io.BytesIO(pack(MD)), "application/zip")}
    )


@pytest.mark.parametrize("name", ["kit.tar.gz", "zip", "kit.zip.txt", "kitzip", "kit"])
def test_an_archive_is_called_zip(empty, name):
    with refused(400, "file must be a zip archive"):
        send_form(empty, name=name)
    assert_empty(empty)


@pytest.mark.parametrize("name", [".zip", "a.zip", "a.ZiP", "größe 寿司.zip", "from/elsewhere/a.zip"])
def test_how_it_is_called_besides_does_not_matter(client, name):
    assert send_form(client, name=name)["name"] == "kit"


def test_a_file_in_another_field_is_none(empty):
    with refused(400, "file is required"):
        send_form(empty, field="archive", user="alice")
    assert_empty(empty)


@pytest.mark.parametrize(
    "kind, body",
    [
        (FORM, upload(part("user", b"alice"))),
        (FORM, upload(part("file", b"just text"))),
        (FORM, upload(part("file", pack(MD), filename="a.zip"), part("file", pack(MD), filename="b.zip"))),
        (FORM, upload(part("file", pack(MD), filename="a.zip"))[:-40]),
        ("multipart/form-data", b""),
        ("application/json", b'{"file": "kit.zip"}'),
        (None, b""),
    ],
    ids=["no file", "a text", "two files", "cut", "no boundary", "JSON", "nothing"],
)
def test_a_form_without_just_one_file_is_refused(server, kind, body):
    answer = exchange(server, "POST", "/api/v1/agent_skills", {"Content-Type": kind}, body)
    assert (answer.status, answer.refusal().split(":")[0]) == (400, "parameter error")


@pytest.mark.parametrize("meta", ["[1]", '"text"', "12", "true", "{broken", '{"a": 1} more', "{'a': 1}"])
def test_meta_that_is_no_object_is_refused(empty, meta):
    with refused(400, "invalid meta JSON format"):
        send_form(empty, meta=meta, user="alice")
    assert_empty(empty)


def test_meta_and_user_must_be_storable(empty):
    with refused(400, "meta", "NUL"):
        send_archive(empty, pack(MD), meta={"a": "\0"})
    with refused(413, "meta"):
        send_archive(empty, pack(MD), meta={"a": "x" * MIB})
    with refused(400, "user"):
        send_archive(empty, pack(MD), user="u" * 1025)
    with refused(400, "user", "NUL"):
        send_archive(empty, pack(MD), user="a\0b")
    assert_empty(empty)


def test_empty_fields_count_as_absent(client):
    for meta in ("", "null"):
        made = send_form(client, user="", meta=meta)
        assert (made["user_id"], made["meta"]) == (None, None)
