"""The tools with which the SDK lets an agent use a disk."""

import asyncio

import pytest

from acontext import AcontextAsyncClient
from acontext.agent.disk import DISK_TOOLS
from support import open_link, raises_error


@pytest.fixture
def call_tool(client, disk):
    """A function that calls a tool as an agent does: with the name of the tool and arguments from the model."""
    context = DISK_TOOLS.format_context(client, disk.id)
    return lambda tool, **arguments: DISK_TOOLS.execute_tool(context, tool, arguments)


def test_the_sdk_has_no_other_disk_tools():
    assert sorted(DISK_TOOLS.tools) == [
        "download_file_disk",
        "glob_disk",
        "grep_disk",
        "list_disk",
        "read_file_disk",
        "replace_string_disk",
        "write_file_disk",
    ]


@pytest.mark.parametrize("directory", [None, "/", "notes", "/notes", "notes/", "/notes/2024/"])
def test_a_written_file_can_be_read(call_tool, directory):
    directory = "/" + directory.strip("/") + "/" if directory and directory != "/" else "/"
    output = call_tool("write_file_disk", file_path=directory, filename="todo.md", content="buy milk\nread\n")
    assert output == f"File 'todo.md' written successfully to '{directory}'"
    output = call_tool("read_file_disk", file_path=directory, filename="todo.md")
    assert output == f"[{directory}todo.md - showing L0-3 of 3 lines]\nbuy milk\nread"


@pytest.mark.parametrize("name", ["plan", "plan.xyz", "plan.bin", "Makefile", ".env", "plan.tar.gz", "plan.html"])
def test_text_is_readable_under_any_filename(call_tool, name):
    call_tool("write_file_disk", filename=name, content="step one\nstep two")
    assert call_tool("read_file_disk", filename=name).endswith("\nstep one\nstep two")


def test_a_range_of_lines_can_be_read(call_tool):
    call_tool("write_file_disk", filename="long.txt", content="\n".join(f"line {n}" for n in range(300)))
    output = call_tool("read_file_disk", filename="long.txt", line_offset=10, line_limit=2)
    assert output == "[/long.txt - showing L10-12 of 300 lines]\nline 10\nline 11"
    assert "showing L0-100 of 300 lines" in call_tool("read_file_disk", filename="long.txt")


def test_writing_a_file_again_replaces_its_content(call_tool):
    call_tool("write_file_disk", filename="a.txt", content="the first one")
    call_tool("write_file_disk", filename="a.txt", content="another")
    assert call_tool("read_file_disk", filename="a.txt").endswith("\nanother")


def test_every_occurrence_is_replaced(call_tool):
    call_tool("write_file_disk", file_path="/src/", filename="a.py", content="old = 1\nprint(old)\n")
    output = call_tool("replace_string_disk", file_path="/src/", filename="a.py", old_string="old", new_string="größer")
    assert output == "Found 2 old_string in /src/a.py and replaced it."
    assert call_tool("read_file_disk", file_path="/src/", filename="a.py").endswith("\ngrößer = 1\nprint(größer)")


def test_replacing_a_missing_string_changes_nothing(call_tool):
    call_tool("write_file_disk", filename="a.txt", content="unchanged")
    output = call_tool("replace_string_disk", filename="a.txt", old_string="missing", new_string="x")
    assert output == "String 'missing' not found in file 'a.txt'"
    assert call_tool("read_file_disk", filename="a.txt").endswith("\nunchanged")


def test_a_listing_contains_directories_and_files(call_tool):
    assert call_tool("list_disk", file_path="/") == "No files or directories found in '/'"
    for directory, name in [("/", "b.md"), ("/", "a.md"), ("/docs/", "c.md"), ("/docs/deep/", "d.md")]:
        call_tool("write_file_disk", file_path=directory, filename=name, content="x")
    assert call_tool("list_disk", file_path="/") == "[Listing in /]\nDirectories:\ndocs/\nFiles:\na.md\nb.md"
    assert call_tool("list_disk", file_path="docs") == "[Listing in /docs/]\nDirectories:\ndeep/\nFiles:\nc.md"


def test_searches_return_the_paths_of_files(call_tool):
    call_tool("write_file_disk", file_path="/src/", filename="a.py", content="# TODO: all\n")
    call_tool("write_file_disk", file_path="/src/", filename="b.py", content="pass\n")
    call_tool("write_file_disk", filename="c.md", content="todo, too\n")
    assert call_tool("grep_disk", query="TODO.*") == "Found 2 file(s) matching 'TODO.*':\n/c.md\n/src/a.py"
    assert call_tool("grep_disk", query="TODO", limit=1) == "Found 1 file(s) matching 'TODO':\n/c.md"
    assert call_tool("grep_disk", query="nowhere") == "No matches found for pattern 'nowhere'"
    assert call_tool("glob_disk", query="**/*.py") == "Found 2 file(s) matching '**/*.py':\n/src/a.py\n/src/b.py"
    assert call_tool("glob_disk", query="/src/?.py", limit=1) == "Found 1 file(s) matching '/src/?.py':\n/src/a.py"
    assert call_tool("glob_disk", query="*.rs") == "No files found matching pattern '*.rs'"


def test_a_download_link_needs_no_key(call_tool):
    call_tool("write_file_disk", file_path="/out/", filename="report.md", content="# Report\n")
    for arguments in ({}, {"expire": 60}):
        output = call_tool("download_file_disk", file_path="/out/", filename="report.md", **arguments)
        seconds = arguments.get("expire", 3600)
        assert output.startswith(f"Public download URL for '/out/report.md' (expires in {seconds}s)")
        assert open_link(output.splitlines()[-1]).text == "# Report\n"


def test_a_missing_file_is_404(call_tool):
    for tool, arguments in [
        ("read_file_disk", {}),
        ("replace_string_disk", {"old_string": "a", "new_string": "b"}),
        ("download_file_disk", {}),
    ]:
        with raises_error(404, "artifact not found"):
            call_tool(tool, filename="missing.txt", **arguments)


def test_an_invalid_pattern_is_400(call_tool):
    with raises_error(400, "query"):
        call_tool("grep_disk", query="(")


def test_all_tools_asynchronously(server):
    async def steps():
        async with AcontextAsyncClient(base_url=server.base_url, api_key=server.key) as client:
            disk = await client.disks.create()
            context = await DISK_TOOLS.async_format_context(client, disk.id)

            async def call_tool(tool, **arguments):
                return await DISK_TOOLS.async_execute_tool(context, tool, arguments)

            path = {"file_path": "/notes/", "filename": "a.md"}
            assert "written successfully" in await call_tool("write_file_disk", **path, content="one two")
            assert "replaced" in await call_tool("replace_string_disk", **path, old_string="two", new_string="three")
            assert (await call_tool("read_file_disk", **path)).endswith("\none three")
            assert "notes/" in await call_tool("list_disk", file_path="/")
            assert "/notes/a.md" in await call_tool("grep_disk", query="three")
            assert "/notes/a.md" in await call_tool("glob_disk", query="*.md")
            link = (await call_tool("download_file_disk", **path)).splitlines()[-1]
            assert open_link(link).text == "one three"

    asyncio.run(steps())
