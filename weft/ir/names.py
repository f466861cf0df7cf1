"""Names of the spec as words of generated text."""

import re

from weft.errors import SpecError

_LABEL = re.compile(r"[A-Za-z_0-9]+(\.[A-Za-z_0-9]+)*")


def identifier(name: str, taken: frozenset[str] | set[str] = frozenset()) -> str:
    """A Python identifier made of [a-z0-9_] for any name, not among `taken`."""
    stem = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "v"
    stem = f"v_{stem}" if stem[0].isdigit() else stem
    found, i = stem, 1
    while found in taken:
        i += 1
        found = f"{stem}_{i}"
    return found


def provenance(src: str) -> str:
    """A spec line as it may stand in a comment: a file's name in plain characters, and a number."""
    name, _, line = src.rpartition(":")
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}:{line}" if line.isdigit() else ""


def label(name: str) -> str:
    """A logical name as it may stand in generated source. Raises SpecError unless it is words and dots."""
    if not _LABEL.fullmatch(name):
        raise SpecError.at(
            (), "W0405", f"parameter name {name!a} is not made of words and dots", "use letters, digits, _"
        )
    return name
