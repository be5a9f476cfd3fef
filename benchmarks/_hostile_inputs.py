"""Bad input, made from good: bytes that are flipped, cut and spliced; JSON and tables with a wicked value somewhere."""

from __future__ import annotations

import io
import json
import random
import stat
import struct
import zipfile
from collections.abc import Sequence
from typing import Any

TEXTS = (
    "",
    " ",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "../../secret.png",
    "/etc/passwd",
    "..\\..\\secret.png",
    "C:\\secret.png",
    "a/b",
    ".",
    "..",
    "~",
    "\u202egnp.exe",
    "a\0b",
    "a\nb",
    "\ud800",
    "name" * 2500,
    "9" * 10_000,
    "٣" * 5000,
    "𝔘nicode\u0301" * 20,
    "=cmd|' /C calc'!A0",
    "${jndi:ldap://x}",
    "{{7*7}}",
    "%s%n",
    "'; DROP TABLE trials; --",
    "hf-hub:nobody/nothing",
    "local-dir:/tmp",
    "resnet18.hf-hub:nobody/nothing",
    "file:///etc/passwd",
    "nan",
)
VALUES: tuple[Any, ...] = (
    *TEXTS,
    None,
    True,
    0,
    -1,
    1,
    2**31,
    2**63,
    10**30,
    10**400,
    1e308,
    -0.0,
    float("nan"),
    float("inf"),
    [],
    {},
    [[]],
    [None],
    {"": {}},
    [1, 2, 3],
    ["a"] * 1000,
)
DEEP = "[" * 100_000
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def spoilt(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Some small or large harm to `data`; `others` may be spliced in."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not changed:
            return bytes(rng.randbytes(rng.randrange(64)))
        at = min(rng.randrange(len(changed)), rng.randrange(len(changed)))  # headers are where the harm is
        match rng.randrange(8):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at] = rng.randrange(256)
            case 2:
                width, order = rng.choice((1, 2, 4)), rng.choice("<>")
                number = rng.choice(NUMBERS) & (256**width - 1)
                changed[at : at + width] = struct.pack(f"{order}{ {1: 'B', 2: 'H', 4: 'I'}[width] }", number)
            case 3:
                del changed[at : at + rng.choice((1, 2, 8, 64, 1024))]
            case 4:
                changed[at:at] = rng.randbytes(rng.choice((1, 2, 8, 64)))
            case 5:
                piece = changed[at : at + rng.choice((4, 32, 256))]
                changed[at:at] = piece * rng.choice((1, 2, 50))
            case 6:
                del changed[at:]
            case _:
                other = rng.choice(others)
                cut = rng.randrange(len(other) + 1)
                changed[at:] = other[cut:]
    return bytes(changed)


def spoilt_json(value: Any, rng: random.Random) -> Any:
    """The same with a wicked value, a missing or a new name somewhere; `value` stays as it is."""
    if rng.random() < 0.15 or not isinstance(value, (dict, list)) or not value:
        return rng.choice(VALUES)
    if isinstance(value, list):
        place = rng.randrange(len(value))
        return [spoilt_json(part, rng) if i == place else part for i, part in enumerate(value)]
    name = rng.choice(list(value))
    changed = dict(value)
    match rng.randrange(6):
        case 0:
            del changed[name]
        case 1:
            changed[rng.choice(TEXTS)] = rng.choice(VALUES)
        case _:
            changed[name] = spoilt_json(value[name], rng)
    return changed


def as_json(value: Any, rng: random.Random) -> bytes:
    """`value` as text; now and then nested deeper than any reader likes, or no JSON at all."""
    if rng.random() < 0.02:
        return DEEP.encode()
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return spoilt(text, [text], rng) if rng.random() < 0.2 else text


def archive(rng: random.Random, images: Sequence[bytes]) -> bytes:
    """A zip whose names lead elsewhere, or that holds links, bombs or what is not what it says."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))) as made:
        for number in range(rng.randrange(6)):
            entry = zipfile.ZipInfo(f"{rng.choice('ab')}/{number}.png")
            if rng.random() < 0.4:
                wicked = rng.choice(TEXTS).replace("\ud800", "?")
                entry.filename = rng.choice(
                    (wicked, f"a/{wicked}.png", f"{wicked}/1.png", f"a/../{wicked}.png", f"/{wicked}.png")
                )
            if rng.random() < 0.2:
                entry.external_attr = (rng.choice((stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFREG)) | 0o777) << 16
            entry.compress_type = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
            content = rng.choice(
                (rng.choice(images), b"../../../secret.png", b"\0" * rng.choice((0, 10, 2**20)), b"<svg onload=x>")
            )
            made.writestr(entry, content)
    data = file.getvalue()
    return spoilt(data, [data], rng) if rng.random() < 0.6 else data
