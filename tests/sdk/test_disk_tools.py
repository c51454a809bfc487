"""The tools that the SDK gives to an agent for its disk."""

import asyncio

import pytest

from acontext import AcontextAsyncClient
from acontext.agent.disk import DISK_TOOLS
from support import open_link, refused


@pytest.fixture
def use(client, disk):
    """Calls a tool as the agent's loop does: its name, and arguments from the model."""
    context = DISK_TOOLS.format_context(client, disk.id)
    return lambda tool, **arguments: DISK_TOOLS.execute_tool(context, tool, arguments)


def test_the_tools_are_the_ones_tested_here():
    assert sorted(DISK_TOOLS.tools) == [
        "download_file_disk",
        "glob_disk",
        "grep_disk",
        "list_disk",
        "read_file_disk",
        "replace_string_disk",
        "write_file_disk",
    ]


@pytest.mark.parametrize("folder", [None, "/", "notes", "/notes", "notes/", "/notes/2024/"])
def test_what_is_written_is_read(use, folder):
    directory = "/" + folder.strip("/") + "/" if folder and folder != "/" else "/"
    written = use("write_file_disk", file_path=folder, filename="todo.md", content="buy milk\nread\n")
    assert written == f"File 'todo.md' written successfully to '{directory}'"
    read = use("read_file_disk", file_path=folder, filename="todo.md")
    assert read == f"[{directory}todo.md - showing L0-3 of 3 lines]\nbuy milk\nread"


@pytest.mark.parametrize("name", ["plan", "plan.xyz", "plan.bin", "Makefile", ".env", "plan.tar.gz", "plan.html"])
def test_text_is_read_whatever_the_model_calls_it(use, name):
    use("write_file_disk", filename=name, content="step one\nstep two")
    assert use("read_file_disk", filename=name).endswith("\nstep one\nstep two")


def test_a_part_of_a_file_is_read(use):
    use("write_file_disk", filename="long.txt", content="\n".join(f"line {n}" for n in range(300)))
    read = use("read_file_disk", filename="long.txt", line_offset=10, line_limit=2)
    assert read == "[/long.txt - showing L10-12 of 300 lines]\nline 10\nline 11"
    assert "showing L0-100 of 300 lines" in use("read_file_disk", filename="long.txt")


def test_writing_again_replaces(use):
    use("write_file_disk", filename="a.txt", content="the first one")
    use("write_file_disk", filename="a.txt", content="another")
    assert use("read_file_disk", filename="a.txt").endswith("\nanother")


def test_every_occurrence_is_replaced(use):
    use("write_file_disk", file_path="/src/", filename="a.py", content="old = 1\nprint(old)\n")
    done = use("replace_string_disk", file_path="/src/", filename="a.py", old_string="old", new_string="größer")
    assert done == "Found 2 old_string in /src/a.py and replaced it."
    assert use("read_file_disk", file_path="/src/", filename="a.py").endswith("\ngrößer = 1\nprint(größer)")


def test_what_is_not_there_is_not_replaced(use):
    use("write_file_disk", filename="a.txt", content="as it was")
    done = use("replace_string_disk", filename="a.txt", old_string="missing", new_string="x")
    assert done == "String 'missing' not found in file 'a.txt'"
    assert use("read_file_disk", filename="a.txt").endswith("\nas it was")


def test_a_listing_names_directories_and_files(use):
    assert use("list_disk", file_path="/") == "No files or directories found in '/'"
    for folder, name in [("/", "b.md"), ("/", "a.md"), ("/docs/", "c.md"), ("/docs/deep/", "d.md")]:
        use("write_file_disk", file_path=folder, filename=name, content="x")
    assert use("list_disk", file_path="/") == "[Listing in /]\nDirectories:\ndocs/\nFiles:\na.md\nb.md"
    assert use("list_disk", file_path="docs") == "[Listing in /docs/]\nDirectories:\ndeep/\nFiles:\nc.md"


def test_searches_name_the_files(use):
    use("write_file_disk", file_path="/src/", filename="a.py", content="# TODO: all\n")
    use("write_file_disk", file_path="/src/", filename="b.py", content="pass\n")
    use("write_file_disk", filename="c.md", content="todo, too\n")
    assert use("grep_disk", query="TODO.*") == "Found 2 file(s) matching 'TODO.*':\n/c.md\n/src/a.py"
    assert use("grep_disk", query="TODO", limit=1) == "Found 1 file(s) matching 'TODO':\n/c.md"
    assert use("grep_disk", query="nowhere") == "No matches found for pattern 'nowhere'"
    assert use("glob_disk", query="**/*.py") == "Found 2 file(s) matching '**/*.py':\n/src/a.py\n/src/b.py"
    assert use("glob_disk", query="/src/?.py", limit=1) == "Found 1 file(s) matching '/src/?.py':\n/src/a.py"
    assert use("glob_disk", query="*.rs") == "No files found matching pattern '*.rs'"


def test_a_download_link_opens_for_anybody(use):
    use("write_file_disk", file_path="/out/", filename="report.md", content="# Report\n")
    for arguments in ({}, {"expire": 60}):
        said = use("download_file_disk", file_path="/out/", filename="report.md", **arguments)
        life = arguments.get("expire", 3600)
        assert said.startswith(f"Public download URL for '/out/report.md' (expires in {life}s)")
        assert open_link(said.splitlines()[-1]).text == "# Report\n"


def test_a_missing_file_is_told_to_the_agent(use):
    for tool, more in [
        ("read_file_disk", {}),
        ("replace_string_disk", {"old_string": "a", "new_string": "b"}),
        ("download_file_disk", {}),
    ]:
        with refused(404, "artifact not found"):
            use(tool, filename="missing.txt", **more)


def test_a_bad_pattern_is_told_to_the_agent(use):
    with refused(400, "query"):
        use("grep_disk", query="(")


def test_all_tools_asynchronously(server):
    async def steps():
        async with AcontextAsyncClient(base_url=server.base_url, api_key=server.key) as client:
            disk = await client.disks.create()
            context = await DISK_TOOLS.async_format_context(client, disk.id)

            async def use(tool, **arguments):
                return await DISK_TOOLS.async_execute_tool(context, tool, arguments)

            at = {"file_path": "/notes/", "filename": "a.md"}
            assert "written successfully" in await use("write_file_disk", **at, content="one two")
            assert "replaced" in await use("replace_string_disk", **at, old_string="two", new_string="three")
            assert (await use("read_file_disk", **at)).endswith("\none three")
            assert "notes/" in await use("list_disk", file_path="/")
            assert "/notes/a.md" in await use("grep_disk", query="three")
            assert "/notes/a.md" in await use("glob_disk", query="*.md")
            link = (await use("download_file_disk", **at)).splitlines()[-1]
            assert open_link(link).text == "one three"

    asyncio.run(steps())
