"""Where the store lies, and the one line a person gets when it cannot be used."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from weft.cache.canonical import plain
from weft.progress import clear


def cache_dir() -> Path:
    """$WEFT_CACHE_DIR, or weft's folder in the user's cache folder; never one that all users share."""
    given = os.environ.get("WEFT_CACHE_DIR")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and os.path.isabs(base) else Path.home() / ".cache") / "weft"


def require_tuned() -> bool:
    """Whether $WEFT_REQUIRE_TUNED asks that nothing runs untuned."""
    return os.environ.get("WEFT_REQUIRE_TUNED", "") not in ("", "0")


_said: set[str] = set()


def say_once(about: str, line: str, out: Callable[[str], object] | None = None) -> bool:
    """Print a line to stderr, the first time this process has something to say about that. True when it was said."""
    if about in _said:
        return False
    _said.add(about)
    clear()
    (out or _print)(plain(line, 2000))
    return True


def forget_said() -> None:
    """Say everything again."""
    _said.clear()


def _print(line: str) -> None:
    print(f"weft: {line}", file=sys.stderr)
