"""Amounts as people write them: `60GB` is 60 * 10**9 bytes, `60GiB` is 60 * 2**30."""

import re

from weft.errors import UsageError

_UNITS = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip


def bytes_of(amount: str | int | float) -> int:
    """`60GB` -> 60_000_000_000, a number as it is; UsageError for anything else, naming the units there are."""
    if isinstance(amount, bool) or type(amount) not in (str, int, float):
        raise TypeError(f"memory is a number of bytes, or a text such as '60GB', not {type(amount).__name__}")
    if not isinstance(amount, str):
        if not 0 <= amount < 1 << 63:
            raise UsageError(f"{amount!r} is not an amount of memory in bytes")
        return int(amount)
    text = amount
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([A-Za-z]{0,3})", text.strip())
    if found is None or found[2].upper() not in _UNITS:
        short = found is not None and f"{found[2].upper()}B" in _UNITS
        way = f"{found[1]}{found[2].upper()}B" if short and found is not None else "60GB"
        raise UsageError(f"'{text[:40]}' is not an amount of memory; write {way} (10**9 bytes a GB) or 60GiB (2**30)")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def show_bytes(amount: float) -> str:
    """60_000_000_000 -> `60 GB`."""
    return _scaled(amount, ("B", "kB", "MB", "GB", "TB", "PB"))


def show_count(amount: float) -> str:
    """94_400_000 -> `94.4 M`."""
    return _scaled(amount, ("", "k", "M", "B", "T", "P"))


def _scaled(amount: float, units: tuple[str, ...]) -> str:
    power = 0
    while abs(amount) >= 999.5 and power < len(units) - 1:
        amount, power = amount / 1000, power + 1
    digits = f"{amount:.3g}" if power else f"{amount:g}"
    return f"{digits} {units[power]}".rstrip()
