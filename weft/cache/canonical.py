"""One spelling for equal data, its hash, and text that is fit to show: what every identity in the store rests on."""

import hashlib
import json
import re
from typing import Any

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def canonical(data: Any) -> str:
    """JSON with sorted keys, no spaces, ASCII only; ValueError for a NaN or an infinity."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(data: Any, length: int = 32) -> str:
    """The first `length` hex digits of the SHA-256 of the canonical spelling."""
    return hashlib.sha256(canonical(data).encode()).hexdigest()[:length]


def plain(text: str, most: int = 500) -> str:
    """The text in one line without characters that steer a terminal, cut to `most`."""
    return _CONTROL.sub(" ", text)[:most]


def is_text(value: Any, most: int = 200) -> bool:
    """Whether a value read from a file is a text that is fit to show."""
    return isinstance(value, str) and len(value) <= most and _CONTROL.search(value) is None


def is_count(value: Any, most: int = 2**62) -> bool:
    """Whether a value read from a file is an integer from 0; True and 1.0 are not."""
    return type(value) is int and 0 <= value <= most
