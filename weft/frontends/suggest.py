"""The nearest known word to a misspelt one."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, or None when none is close."""
    lowered = {k.lower().replace("-", "_"): k for k in known}
    found = get_close_matches(word.lower().replace("-", "_")[:200], list(lowered), n=1, cutoff=0.6)
    return lowered[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str], say: str = "known: ", limit: int = 12) -> str:
    """A hint: the nearest word if there is one, else the words there are."""
    known = list(known)
    near = nearest(word, known)
    if near is not None:
        return f"did you mean '{near}'?"
    if not known:
        return ""
    rest = ", ..." if len(known) > limit else ""
    return say + ", ".join(known[:limit]) + rest
