"""A line of a shard: checksum, space, canonical JSON, newline. The checksum is seeded with the key's id, so that a
line is worth nothing in another key's folder.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import Any

MOST_LINE = 1 << 18  # bytes


@dataclass
class Health:
    """What was found where rows are read: lines that were rows, that were damaged, that were of another version."""

    rows: int = 0
    damaged: int = 0
    foreign: int = 0

    def __add__(self, other: Health) -> Health:
        return Health(self.rows + other.rows, self.damaged + other.damaged, self.foreign + other.foreign)


def seed(owner: str) -> int:
    """What the checksums of the lines of this owner start from."""
    return zlib.crc32(owner.encode())


def encode(text: str, start: int) -> bytes:
    """The line of a JSON text."""
    body = text.encode("ascii")
    return b"%08x %b\n" % (zlib.crc32(body, start), body)


def decode(line: bytes, start: int, most: int = MOST_LINE) -> Any:
    """The data of a line without its newline; None when it is damaged, or longer than `most` bytes."""
    if len(line) > most or line[8:9] != b" ":
        return None
    body = line[9:]
    if line[:8] != b"%08x" % zlib.crc32(body, start):
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def whole(data: bytes) -> tuple[list[bytes], int]:
    """The complete lines and how many bytes they take; what follows the last newline is still being written."""
    end = data.rfind(b"\n") + 1
    return data[:end].split(b"\n")[:-1], end
