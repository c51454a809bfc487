"""Builds messages from the type definitions of the providers' packages.

Each type that can occur in a message has one value with its required fields only and one with all its fields. A field
with several types has one value per type. So a type or field that a new version of a package adds is tested, and
`names` contains it.
"""

import enum
import os
import types
import typing

import pydantic

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
# The values of fields whose type does not say what the API accepts. A key may begin with the type of the object.
STRINGS = {
    "Base64ImageSourceParam.data": PIXEL,
    "Base64PDFSourceParam.data": "JVBERi0=",
    "Content.role": "model",
    "InputAudio.data": PIXEL,
    "arguments": '{"city": "Rome"}',
    "file_data": "data:application/pdf;base64,JVBERi0=",
    "file_uri": "https://example.com/file.png",
    "id": "call_1",
    "mime_type": "image/png",
    "Base64ImageSourceParam.media_type": "image/png",
    "name": "get_time",
    "signature": "c2lnbmF0dXJl",
    "tool_call_id": "call_1",
    "tool_use_id": "call_1",
    "url": "https://example.com/file.png",
}
# In Google's types every field is optional. These are required by the API.
REQUIRED = {
    "Content": {"role", "parts"},
    "Blob": {"data", "mime_type"},
    "FileData": {"file_uri", "mime_type"},
    "FunctionCall": {"name"},
    "FunctionResponse": {"name", "response"},
    "FunctionResponseBlob": {"data", "mime_type"},
    "FunctionResponseFileData": {"file_uri", "mime_type"},
    "ExecutableCode": {"code", "language"},
    "CodeExecutionResult": {"outcome"},
}
# Fields of which an object has exactly one. The first is used together with the other fields.
ONE_OF = {
    "Part": [
        "text",
        "inline_data",
        "file_data",
        "function_call",
        "function_response",
        "executable_code",
        "code_execution_result",
        "tool_call",
        "tool_response",
    ],
    "FunctionResponsePart": ["inline_data", "file_data"],
}
NONE = type(None)


def is_union(type_):
    return typing.get_origin(type_) in (typing.Union, types.UnionType)


def is_typed_dict(type_):
    # `typing.is_typeddict` does not know the types of `typing_extensions`.
    return hasattr(type_, "__required_keys__")


def is_model(type_):
    return isinstance(type_, type) and issubclass(type_, pydantic.BaseModel)


def qualifier(hint, default):
    """Returns `Required` or `NotRequired`."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return qualifier(typing.get_args(hint)[0], default)
    return origin if origin in (typing.Required, typing.NotRequired) else default


def fields_of(type_):
    """Returns the fields of a TypedDict or a model of pydantic as pairs of a type and whether it is required."""
    if is_model(type_):
        return {name: (field.annotation, field.is_required()) for name, field in type_.model_fields.items()}
    # `__required_keys__` is wrong in modules with `from __future__ import annotations`.
    hints = typing.get_type_hints(type_, include_extras=True)
    default = typing.Required if type_.__total__ else typing.NotRequired
    return {name: (hint, qualifier(hint, default) is typing.Required) for name, hint in hints.items()}


def members(type_):
    """Returns the members of a union without `None`, the inner type of `Annotated` and `Required`, or else the type."""
    if typing.get_origin(type_) in (typing.Annotated, typing.Required, typing.NotRequired):
        return members(typing.get_args(type_)[0])
    if is_union(type_):
        return [member for part in typing.get_args(type_) for member in members(part) if member is not NONE]
    return [type_]


def element(type_):
    """Returns the type of the elements of a list, or `None` if the type is not a list."""
    origin = typing.get_origin(type_)
    is_list = isinstance(origin, type) and issubclass(origin, typing.Iterable) and not issubclass(origin, dict)
    return typing.get_args(type_)[0] if is_list else None


def names(*roots):
    """Returns the fields of every type that occurs in a message, by the name of the type.

    Several types of a package may have the same name, as those of requests and responses. Their fields are merged, so that a
    new field in only one of them is found.
    """
    found, seen = {}, set()
    waiting = list(roots)
    while waiting:
        for type_ in members(waiting.pop()):
            inner = element(type_)
            if inner is not None:
                waiting.append(inner)
            elif (is_typed_dict(type_) or is_model(type_)) and type_ not in seen:
                seen.add(type_)
                fields = fields_of(type_)
                found.setdefault(type_.__name__, set()).update(fields)
                waiting.extend(hint for hint, _ in fields.values())
    return {name: sorted(fields) for name, fields in found.items()}


def values(type_, name="", path=()):
    """Returns values of a type. `name` is the name of the field that it is the type of, `path` the types around it."""
    result = []
    for member in members(type_):
        inner = element(member)
        if inner is not None:
            result += [[value] for value in values(inner, name, path)]
        elif typing.get_origin(member) is typing.Literal:
            result += typing.get_args(member)
        elif is_typed_dict(member) or is_model(member):
            # A type inside itself, as a document in a tool result in a document, is left out at the second level.
            if path.count(member) < 1:
                result += objects(member, path)
        # The package itself reads files and encodes them.
        elif (typing.get_origin(member) or member) not in (typing.IO, os.PathLike):
            result.append(scalar(member, name, path))
    return result


def scalar(type_, name, path):
    parent = path[-1].__name__ if path else ""
    if isinstance(type_, type) and issubclass(type_, enum.Enum):
        return next(value.value for value in type_ if "UNSPECIFIED" not in value.name)
    if type_ is bool:
        return True
    if type_ in (int, float):
        return 1
    if type_ is bytes:
        return PIXEL
    if type_ is str:
        return STRINGS.get(f"{parent}.{name}") or STRINGS.get(name) or f"the {name} of {parent}"
    origin = typing.get_origin(type_) or type_
    assert origin is dict or type_ in (object, typing.Any), f"{parent}.{name}: no example for {type_}"
    return {"key": "value"} if origin is dict else "value"


def objects(type_, path=()):
    """Returns an object with the required fields, one with all fields, and one for each further value of a field."""
    path = (*path, type_)
    choices = {name: values(hint, name, path) for name, (hint, _) in fields_of(type_).items()}
    first = {name: choice[0] for name, choice in choices.items() if choice}
    required = {name for name, (_, is_required) in fields_of(type_).items() if is_required}
    required |= REQUIRED.get(type_.__name__, set())
    one_of = ONE_OF.get(type_.__name__, [])
    minimum = {name: first[name] for name in first if name in required or name in one_of[:1]}
    result = [minimum, {name: value for name, value in first.items() if name not in one_of[1:]}]
    for name, choice in choices.items():
        base = {key: value for key, value in minimum.items() if name not in one_of or key not in one_of}
        result += [base | {name: value} for value in choice]
    return [value for index, value in enumerate(result) if value not in result[:index]]
