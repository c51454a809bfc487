"""Skills as they are sent: archives, put together by a test."""

import io
import warnings
import zipfile

from acontext import FileUpload


def skill_md(name="kit", description="Shows one thing", body="# How to use it\n"):
    return f"---\nname: {name}\ndescription: {description}\n---\n{body}"


def pack(*files, method=zipfile.ZIP_DEFLATED):
    """An archive of pairs of a name and a content, in this order and under just these names."""
    archive = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(archive, "w", method) as packed:
        for name, content in files:
            packed.writestr(name, content)
    return archive.getvalue()


def unpack(archive):
    """The contents of an archive by their names, in its order."""
    with zipfile.ZipFile(io.BytesIO(archive)) as packed:
        assert packed.testzip() is None
        return {name: packed.read(name) for name in packed.namelist()}


def send_archive(client, archive, name="kit.zip", **how):
    return client.skills.create(file=FileUpload(name, archive), **how)


def add_skill(client, *files, name="kit", **how):
    """Makes a skill of this name that has these files besides its SKILL.md."""
    return send_archive(client, pack(("SKILL.md", skill_md(name)), *files), **how)


def paths(skill):
    return [file.path for file in skill.file_index]
