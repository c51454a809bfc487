"""Sandboxes: agents run commands, copy files in both directions, and use the tools of the SDK."""

import hashlib
import io
import json
import os
import random
import shlex
import signal
import stat
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from acontext.agent.sandbox import SANDBOX_TOOLS
from acontext.errors import APIError, TransportError
from support import TIMEOUT, open_link, raises_error, run, run_async, wait_until
from test_disks import store_file
from test_encryption import same_port, servers  # noqa: F401
from test_restart import LONG_TOKEN
from zip_fixtures import add_skill, skill_md

# What shells, JSON and base64 could change.
DIFFICULT_TEXT = "it's \"quoted\" `id` $(id) $HOME \\n \\\\ %s !! & ; | <a>\n\ttab\n\ngrüße 日本語 🙂 e\u0301\n'\n\"\n"


@pytest.fixture
def sandbox(client):
    return client.sandboxes.create()


def execute(client, sandbox, command, **options):
    return client.sandboxes.exec_command(sandbox_id=sandbox.sandbox_id, command=command, **options)


def output(client, sandbox, command):
    """Runs a command that must succeed, and returns its standard output."""
    result = execute(client, sandbox, command)
    assert (result.exit_code, result.stderr) == (0, ""), result
    return result.stdout


def find_log(client, sandbox):
    """Returns the log of a sandbox with all its fields. The SDK omits some of them."""
    logs = client.request("GET", "/sandbox/logs", params={"limit": 200, "time_desc": "true"})["items"]
    return next(log for log in logs if log["id"] == sandbox.sandbox_id)


def logged_commands(client, sandbox):
    commands = find_log(client, sandbox)["history_commands"]
    return [(command["command"], command["exit_code"], command["end_reason"]) for command in commands]


def directories(server, sandbox):
    """Returns the directory of a sandbox as a list, which is empty if nothing is left of it."""
    return list((server.data / "sandboxes").glob(f"*{sandbox.sandbox_id}*"))


def processes_with(text):
    """Returns the ids of all processes whose command line contains the text."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command_line = (entry / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(text).encode() in command_line.replace(b"\0", b" "):
            pids.append(int(entry.name))
    return pids


# ----- commands -----


def test_a_new_sandbox_is_running_and_lives_for_ten_minutes(client):
    sandbox = client.sandboxes.create()
    assert sandbox.sandbox_status == "running"
    created, expires = (
        datetime.fromisoformat(time) for time in (sandbox.sandbox_created_at, sandbox.sandbox_expires_at)
    )
    assert (expires - created).total_seconds() == 600
    assert output(client, sandbox, "pwd; ls -A") == "/workspace\n"


def test_a_command_returns_its_output_and_its_exit_code(client, sandbox):
    result = execute(client, sandbox, "echo out; echo größe; echo err >&2")
    assert (result.stdout, result.stderr, result.exit_code) == ("out\ngröße\n", "err\n", 0)
    result = execute(client, sandbox, "printf partial; cat missing.txt; exit 7")
    assert (result.stdout, result.exit_code) == ("partial", 7)
    assert "missing.txt" in result.stderr and result.stderr.endswith("No such file or directory\n")
    assert execute(client, sandbox, "no-such-program").exit_code == 127
    assert execute(client, sandbox, "kill -TERM $$").exit_code == 128 + signal.SIGTERM


def test_files_stay_and_shell_state_does_not(client, sandbox):
    output(client, sandbox, "echo kept > file.txt; cd /tmp; export NAME=lost")
    assert output(client, sandbox, 'cat file.txt; pwd; echo "[$NAME]"') == "kept\n/workspace\n[]\n"


def test_sandboxes_have_separate_files(client):
    first, second = client.sandboxes.create(), client.sandboxes.create()
    for directory in ("/workspace", "/tmp", "/home/user", "/skills"):
        output(client, first, f"echo first > {directory}/file.txt")
        assert output(client, second, f"ls -A {directory}") == ""


def test_a_killed_sandbox_is_gone_and_its_log_remains(server, fresh_client):
    client = fresh_client
    sandbox = client.sandboxes.create()
    assert len(directories(server, sandbox)) == 1
    commands = [("echo out", 0), ("exit 7", 7), ("echo größe >&2; false", 1)]
    for command, _ in commands:
        execute(client, sandbox, command)
    result = client.sandboxes.kill(sandbox.sandbox_id)
    assert (result.status, result.errmsg) == (0, "")
    assert directories(server, sandbox) == []
    for call in (
        lambda: execute(client, sandbox, "echo"),
        lambda: client.sandboxes.kill(sandbox.sandbox_id),
    ):
        with raises_error(404, "sandbox not found"):
            call()
    (log,) = client.sandboxes.get_logs().items
    assert (log.id, log.backend_type, log.backend_sandbox_id) == (sandbox.sandbox_id, "local", None)
    assert [(entry.command, entry.exit_code) for entry in log.history_commands] == commands
    assert log.generated_files == []
    assert 0 <= log.will_total_alive_seconds <= TIMEOUT
    assert find_log(client, sandbox)["ended_at"] >= sandbox.sandbox_created_at


def test_killing_a_sandbox_ends_its_running_command(client, sandbox):
    # The number is in the command line of no other process.
    command = f"sleep 1000.{random.randrange(10**9)}"
    with ThreadPoolExecutor() as pool:
        running = pool.submit(execute, client, sandbox, command, timeout=TIMEOUT)
        wait_until(lambda: processes_with(command), "the command is running")
        assert client.sandboxes.kill(sandbox.sandbox_id).status == 0
        wait_until(lambda: not processes_with(command), "the command has ended")
        result = running.result(TIMEOUT)
    assert result.exit_code == 137 and "was killed" in result.stderr
    assert logged_commands(client, sandbox) == [(command, 137, "killed")]


def test_logs_have_pages(fresh_client):
    created = [fresh_client.sandboxes.create().sandbox_id for _ in range(3)]
    for time_desc in (False, True):
        expected = created[::-1] if time_desc else created
        page = fresh_client.sandboxes.get_logs(limit=2, time_desc=time_desc)
        assert ([log.id for log in page.items], page.has_more) == (expected[:2], True)
        page = fresh_client.sandboxes.get_logs(limit=2, time_desc=time_desc, cursor=page.next_cursor)
        assert ([log.id for log in page.items], page.has_more) == (expected[2:], False)


def test_another_project_has_no_access(client, other_client, sandbox):
    disk = other_client.disks.create()
    for call in (
        lambda: execute(other_client, sandbox, "echo"),
        lambda: other_client.sandboxes.kill(sandbox.sandbox_id),
        lambda: export(other_client, disk.id, sandbox, "/etc/", "hosts"),
    ):
        with raises_error(404, "sandbox not found"):
            call()
    assert output(client, sandbox, "echo alive") == "alive\n"


def test_create_exec_and_kill_asynchronously(server):
    async def steps(client):
        sandbox_id = (await client.sandboxes.create()).sandbox_id
        result = await client.sandboxes.exec_command(sandbox_id=sandbox_id, command="echo out; echo err >&2; exit 3")
        assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 3)
        assert (await client.sandboxes.kill(sandbox_id)).status == 0
        with raises_error(404, "sandbox not found"):
            await client.sandboxes.exec_command(sandbox_id=sandbox_id, command="echo")
        logs = await client.sandboxes.get_logs(limit=200, time_desc=True)
        (log,) = [log for log in logs.items if log.id == sandbox_id]
        assert [entry.exit_code for entry in log.history_commands] == [3]

    run_async(server, steps)


# ----- files of disks -----


def import_file(client, disk, artifact, sandbox, directory="/workspace/"):
    """Copies a file from a disk to a sandbox, and returns whether the sandbox has accepted it."""
    return client.artifacts.download_to_sandbox(
        disk.id,
        file_path=artifact.path,
        filename=artifact.filename,
        sandbox_id=sandbox.sandbox_id,
        sandbox_path=directory,
    )


def export(client, disk_id, sandbox, directory, name, file_path="/"):
    """Copies a file from a sandbox to a disk, and returns the artifact."""
    return client.artifacts.upload_from_sandbox(
        disk_id,
        sandbox_id=sandbox.sandbox_id,
        sandbox_path=directory,
        sandbox_filename=name,
        file_path=file_path,
    )


def download(client, disk, artifact):
    """Returns the content of a file on a disk."""
    found = client.artifacts.get(
        disk.id, file_path=artifact.path, filename=artifact.filename, with_public_url=True, with_content=False
    )
    response = open_link(found.public_url)
    assert response.status_code == 200
    return response.content


def test_a_script_is_copied_to_a_sandbox_and_back_with_its_mode(client, disk, sandbox):
    stored = store_file(client, disk, "/scripts/run.sh", "#!/bin/sh\necho first\n")
    assert import_file(client, disk, stored, sandbox, "/workspace/new/directory/") is True
    assert output(client, sandbox, "cd new/directory; ls -A; stat -c %a run.sh; sh run.sh") == "run.sh\n644\nfirst\n"
    assert execute(client, sandbox, "new/directory/run.sh").exit_code == 126
    changed = output(client, sandbox, "cd new/directory; echo echo second >> run.sh; chmod +x run.sh; ./run.sh")
    assert changed == "first\nsecond\n"

    exported = export(client, disk.id, sandbox, "/workspace/new/directory/", "run.sh", "/results/")
    assert (exported.path, exported.filename) == ("/results/", "run.sh")
    assert download(client, disk, exported) == b"#!/bin/sh\necho first\necho second\n"
    assert download(client, disk, stored) == b"#!/bin/sh\necho first\n"
    log = find_log(client, sandbox)
    assert log["generated_files"] == [{"sandbox_path": "/workspace/new/directory/run.sh"}]

    second = client.sandboxes.create()
    assert import_file(client, disk, exported, second, "/tmp") is True
    assert output(client, second, "stat -c %a /tmp/run.sh; /tmp/run.sh") == "755\nfirst\nsecond\n"
    # A copy replaces the file and its mode.
    assert import_file(client, disk, stored, second, "/tmp") is True
    assert output(client, second, "stat -c %a /tmp/run.sh; sh /tmp/run.sh") == "644\nfirst\n"


def test_the_archive_of_a_skill_has_the_mode_of_a_file_from_a_sandbox(client, sandbox):
    skill = add_skill(client)
    output(client, sandbox, "for name in run.sh plain.txt; do echo true > $name; done; chmod 700 run.sh")
    for name in ("run.sh", "plain.txt"):
        export(client, skill.disk_id, sandbox, "/workspace", name, "/scripts/")
    with zipfile.ZipFile(io.BytesIO(client.skills.download_zip(skill.id))) as archive:
        modes = {entry.filename: stat.S_IMODE(entry.external_attr >> 16) for entry in archive.infolist()}
    assert modes == {"SKILL.md": 0o644, "scripts/plain.txt": 0o644, "scripts/run.sh": 0o755}


@pytest.mark.parametrize("size", [0, 1, 8 << 20, 16 << 20], ids=["empty", "1 byte", "8 MiB", "16 MiB"])
def test_bytes_are_unchanged(client, disk, sandbox, size):
    content, name = os.urandom(size), "it's größe 日本.bin"
    stored = store_file(client, disk, f"/{name}", content)
    assert import_file(client, disk, stored, sandbox) is True
    output(client, sandbox, f"cp {shlex.quote(name)} copy.bin")
    assert output(client, sandbox, "sha256sum < copy.bin").split()[0] == hashlib.sha256(content).hexdigest()
    exported = export(client, disk.id, sandbox, "/workspace", "copy.bin")
    assert download(client, disk, exported) == content


def test_a_file_that_cannot_be_copied_is_an_error(client, disk, sandbox):
    stored = store_file(client, disk, "/a.txt", "a")
    for directory in ("/usr/share", "/etc", "/proc/self"):
        assert import_file(client, disk, stored, sandbox, directory) is False
    output(client, sandbox, "mkdir directory; truncate -s 17M large.bin; echo x > secret.txt; chmod 0 secret.txt")
    for name, status, words in [
        ("missing.txt", 404, "file not found in the sandbox"),
        ("directory", 409, "is not a regular file"),
        ("large.bin", 413, "ARTIFACT_MAX_UPLOAD_SIZE_BYTES"),
        ("secret.txt", 409, "Permission denied"),
    ]:
        with raises_error(status, words):
            export(client, disk.id, sandbox, "/workspace", name)
    assert [artifact.filename for artifact in client.artifacts.glob_artifacts(disk.id, query="*")] == ["a.txt"]
    assert find_log(client, sandbox)["generated_files"] == []


# ----- tools -----


@pytest.fixture
def call_tool(client, sandbox, disk):
    """A function that calls a tool as an agent does: with the name of the tool and arguments from the model."""
    context = SANDBOX_TOOLS.format_context(client, sandbox.sandbox_id, disk.id)

    def call(tool, **arguments):
        # The arguments of a model are JSON.
        return json.loads(SANDBOX_TOOLS.execute_tool(context, tool, json.loads(json.dumps(arguments))))

    return call


@pytest.fixture
def edit(call_tool):
    """A function that calls the text editor."""
    return lambda command, path, **arguments: call_tool("text_editor_sandbox", command=command, path=path, **arguments)


def test_the_sdk_has_no_other_sandbox_tools():
    assert sorted(SANDBOX_TOOLS.tools) == ["bash_execution_sandbox", "export_file_sandbox", "text_editor_sandbox"]


def test_the_bash_tool_runs_scripts(call_tool):
    script = "total=0\nfor n in 1 2 3; do\n  total=$((total + n))\ndone\necho $total\npython3 -c 'print(6 * 7)'\n"
    assert call_tool("bash_execution_sandbox", command=script) == {"stdout": "6\n42\n", "stderr": "", "exit_code": 0}
    result = call_tool("bash_execution_sandbox", command="echo it\\'s wrong >&2; exit 4", timeout=TIMEOUT)
    assert result == {"stdout": "", "stderr": "it's wrong\n", "exit_code": 4}
    result = call_tool("bash_execution_sandbox", command=f"cat <<'END'\n{DIFFICULT_TEXT}END\n")
    assert result == {"stdout": DIFFICULT_TEXT, "stderr": "", "exit_code": 0}


def test_the_editor_creates_and_views_a_file(edit, call_tool):
    path = "/workspace/src/deep/a.txt"
    assert edit("create", path, file_text="one\ntwo\n") == {"is_file_update": False, "message": f"File created: {path}"}
    assert edit("view", path) == {
        "file_type": "text",
        "content": "     1\tone\n     2\ttwo\n",
        "numLines": 2,
        "startLine": 1,
        "totalLines": 3,
    }
    assert edit("create", path, file_text="three") == {"is_file_update": True, "message": f"File updated: {path}"}
    # The program that numbers the lines ends the last one.
    assert edit("view", path)["content"] == "     1\tthree\n"
    assert call_tool("bash_execution_sandbox", command=f"cat {path}")["stdout"] == "three"


def test_the_editor_views_a_range_of_lines(edit):
    edit("create", "lines.txt", file_text="".join(f"line {n}\n" for n in range(1, 301)))
    view = edit("view", "/workspace/lines.txt", view_range=[298, 299])
    assert view == {
        "file_type": "text",
        "content": "   298\tline 298\n   299\tline 299\n",
        "numLines": 2,
        "startLine": 298,
        "totalLines": 301,
    }
    view = edit("view", "lines.txt")
    assert (view["numLines"], view["totalLines"]) == (200, 301)


def test_the_editor_replaces_one_occurrence(edit, call_tool):
    path = "/workspace/a.txt"
    edit("create", path, file_text="alpha beta\nbeta gamma\n")
    replaced = edit("str_replace", path, old_str="alpha beta\n", new_str="")
    assert replaced == {"msg": "Successfully replaced text at exactly one location."}
    assert call_tool("bash_execution_sandbox", command=f"cat {path}")["stdout"] == "beta gamma\n"


def test_the_editor_rejects_a_string_that_is_missing_or_not_unique(edit, call_tool):
    path = "/workspace/a.txt"
    edit("create", path, file_text="one two one\none\n")
    assert "Multiple occurrences (3)" in edit("str_replace", path, old_str="one", new_str="x")["error"]
    assert "String not found in file" in edit("str_replace", path, old_str="three", new_str="x")["error"]
    assert call_tool("bash_execution_sandbox", command=f"cat {path}")["stdout"] == "one two one\none\n"


@pytest.mark.parametrize("path", ["/workspace/missing.txt", "/nowhere/missing.txt", "/workspace"])
def test_the_editor_reports_a_missing_file(edit, path):
    assert edit("view", path)["error"] == f"File not found: {path}"
    assert edit("str_replace", path, old_str="a", new_str="b")["error"] == f"File not found: {path}"


def test_the_editor_cannot_write_outside_of_the_sandbox(edit):
    for path in ("/usr/share/a.txt", "/etc/passwd", "/a.txt"):
        result = edit("create", path, file_text="x")
        assert result["error"] == f"Failed to create file: {path}"
        assert result["stderr"]


def test_the_editor_keeps_difficult_texts_and_paths(edit, call_tool):
    path = "/workspace/it's größe/$HOME & `id`.txt"
    edit("create", path, file_text=DIFFICULT_TEXT + "end")
    numbered = [f"{n:6}\t{line}\n" for n, line in enumerate(f"{DIFFICULT_TEXT}end".split("\n"), 1)]
    assert edit("view", path)["content"] == "".join(numbered)
    replaced = edit("str_replace", path, old_str=DIFFICULT_TEXT, new_str=f"<{DIFFICULT_TEXT}>")
    assert replaced == {"msg": "Successfully replaced text at exactly one location."}
    result = call_tool("bash_execution_sandbox", command="cat */*.txt")
    assert result["stdout"] == f"<{DIFFICULT_TEXT}>end"


def test_the_editor_changes_a_large_file(edit, call_tool, client, disk, sandbox):
    # With its longer form in base64 it is still within the limit of a command.
    lines = [f"{n:06} grüße 'a' \"b\" \\ $c" for n in range(18_000)]
    text = "\n".join(lines) + "\n"
    assert 500_000 < len(text.encode()) < 700_000
    path = "/workspace/large.txt"
    assert edit("create", path, file_text=text)["message"] == f"File created: {path}"
    view = edit("view", path, view_range=[17_999, 18_000])
    assert view["content"] == f" 17999\t{lines[17_998]}\n 18000\t{lines[17_999]}\n"
    assert view["totalLines"] == 18_001
    assert edit("view", path)["numLines"] == 200
    # A string of several hundred KiB is replaced.
    half = "\n".join(lines[:9_000])
    assert "msg" in edit("str_replace", path, old_str=half, new_str="half")
    changed = text.replace(half, "half")
    assert download(client, disk, export(client, disk.id, sandbox, "/workspace/", "large.txt")) == changed.encode()
    # A response contains up to 1 MiB, of which the tool returns the first part to the model.
    listing = call_tool("bash_execution_sandbox", command=f"cat {path}")["stdout"]
    assert listing == changed[:20_000] + "...[truncated]"


def test_a_file_beyond_the_limit_of_a_command_is_413(edit):
    with raises_error(413, "command", "upload the content to a disk"):
        edit("create", "/workspace/huge.txt", file_text="x" * (1 << 20))
    assert edit("view", "/workspace/huge.txt")["error"]


def test_an_exported_file_has_a_public_link(call_tool, client, disk, sandbox):
    command = "mkdir out; head -c 300000 /dev/urandom > out/data.bin; sha256sum < out/data.bin"
    digest = call_tool("bash_execution_sandbox", command=command)["stdout"].split()[0]
    for directory in ("/workspace/out/", "workspace/out"):
        result = call_tool("export_file_sandbox", sandbox_path=directory, sandbox_filename="data.bin")
        assert result["message"] == "successfully exported file to disk"
        content = open_link(result["public_url"]).content
        assert (len(content), hashlib.sha256(content).hexdigest()) == (300_000, digest)
    listed = client.artifacts.list(disk.id, path="/artifacts/").artifacts
    assert [artifact.filename for artifact in listed] == ["data.bin"]
    # A change in the sandbox does not change the copy. A new export does.
    call_tool("bash_execution_sandbox", command="echo changed > out/data.bin")
    assert open_link(result["public_url"]).content == content
    new = call_tool("export_file_sandbox", sandbox_path="/workspace/out/", sandbox_filename="data.bin")
    assert open_link(new["public_url"]).content == b"changed\n"
    with raises_error(404, "file not found in the sandbox"):
        call_tool("export_file_sandbox", sandbox_path="/workspace/out/", sandbox_filename="missing.bin")


def test_all_tools_asynchronously(server):
    async def steps(client):
        sandbox_id, disk = (await client.sandboxes.create()).sandbox_id, await client.disks.create()
        context = await SANDBOX_TOOLS.async_format_context(client, sandbox_id, disk.id)

        async def call_tool(tool, **arguments):
            return json.loads(await SANDBOX_TOOLS.async_execute_tool(context, tool, arguments))

        path = {"path": "/workspace/a.txt"}
        created = await call_tool("text_editor_sandbox", command="create", **path, file_text="one two\n")
        assert created["is_file_update"] is False
        replaced = await call_tool("text_editor_sandbox", command="str_replace", **path, old_str="two", new_str="drei")
        assert "Successfully replaced" in replaced["msg"]
        assert (await call_tool("text_editor_sandbox", command="view", **path))["content"] == "     1\tone drei\n"
        result = await call_tool("bash_execution_sandbox", command="wc -w < a.txt")
        assert result == {"stdout": "2\n", "stderr": "", "exit_code": 0}
        exported = await call_tool("export_file_sandbox", sandbox_path="/workspace/", sandbox_filename="a.txt")
        assert open_link(exported["public_url"]).text == "one drei\n"

    run_async(server, steps)


# ----- skills -----


def executable(name):
    """Returns an entry of an archive that may be executed."""
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3
    entry.external_attr = (stat.S_IFREG | 0o755) << 16
    return entry


SCRIPT = '#!/bin/sh\necho "$(cat "$(dirname "$0")/../data/greeting.txt"), $1!"\n'


def test_a_mounted_skill_can_be_read_and_run(client, sandbox, disk):
    files = [(executable("scripts/greet.sh"), SCRIPT), ("data/greeting.txt", "grüß dich"), ("data/bytes.bin", b"\0\xff")]
    skill = add_skill(client, *files, name="greetings")
    context = SANDBOX_TOOLS.format_context(client, sandbox.sandbox_id, disk.id, mount_skills=[skill.id])
    mounted = context.mounted_skill_paths[skill.id]
    assert mounted == {"name": "greetings", "description": "Shows one thing", "base_path": "/skills/greetings"}
    assert "<location>/skills/greetings/SKILL.md</location>" in context.get_context_prompt()

    def run_script(command):
        return json.loads(SANDBOX_TOOLS.execute_tool(context, "bash_execution_sandbox", {"command": command}))

    base = mounted["base_path"]
    result = run_script(f"{base}/scripts/greet.sh Anna")
    assert result == {"stdout": "grüß dich, Anna!\n", "stderr": "", "exit_code": 0}
    assert run_script(f"cat {base}/SKILL.md")["stdout"] == skill_md("greetings")
    listing = run_script(f"cd {base}; find . -type f -printf '%P %m\\n' | sort")["stdout"]
    assert listing.splitlines() == ["SKILL.md 644", "data/bytes.bin 644", "data/greeting.txt 644", "scripts/greet.sh 755"]
    assert run_script(f"sha256sum < {base}/data/bytes.bin")["stdout"].split()[0] == hashlib.sha256(b"\0\xff").hexdigest()


def test_a_skill_cannot_be_mounted_again(client, sandbox, disk):
    skill = add_skill(client, ("a.txt", "a"), name="once")
    context = SANDBOX_TOOLS.format_context(client, sandbox.sandbox_id, disk.id, mount_skills=[skill.id])
    # The context knows that the skill is mounted, and sends no request.
    context.mount_skills([skill.id])
    output(client, sandbox, "echo changed > /skills/once/a.txt")
    with raises_error(409, "'/skills/once' already exists in sandbox"):
        SANDBOX_TOOLS.format_context(client, sandbox.sandbox_id, disk.id, mount_skills=[skill.id])
    assert output(client, sandbox, "ls -A /skills /skills/once; cat /skills/once/a.txt") == (
        "/skills:\nonce\n\n/skills/once:\nSKILL.md\na.txt\nchanged\n"
    )
    second = client.sandboxes.create()
    SANDBOX_TOOLS.format_context(client, second.sandbox_id, disk.id, mount_skills=[skill.id])
    assert output(client, second, "cat /skills/once/a.txt") == "a"


def test_a_missing_skill_cannot_be_mounted(client, sandbox, disk, other_client):
    foreign = add_skill(other_client, name="foreign")
    with raises_error(404, "skill not found"):
        SANDBOX_TOOLS.format_context(client, sandbox.sandbox_id, disk.id, mount_skills=[foreign.id])
    assert output(client, sandbox, "ls -A /skills") == ""


# ----- the end of the server -----

EACH_ISOLATION = pytest.mark.parametrize("isolation", ["bubblewrap", "landlock"])


@EACH_ISOLATION
def test_after_a_crash_no_process_is_left_and_the_sandboxes_can_be_used(start_server, isolation):
    # The number is in the command line of no other process.
    sleep = f"sleep 1000.{random.randrange(10**9)}"
    # One process belongs to the command, the other one has detached itself.
    command = f"(setsid nohup {sleep} > /dev/null 2>&1 &); {sleep}"
    first = start_server(ACONTEXTD_SANDBOX_ISOLATION=isolation)
    with first.client() as client:
        sandboxes = [client.sandboxes.create() for _ in range(5)]
        for number, sandbox in enumerate(sandboxes):
            output(client, sandbox, f"echo {number} > number.txt")
        with ThreadPoolExecutor() as pool:
            running = [pool.submit(execute, client, sandbox, command, timeout=TIMEOUT) for sandbox in sandboxes]
            try:
                wait_until(lambda: len(processes_with(sleep)) >= 10, "all commands are running")
                assert len(processes_with(first.data / "sandboxes")) >= 5
            finally:
                first.kill()
            for future in running:
                with pytest.raises(TransportError):
                    future.result(TIMEOUT)
    wait_until(lambda: not processes_with(sleep), "the commands end with their server")

    second = start_server(ACONTEXTD_SANDBOX_ISOLATION=isolation, **same_port(first))
    assert second.base_url == first.base_url
    for text in (sleep, second.data / "sandboxes"):
        wait_until(lambda: not processes_with(text), "no process of a sandbox is left")
    with second.client() as client:
        for number, sandbox in enumerate(sandboxes):
            assert output(client, sandbox, "cat number.txt; ls -A") == f"{number}\nnumber.txt\n"
            expected = [(f"echo {number} > number.txt", 0, "exited"), (command, 137, "interrupted")]
            expected.append(("cat number.txt; ls -A", 0, "exited"))
            wait_until(lambda: logged_commands(client, sandbox) == expected, "the command counts as interrupted")
            assert client.sandboxes.kill(sandbox.sandbox_id).status == 0
            assert directories(second, sandbox) == []
    second.stop()


@EACH_ISOLATION
def test_a_crash_while_commands_start_leaves_no_process(start_server, isolation):
    """Such commands may outlive their server. The next one ends them."""
    command = f"sleep 1000.{random.randrange(10**9)}"
    server = start_server(ACONTEXTD_SANDBOX_ISOLATION=isolation)
    for _ in range(3):
        with server.client() as client:
            sandboxes = [client.sandboxes.create() for _ in range(12)]
            with ThreadPoolExecutor(len(sandboxes)) as pool:
                running = [pool.submit(execute, client, sandbox, command, timeout=TIMEOUT) for sandbox in sandboxes]
                try:
                    wait_until(lambda: processes_with(server.data / "sandboxes"), "a command is starting")
                finally:
                    server.kill()
                for future in running:
                    with pytest.raises(TransportError):
                        future.result(TIMEOUT)
        server = start_server(ACONTEXTD_SANDBOX_ISOLATION=isolation, **same_port(server))
        with server.client() as client:
            for text in (command, server.data / "sandboxes"):
                wait_until(lambda: not processes_with(text), "no process of a sandbox is left")
            for sandbox in sandboxes:
                assert output(client, sandbox, "ls -A") == ""
                # The request may have arrived too late to be logged.
                expected = {(command, 137, "interrupted"), ("ls -A", 0, "exited")}
                assert set(logged_commands(client, sandbox)) | {(command, 137, "interrupted")} == expected
                assert client.sandboxes.kill(sandbox.sandbox_id).status == 0
                assert directories(server, sandbox) == []
    server.stop()


@EACH_ISOLATION
def test_a_shutdown_ends_a_running_command(start_server, isolation):
    sleep = f"sleep 1000.{random.randrange(10**9)}"
    command = f"echo started; {sleep}"
    first = start_server(ACONTEXTD_SHUTDOWN_TIMEOUT="1s", ACONTEXTD_SANDBOX_ISOLATION=isolation)
    with first.client() as client, ThreadPoolExecutor() as pool:
        sandbox = client.sandboxes.create()
        running = pool.submit(execute, client, sandbox, command, timeout=TIMEOUT)
        try:
            wait_until(lambda: processes_with(sleep), "the command is running")
        finally:
            first.stop()
        result = running.result(TIMEOUT)
    assert (result.stdout, result.exit_code) == ("started\n", 137)
    assert "the server was shut down" in result.stderr
    assert processes_with(sleep) == processes_with(first.data / "sandboxes") == []
    second = start_server(**same_port(first))
    with second.client() as client:
        assert logged_commands(client, sandbox) == [(command, 137, "killed")]
        assert output(client, sandbox, "echo works") == "works\n"
    second.stop()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_sandboxes_survive_a_restart(start_server, end):
    first = start_server()
    with first.client() as client:
        sandbox = client.sandboxes.create()
        output(client, sandbox, "echo kept > file.txt; echo '#!/bin/sh' > run.sh; chmod 750 run.sh")
    getattr(first, end)()
    second = start_server(**same_port(first))
    with second.client() as client:
        assert output(client, sandbox, "cat file.txt; stat -c %a run.sh; echo more >> file.txt") == "kept\n750\n"
        assert output(client, sandbox, "cat file.txt") == "kept\nmore\n"
        assert len(logged_commands(client, sandbox)) == 3
        assert client.sandboxes.kill(sandbox.sandbox_id).status == 0
    assert directories(second, sandbox) == []
    second.stop()


def test_a_sandbox_ends_after_its_time(start_server):
    server = start_server(SANDBOX_DEFAULT_KEEPALIVE_SECONDS="1")
    with server.client() as client:

        def create_and_use():
            sandbox = client.sandboxes.create()
            try:
                # The time does not end a command that is running.
                assert output(client, sandbox, "sleep 2; echo done") == "done\n"
            except APIError as error:
                # The machine is so slow that the sandbox has ended before the command.
                assert error.status_code == 404
                return None
            return sandbox

        sandbox = wait_until(create_and_use, "a command has run in a sandbox")
        wait_until(lambda: not directories(server, sandbox), "the directory is deleted")
        for call in (
            lambda: execute(client, sandbox, "echo"),
            lambda: client.sandboxes.kill(sandbox.sandbox_id),
        ):
            with raises_error(404, "sandbox not found"):
                call()
        log = find_log(client, sandbox)
        assert log["backend_sandbox_id"] is None and log["ended_at"] > sandbox.sandbox_created_at
        assert 3 <= log["will_total_alive_seconds"] <= TIMEOUT
        assert logged_commands(client, sandbox) == [("sleep 2; echo done", 0, "exited")]
    server.stop()


def test_sandboxes_that_expire_after_a_crash_are_deleted(start_server):
    first = start_server()
    with first.client() as client:
        expired, live = client.sandboxes.create(), client.sandboxes.create()
        for sandbox in (expired, live):
            output(client, sandbox, "echo kept > file.txt; mkdir -p deep/er; chmod 0 deep")
        # The server is stopped, so that it does not delete the sandbox itself. Its database still runs.
        first.send(signal.SIGSTOP)
        statement = "update sandboxes set expires_at = now() - interval '1 s' where id = '{}'"
        first.psql(statement.format(expired.sandbox_id))
        first.kill()
    assert len(directories(first, expired)) == 1
    second = start_server(**same_port(first))
    with second.client() as client:
        wait_until(lambda: not directories(second, expired), "the directory is deleted")
        with raises_error(404, "sandbox not found"):
            execute(client, expired, "echo")
        assert "ended_at" in find_log(client, expired) and len(logged_commands(client, expired)) == 1
        assert output(client, live, "cat file.txt") == "kept\n"
        assert client.sandboxes.kill(live.sandbox_id).status == 0
        assert directories(second, live) == []
    second.stop()


def test_a_sandbox_belongs_to_the_server_that_created_it(servers):  # noqa: F811
    first, second = servers
    with first.client() as client, second.client() as other:
        sandbox, disk = client.sandboxes.create(), client.disks.create()
        output(client, sandbox, "echo kept > file.txt")
        stored = store_file(client, disk, "/a.txt", "a")
        skill = add_skill(client)
        for call in (
            lambda: execute(other, sandbox, "cat file.txt"),
            lambda: export(other, disk.id, sandbox, "/workspace/", "file.txt"),
            lambda: import_file(other, disk, stored, sandbox),
            lambda: other.skills.download_to_sandbox(skill_id=skill.id, sandbox_id=sandbox.sandbox_id),
            lambda: other.sandboxes.kill(sandbox.sandbox_id),
        ):
            with raises_error(503, "the sandbox runs on another server", "the server that created it"):
                call()
        own = other.sandboxes.create()
        assert output(other, own, "ls -A") == ""
        with raises_error(503, "the sandbox runs on another server"):
            execute(client, own, "ls -A")
        assert output(client, sandbox, "cat file.txt; ls -A . /skills") == "kept\n.:\nfile.txt\n\n/skills:\n"
        for reader in (client, other):
            assert {log.id for log in reader.sandboxes.get_logs().items} == {sandbox.sandbox_id, own.sandbox_id}
            commands = ["echo kept > file.txt", "cat file.txt; ls -A . /skills"]
            assert logged_commands(reader, sandbox) == [(command, 0, "exited") for command in commands]
        assert client.sandboxes.kill(sandbox.sandbox_id).status == 0
        assert find_log(other, sandbox)["ended_at"]


# ----- settings -----


EXPOSED = {"ACONTEXTD_HOST": "0.0.0.0", "ROOT_API_BEARER_TOKEN": LONG_TOKEN}


@pytest.mark.parametrize("settings", [EXPOSED, {"SANDBOX_TYPE": "disabled"}], ids=["exposed", "disabled"])
def test_disabled_sandboxes_are_503(start_server, settings):
    first = start_server()
    with first.client() as client:
        sandbox, killed = client.sandboxes.create(), client.sandboxes.create()
        output(client, sandbox, "echo kept > file.txt")
    first.stop()
    second = start_server(**same_port(first), **settings)
    with second.client(f"sk-ac-{LONG_TOKEN}" if settings == EXPOSED else None) as client:
        disk = client.disks.create()
        for call in (
            client.sandboxes.create,
            lambda: execute(client, sandbox, "cat file.txt"),
            lambda: export(client, disk.id, sandbox, "/workspace/", "file.txt"),
        ):
            with raises_error(503, "sandboxes are disabled", "SANDBOX_TYPE"):
                call()
        assert client.sandboxes.kill(killed.sandbox_id).status == 0
        assert logged_commands(client, sandbox) == [("echo kept > file.txt", 0, "exited")]
    second.stop()
    third = start_server(**same_port(first))
    with third.client() as client:
        assert output(client, sandbox, "cat file.txt") == "kept\n"
    third.stop()


def test_an_exposed_server_has_sandboxes_if_they_are_configured(start_server):
    server = start_server(**EXPOSED, SANDBOX_TYPE="local")
    with server.client(f"sk-ac-{LONG_TOKEN}") as client:
        sandbox = client.sandboxes.create()
        assert output(client, sandbox, "echo works") == "works\n"
        assert client.sandboxes.kill(sandbox.sandbox_id).status == 0
    server.stop()


@pytest.mark.parametrize(
    "value, words",
    [
        ("novita", "this server does not support the sandboxes of novita; use local, cloudflare, e2b or disabled"),
        ("docker", "must be local, cloudflare, e2b or disabled"),
    ],
)
def test_an_unknown_type_of_sandboxes_prevents_startup(tmp_path, value, words):
    code, stdout, stderr = run(ACONTEXTD_DATA_DIR=str(tmp_path / "data"), SANDBOX_TYPE=value)
    assert (code, stdout) == (1, "")
    assert "SANDBOX_TYPE" in stderr and words in stderr
    assert "panicked" not in stderr


def test_none_of_these_tests_has_caused_a_server_error(server):
    assert [line for line in server.log_lines() if line["level"] == "ERROR"] == []
    assert "panicked" not in server.log()
