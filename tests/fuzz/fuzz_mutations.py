"""Damages input files of every kind, in the ways that chance and malice do; `seed` decides all of it."""

import io
import json
import random
import zipfile
from collections.abc import Callable
from typing import Any

EVIL = "e\x1b[2J\x07\nmet\r\x9b\u202e\u200b[bold]|`<b>"
HOSTILE_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**400, 1e308, 1e-320, float("nan"), float("inf")),
    *("", " ", EVIL, "x" * 5000, "\ud800", "a\0b", "../../../../etc/passwd", "/dev/zero", "/", ".", "~", "os:system"),
    *([], {}, [[]], {"": 0}, [EVIL] * 50, list(range(3000)), {EVIL: EVIL}, {"a": {"b": {"c": []}}}),
    *("5 ms", "10 GiB", "1e400 ms", "-3 KiB", "100 %", "=1", "*a", "&a", "!!python/object:os.system x", "{", "[", ": "),
)
HOSTILE_BYTES = (
    b"\0",
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"\n",
    b"\x1b[2J",
    b"[" * 300,
    b"{" * 300,
    b"-",
)


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """`content` with bits flipped, pieces removed, repeated, moved or overwritten."""
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        place, length = rng.randrange(len(damaged) + 1), rng.choice((1, 4, 16, 100))
        match rng.randrange(6):
            case 0 if damaged:
                damaged[min(place, len(damaged) - 1)] ^= 1 << rng.randrange(8)
            case 1:
                del damaged[place : place + length]
            case 2:
                damaged[place:place] = damaged[place : place + length] * rng.choice((1, 2, 30))
            case 3:
                damaged[place:place] = rng.choice(HOSTILE_BYTES)
            case 4:
                hostile_bytes = rng.choice(HOSTILE_BYTES)
                damaged[place : place + len(hostile_bytes)] = hostile_bytes
            case _:
                start = rng.randrange(len(damaged) + 1)
                damaged[place:place] = damaged[start : start + length]
    return bytes(damaged[: rng.randrange(len(damaged) + 1)] if rng.random() < 0.1 else damaged)


def damage_tree(tree: Any, rng: random.Random) -> Any:
    """A JSON value with some of its values and keys replaced, removed, repeated, renamed or nested."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.choice((1, 1, 1, 2, 4, 10))):
        places = list(_iter_places(tree))
        if not places:
            return rng.choice(HOSTILE_VALUES)
        _damage_place(*rng.choice(places), rng, places)
    return tree


def _iter_places(node: Any) -> Any:
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in keys:
        yield node, key
        yield from _iter_places(node[key])


def _damage_place(node: Any, key: Any, rng: random.Random, places: list[Any]) -> None:
    other_node, other_key = rng.choice(places)
    match rng.randrange(7):
        case 0 | 1:
            node[key] = rng.choice(HOSTILE_VALUES)
        case 2:
            del node[key]
        case 3 if isinstance(node, dict):
            node[rng.choice((EVIL, key + "x", key[:-1], "x" * 3000, key.upper(), ""))] = node.pop(key)
        case 4 if isinstance(node, list):
            node[key:key] = [node[key]] * rng.choice((1, 2, 1500))
        case 5:
            node[key] = json.loads(json.dumps(other_node[other_key])) if other_key in _keys(other_node) else None
        case 6:
            node[key] = _nest(node[key], rng.choice((1, 3, 60, 300)), rng)
        case _:
            node[key] = _change_number(node[key], rng)


def _keys(node: Any) -> Any:
    return node if isinstance(node, dict) else range(len(node))


def _nest(value: Any, depth: int, rng: random.Random) -> Any:
    is_list = rng.random() < 0.5
    for _ in range(depth):
        value = [value] if is_list else {"a": value}
    return value


def _change_number(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)[: rng.randrange(20)]
    return rng.choice((-value, value * 1000, value + 1, value / 3, value * 10**12, str(value)))


def damage_json(content: bytes, rng: random.Random) -> bytes:
    """A JSON document with a damaged tree, or damaged bytes."""
    if rng.random() < 0.25:
        return damage_bytes(content, rng)
    try:
        return json.dumps(damage_tree(json.loads(content), rng)).encode(errors="surrogatepass")
    except (RecursionError, ValueError):  # too deep for the writer
        return damage_bytes(content, rng)


def damage_zip(
    content: bytes, rng: random.Random, damage_member: Callable[[str, bytes, random.Random], bytes]
) -> bytes:
    """A zip with damaged, missing, repeated, renamed or encrypted members, or damaged bytes."""
    if rng.random() < 0.2:
        return damage_bytes(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    index = rng.randrange(len(members))
    name, member = members[index]
    match rng.randrange(8):
        case 0:
            del members[index]
        case 1:
            members[index] = (rng.choice((EVIL, "../" + name, "/" + name, "x" * 4000, "")), member)
        case 2:
            members += [members[index]] * rng.choice((1, 2, 500))
        case _:
            members[index] = (name, damage_member(name, member, rng))
    buffer, method = io.BytesIO(), rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(buffer, "w", method if rng.random() < 0.3 else zipfile.ZIP_STORED) as archive:
        for member_name, member_content in members:
            archive.writestr(zipfile.ZipInfo(member_name or "x"), member_content, archive.compression)
    return damage_bytes(buffer.getvalue(), rng) if rng.random() < 0.1 else buffer.getvalue()
