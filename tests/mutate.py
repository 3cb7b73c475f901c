"""Annotation files as accidents and bad exporters leave them: seeded mutations of bytes and of JSON.

Two mutators, which give the same files for the same seed:

- `mutations`: of raw bytes, of any format;
- `json_mutations`: of the structure of a JSON value: keys removed, types swapped, numbers blown up, garbage nested.

`outcome` runs a reader on such a file and holds it to its promise: legal samples, or an error of our family that names
the file.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from everymask.errors import EverymaskError
from everymask.types import SMALL_IDS, VOID, Sample

NUMBERS = b"0123456789.-+eE"
TOKENS = (*b'NaN -1 1e999 null [] { } [ ] " ,'.split(), b"\xff\xfe", b"\x00", b" ", b"\n")


def mutations(data: bytes, seed: int, count: int) -> Iterator[bytes]:
    """`count` broken copies of `data`, each by one to three accidents; none of them is `data` itself."""
    return islice(filter(lambda broken: broken != data, _byte_mutations(data, random.Random(seed))), count)


def _byte_mutations(data: bytes, chance: random.Random) -> Iterator[bytes]:
    while True:
        broken = data
        for _ in range(chance.randint(1, 3)):
            broken = chance.choice(BYTE_ACCIDENTS)(broken, chance)
        yield broken


def flip_byte(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]


def swap_character(data: bytes, chance: random.Random) -> bytes:
    """Another digit, sign or point where there was one: the file stays readable and says something else."""
    places = [at for at, byte in enumerate(data) if byte in NUMBERS]
    if not places:
        return flip_byte(data, chance)
    at = chance.choice(places)
    return data[:at] + bytes([chance.choice(NUMBERS)]) + data[at + 1 :]


def truncate(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def cut_out(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + data[at + chance.randint(1, 40) :]


def repeat_piece(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    end = at + chance.randint(1, 40)
    return data[:end] + data[at:end] + data[end:]


def insert_token(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.choice(TOKENS) + data[at:]


BYTE_ACCIDENTS = (flip_byte, swap_character, truncate, cut_out, repeat_piece, insert_token)

SCALARS: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 0.5, -0.0, 1e-300, 7.0),
    *(255, 256, 65536, 2**31 - 1, 2**31, -(2**31) - 1, 2**32, 2**63, 2**64, 10**9, 10**30, -(10**9), 1e18, 1e308),
    *(float("nan"), float("inf"), float("-inf")),
    *("", " ", "0", "1", "person", "NaN", "../../etc/passwd", "a\x00b", "\udc80", "é" * 3, "x" * 10_000),
    *([], {}, [[]], [None], [[[1, 2]]], {"": {}}, [{}], {"size": [10**9, 10**9], "counts": [10**18]}),
)
"""What a value becomes when its type or size is swapped."""

RAW = {
    "@deep list@": "[" * 100_000 + "]" * 100_000,
    "@deep object@": '{"a":' * 50_000 + "1" + "}" * 50_000,
    "@long number@": "9" * 5_000,
    "@overflow@": "1e999",
    "@half a surrogate@": '"\\ud800"',
    "@repeated key@": '{"id": 1, "id": 2}',
}
"""Text that no JSON writer writes, by the string that holds its place until the rest is written."""

Place = tuple[Any, Any]
"""(list or dictionary, key) of one value."""


def json_mutations(obj: Any, seed: int, count: int) -> Iterator[bytes]:
    """`count` JSON files like `obj` in which one to three values are not what they should be."""
    whole = written(obj)
    return islice(filter(lambda broken: broken != whole, _json_mutations(obj, random.Random(seed))), count)


def _json_mutations(obj: Any, chance: random.Random) -> Iterator[bytes]:
    while True:
        holder = [copy.deepcopy(obj)]  # So that the root too has a place.
        for _ in range(chance.randint(1, 3)):
            places = list(places_of(holder))
            if places:
                chance.choice(JSON_ACCIDENTS)(*chance.choice(places), chance)
        yield written(holder[0] if holder else None)


def written(obj: Any) -> bytes:
    """JSON text, NaN and half surrogates included."""
    text = json.dumps(obj)
    for placeholder, raw in RAW.items():
        text = text.replace(json.dumps(placeholder), raw)
    return text.encode()


def places_of(value: Any) -> Iterator[Place]:
    """All places inside `value`, those high up as well as those deep down."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places_of(value[key])


def replace_value(inside: Any, key: Any, chance: random.Random) -> None:
    inside[key] = copy.deepcopy(chance.choice(SCALARS))


def insert_raw(inside: Any, key: Any, chance: random.Random) -> None:
    inside[key] = chance.choice(tuple(RAW))


def remove_value(inside: Any, key: Any, chance: random.Random) -> None:
    del inside[key]


def swap_type(inside: Any, key: Any, chance: random.Random) -> None:
    value = inside[key]
    wrapped: tuple[Any, ...] = ([value], {"value": value}, {str(key): value}, json.dumps(value), [value, value])
    inside[key] = chance.choice(wrapped)


def blow_up(inside: Any, key: Any, chance: random.Random) -> None:
    """A number times a power of ten, with another sign or a little beside itself; other values become numbers."""
    value = inside[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        value = 1
    shifted = value + chance.choice((-1, 1, 0.25, -0.5))
    inside[key] = chance.choice((value * 10 ** chance.randint(1, 18), -value, shifted, float(value)))


def repeat_value(inside: Any, key: Any, chance: random.Random) -> None:
    """An entry of a list twice; a value of a dictionary under another of its keys."""
    if isinstance(inside, list):
        inside.insert(key, copy.deepcopy(inside[key]))
    else:
        inside[chance.choice(list(inside))] = copy.deepcopy(inside[key])


def rename_key(inside: Any, key: Any, chance: random.Random) -> None:
    if isinstance(inside, dict):
        inside[chance.choice((key.upper(), f"{key} ", f"_{key}", ""))] = inside.pop(key)
    else:
        inside.reverse()


JSON_ACCIDENTS: tuple[Callable[[Any, Any, random.Random], None], ...] = (
    *(replace_value, replace_value, insert_raw, remove_value, remove_value),
    *(swap_type, blow_up, blow_up, repeat_value, rename_key),
)


def outcome(read: Callable[[], Iterable[Sample]], path: Path) -> list[Sample] | None:
    """What a reader makes of a mutated file: its samples, all checked to be legal, or None if it refused the file.

    Whatever else it raises comes through, and so fails the test; so does a refusal that does not name `path`.

    Args:
        read: opens the data set and gives its samples.
        path: the mutated file.
    """
    try:
        samples = list(read())
    except EverymaskError as error:
        refusal = str(error)
    else:
        for sample in samples:
            check_legal(sample)
        return samples
    assert path.name in refusal, f"the file is not named: {refusal}"
    return None


def check_legal(sample: Sample) -> None:
    """Hold a sample to what `Segments` promises: sizes agree, ids are rows of the table, each row has its class."""
    segments = sample.segments
    assert sample.image.shape == (*segments.size, 3)
    assert segments.id_map.dtype in (*SMALL_IDS, torch.int32)
    assert int(segments.id_map.min()) >= VOID
    assert int(segments.id_map.max()) <= len(segments)
    if segments.id_map.ndim == 3:
        assert len(segments.id_map) > 1, "one layer is [H, W]"
    assert segments.labels is not None
    assert all(0 <= k < len(segments.labels) for k in segments.classes.tolist())
    assert len(segments.is_crowd) == len(segments.is_thing) == len(segments)
