"""The hand-written lines in `contract/vectors`, which `crates/protocol/tests/it` reads as well."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from _pytest.mark import ParameterSet

from atelier_worker import messages

VECTORS = Path(__file__).parents[2] / "contract" / "vectors"
DECODERS: dict[str, msgspec.json.Decoder[messages.Message]] = {
    "to_worker": msgspec.json.Decoder(messages.ToWorker),
    "from_worker": msgspec.json.Decoder(messages.FromWorker),
}


def lines(kind: str, *, loose: bool = False) -> list[ParameterSet]:
    """Each line with its decoder, and its place as the name of the test."""
    found = []
    for file in sorted((VECTORS / kind).glob("*.ndjson")):
        sender, *tags = file.name.split(".")
        if ("loose" in tags) is loose:
            for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], start=1):
                place = f"{file.name}:{number}"
                found.append(pytest.param(DECODERS[sender], line, id=place))
    assert found
    return found


@pytest.mark.parametrize(("decoder", "line"), lines("valid"))
def test_a_valid_line_comes_back_as_the_same_json(
    decoder: msgspec.json.Decoder[messages.Message], line: bytes
) -> None:
    assert json.loads(msgspec.json.encode(decoder.decode(line))) == json.loads(line)


@pytest.mark.parametrize(("decoder", "line"), lines("valid", loose=True))
def test_a_loose_line_means_the_same_when_it_comes_back(
    decoder: msgspec.json.Decoder[messages.Message], line: bytes
) -> None:
    message = decoder.decode(line)
    assert decoder.decode(msgspec.json.encode(message)) == message


@pytest.mark.parametrize(("decoder", "line"), lines("invalid"))
def test_an_invalid_line_is_refused(
    decoder: msgspec.json.Decoder[messages.Message], line: bytes
) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        decoder.decode(line)


def test_the_limits_are_those_that_both_languages_read() -> None:
    assert json.loads((VECTORS / "limits.json").read_bytes()) == {
        "protocol": messages.PROTOCOL,
        "line_bytes": messages.MAX_LINE_BYTES,
        "bad_lines": messages.MAX_BAD_LINES,
        "exit_version_mismatch": messages.EXIT_VERSION_MISMATCH,
        "exit_bad_lines": messages.EXIT_BAD_LINES,
    }
