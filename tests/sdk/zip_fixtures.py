"""Builds and reads the archives in which skills are uploaded."""

import io
import warnings
import zipfile

from acontext import FileUpload


def skill_md(name="kit", description="Shows one thing", body="# How to use it\n"):
    return f"---\nname: {name}\ndescription: {description}\n---\n{body}"


def pack(*files, method=zipfile.ZIP_DEFLATED):
    """Returns an archive of pairs of a name and a content. The order is kept, and the names are not normalized."""
    archive = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(archive, "w", method) as writer:
        for name, content in files:
            writer.writestr(name, content)
    return archive.getvalue()


def unpack(archive):
    """Returns a dictionary of the names and contents of an archive, in the order of the archive."""
    with zipfile.ZipFile(io.BytesIO(archive)) as reader:
        assert reader.testzip() is None
        return {name: reader.read(name) for name in reader.namelist()}


def send_archive(client, archive, name="kit.zip", **options):
    return client.skills.create(file=FileUpload(name, archive), **options)


def add_skill(client, *files, name="kit", **options):
    """Creates a skill with this name that contains these files in addition to its SKILL.md."""
    return send_archive(client, pack(("SKILL.md", skill_md(name)), *files), **options)


def skill_paths(skill):
    return [file.path for file in skill.file_index]
