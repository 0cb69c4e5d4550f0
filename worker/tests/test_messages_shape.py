"""Our structs have the shape of the Rust types, whose schema is generated into `contract/`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from atelier_worker import messages
from atelier_worker.error_codes import ErrorCode

SCHEMA = Path(__file__).parents[2] / "contract" / "worker.schema.json"


def objects(node: Any) -> list[dict[str, Any]]:
    """Every JSON object in a document, at any depth."""
    if isinstance(node, list):
        return [found for item in node for found in objects(item)]
    if isinstance(node, dict):
        return [node, *(found for item in node.values() for found in objects(item))]
    return []


def message_shapes(document: Any) -> dict[str, Any]:
    """What each message looks like, by its `type`, with all references followed."""
    definitions: dict[str, Any] = {}
    for node in objects(document):
        definitions.update(node.get("$defs", {}))
    shapes = {}
    for node in objects(document):
        tag = node.get("properties", {}).get("type")
        if isinstance(tag, dict) and isinstance(word := shape(tag, definitions), list):
            shapes[word[0]] = shape(node, definitions)
    return shapes


def shape(schema: Any, definitions: dict[str, Any]) -> Any:
    """The part of a schema that decides what is accepted, written in one way.

    A field is marked when it may be left out; null is accepted for exactly those and not written.
    """
    if schema is True or schema == {}:
        return "anything"
    if "$ref" in schema:
        return shape(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices is not None:
        shapes = [shape(choice, definitions) for choice in choices if choice != {"type": "null"}]
        if all(isinstance(one, list) for one in shapes):
            return sorted(word for words in shapes for word in words)
        return shapes[0] if len(shapes) == 1 else sorted(shapes, key=json.dumps)
    if "const" in schema:
        return [schema["const"]]
    if "enum" in schema:
        return sorted(schema["enum"])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    (kind,) = (kind for kind in kinds if kind != "null")
    if kind == "array":
        return {"each": shape(schema["items"], definitions)}
    if kind != "object":
        return kind
    if "properties" not in schema and schema.get("additionalProperties") is not False:
        return {"any key": shape(schema.get("additionalProperties", True), definitions)}
    assert schema["additionalProperties"] is False, "unknown fields must be refused"
    return {
        name + ("" if name in schema["required"] else "?"): shape(field, definitions)
        for name, field in sorted(schema.get("properties", {}).items())
    }


def differences(ours: Any, theirs: Any, place: str = "") -> list[str]:
    """Every field in which two shapes differ, by the message and the path to it."""
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return [] if ours == theirs else [f"{place}: {ours} here, {theirs} in Rust"]
    found = []
    for name in sorted(ours.keys() | theirs.keys()):
        at = f"{place}.{name}" if place else name
        if name not in ours:
            found.append(f"{at}: only in Rust")
        elif name not in theirs:
            found.append(f"{at}: only here")
        else:
            found.extend(differences(ours[name], theirs[name], at))
    return found


def our_shapes() -> dict[str, Any]:
    _, components = msgspec.json.schema_components([messages.ToWorker, messages.FromWorker])
    return message_shapes({"$defs": components})


def test_each_message_has_the_fields_of_its_rust_type() -> None:
    assert differences(our_shapes(), message_shapes(json.loads(SCHEMA.read_bytes()))) == []


def test_a_field_of_one_half_only_is_told_with_its_message() -> None:
    document = json.loads(SCHEMA.read_bytes())
    variants = document["from_worker"]["oneOf"]
    by_word = {variant["properties"]["type"]["const"]: variant for variant in variants}
    usage, loaded = by_word["usage"], by_word["loaded"]
    usage["properties"]["swap_bytes"] = {"type": "integer"}  # added in Rust
    usage["required"] = ["type", "swap_bytes"]  # and the other one made optional
    del loaded["properties"]["load_ms"]  # taken away in Rust, or added here
    loaded["properties"]["bytes"] = {"type": "string"}  # changed in Rust
    news = {"type": {"const": "news"}}  # a message that is not here
    variants.append(
        {
            "type": "object",
            "properties": news,
            "required": ["type"],
            "additionalProperties": False,
        }
    )
    assert differences(our_shapes(), message_shapes(document)) == [
        "loaded.bytes: integer here, string in Rust",
        "loaded.load_ms: only here",
        "news: only in Rust",
        "usage.rss_bytes: only here",
        "usage.rss_bytes?: only in Rust",
        "usage.swap_bytes: only in Rust",
    ]


def test_the_comparison_sees_every_message() -> None:
    unions = (messages.ToWorker, messages.FromWorker)
    words = {kind.__struct_config__.tag for union in unions for kind in union.__args__}
    assert message_shapes(json.loads(SCHEMA.read_bytes())).keys() == words


def test_error_codes_are_those_of_the_table() -> None:
    document = json.loads(SCHEMA.read_bytes())
    failed = message_shapes(document)["failed"]
    assert failed["error"]["code"] == sorted(ErrorCode)
