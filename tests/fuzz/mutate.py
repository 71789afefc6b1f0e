"""Change valid files a little: bytes, JSON values, the members of zip files.

Every change is drawn from the generator that is given, so that an input can be made again from its
number alone.
"""

import copy
import io
import json
import zipfile
from random import Random
from typing import Any

INTERESTING: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**63),
    *(-(2**63), 2**64, 10**30, 0.0, -0.0, 0.5, 1e9, -1e9, 1e308, 1e-308, float("nan")),
    *(
        float("inf"),
        float("-inf"),
        "",
        "0",
        "1",
        "a",
        "..",
        "../x",
        "/etc/hostname",
        "\x00",
        "zzzz",
    ),
    *(
        "\ud800",
        "é" * 300,
        [],
        [[]],
        {},
        [None],
        [0],
        [1, 2, 3, 4],
        {"size": [1, 1], "counts": "1"},
    ),
    *({"size": [2**32, 2**32], "counts": [0]}, {"size": [4, 4], "counts": "0" * 50}),
    *([[0, 0, 9, 0, 9, 9]], [[1e9, 0, 1e9, 9, 0, 9]], {"id": 1}, [[[[[[]]]]]]),
)
INTERESTING_BYTES = (
    *(b"\x00", b"\xff", b"\x80", b"\n", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\xff" * 8),
    *(b"NaN", b"Infinity", b"-1", b"9" * 30, b"9" * 5000, b"1e999", b"null", b"\xed\xa0\x80"),
    *(b"[" * 2000, b"{", b"}", b"]", b'"', b",", b":", b"\\u0000", b"\\ud800", b"\xef\xbb\xbf"),
)
MAX_CHANGES = 4
LARGEST = 1 << 16  # bytes of an input; longer ones are cut


def mutate(data: bytes, other: bytes, form: str, tokens: tuple[bytes, ...], rng: Random) -> bytes:
    """A changed copy of `data`.

    Args:
        other: another valid file, parts of which may be put in.
        form: "json", "jsonl", "zip" or "bytes": what is changed besides bytes.
        tokens: texts that mean something to the reader.
    """
    chance = rng.random()
    if form in ("json", "jsonl") and chance < 0.7:
        changed = _mutate_json(data, other, form == "jsonl", rng)
        return _mutate_bytes(changed, other, tokens, rng) if chance < 0.1 else changed
    if form == "zip" and chance < 0.75:
        return _mutate_zip(data, other, tokens, rng)[: 4 * LARGEST]
    return _mutate_bytes(data, other, tokens, rng)


def _mutate_bytes(data: bytes, other: bytes, tokens: tuple[bytes, ...], rng: Random) -> bytes:
    content = bytearray(data)
    for _ in range(rng.randint(1, MAX_CHANGES)):
        size = len(content)
        at = rng.randrange(size + 1)
        end = min(size, at + rng.choice((1, 2, 4, 8, 16, 64)))
        match rng.randrange(10):
            case 0 if at < size:
                content[at] ^= 1 << rng.randrange(8)
            case 1 if at < size:
                content[at] = rng.randrange(256)
            case 2:
                del content[at:end]
            case 3:
                content[at:at] = content[at:end]
            case 4:
                content[at:end] = rng.choice(INTERESTING_BYTES)
            case 5:
                content[at:at] = rng.choice(tokens or INTERESTING_BYTES)
            case 6:
                content[at:end] = rng.choice(tokens or INTERESTING_BYTES)
            case 7:
                start = rng.randrange(len(other) + 1)
                content[at:end] = other[start : start + rng.choice((4, 16, 64, 256))]
            case 8:
                del content[at:]
            case _ if size:  # exchange two parts
                start = rng.randrange(size)
                length = min(16, abs(start - at))
                first, second = sorted((start, at))
                part = content[first : first + length]
                content[first : first + length] = content[second : second + length]
                content[second : second + length] = part
    return bytes(content[:LARGEST])


def _mutate_json(data: bytes, other: bytes, lines: bool, rng: Random) -> bytes:
    documents = data.splitlines() if lines else [data]
    try:
        values = [json.loads(document) for document in documents if document.strip()]
        values_of_other = json.loads(other.splitlines()[0] if lines else other)
    except (ValueError, IndexError, RecursionError):
        return _mutate_bytes(data, other, (), rng)
    root: list[Any] = values
    for _ in range(rng.randint(1, MAX_CHANGES)):
        _change_value(root, values_of_other, rng)
    texts = [json.dumps(value, ensure_ascii=rng.random() < 0.9) for value in root]
    return "\n".join(texts).encode("utf-8", "surrogatepass") + b"\n" * lines


def _change_value(root: list[Any], other: Any, rng: Random) -> None:
    """Change one place of a tree: walk down at random, stop at random."""
    node: Any = root
    if not node:
        return
    while True:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        key = rng.choice(keys)
        child = node[key]
        if isinstance(child, dict | list) and child and rng.random() < 0.8:
            node = child
            continue
        break
    match rng.randrange(8):
        case 0 | 1:
            node[key] = _interesting(rng)
        case 2:
            del node[key]
        case 3 if isinstance(node, list):
            node.insert(key, node[key])
        case 3:
            node[rng.choice(("id", "x", "", "segmentation", "point", "\x00"))] = node[key]
        case 4:
            node[key] = _somewhere(other, rng)
        case 5:
            node[key] = _somewhere(root, rng)
        case 6:
            node[key] = [node[key]] if rng.random() < 0.5 else {"a": node[key]}
        case _:
            node[key] = _nudged(child, rng)


def _interesting(rng: Random) -> Any:
    """One of INTERESTING, which later changes must not reach."""
    return copy.deepcopy(rng.choice(INTERESTING))


def _somewhere(tree: Any, rng: Random) -> Any:
    """A copy of a random part of a tree."""
    node = tree
    while isinstance(node, dict | list) and node and rng.random() < 0.75:
        node = node[rng.choice(list(node) if isinstance(node, dict) else range(len(node)))]
    return json.loads(json.dumps(node))


def _nudged(value: Any, rng: Random) -> Any:
    if isinstance(value, bool) or value is None:
        return _interesting(rng)
    if isinstance(value, int):
        return value + rng.choice((-1, 1, 64, -64, 10**6))
    if isinstance(value, float):
        return value * rng.choice((-1, 0.5, 1e3, 1e300))
    if isinstance(value, str):
        text = _mutate_bytes(value.encode("utf-8", "surrogatepass"), b"0123oT`P", (), rng)
        return text.decode("utf-8", "replace")
    return _interesting(rng)


def _mutate_zip(data: bytes, other: bytes, tokens: tuple[bytes, ...], rng: Random) -> bytes:
    """Change the content of members, or which there are; the file around them is a whole one."""
    try:
        members, method = _members(data)
        others, _ = _members(other)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError):
        return _mutate_bytes(data, other, tokens, rng)
    if not members:
        return _mutate_bytes(data, other, tokens, rng)
    number = rng.randrange(len(members))
    name, content = members[number]
    match rng.randrange(12):
        case 0:
            del members[number]
        case 1:
            members.append((name, content))
        case 2 if others:
            members[number] = (name, rng.choice(others)[1])
        case 3:
            members[number] = (rng.choice(("a.npy", "ids.npy", "../x", "", name + "x")), content)
        case _:
            tail = rng.choice(others)[1] if others else b""
            members[number] = (name, _mutate_bytes(content, tail, tokens, rng))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return file.getvalue()


def _members(data: bytes) -> tuple[list[tuple[str, bytes]], int]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
        methods = {info.compress_type for info in archive.infolist()}
    return members, zipfile.ZIP_DEFLATED if zipfile.ZIP_DEFLATED in methods else zipfile.ZIP_STORED
