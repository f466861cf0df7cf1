"""Integer expressions over a query index q, a key index k and a head index h, in one exact normal form.

    value = (q Q + k K + h H + c + sum w (x % m)) / den            x // m is (x - x % m) / m

A rational plane plus a bounded residual. The residual repeats: it is unchanged by any step (dq, dk) that every
congruence of `congruences` sends to 0. All of the solver rests on these two facts.
"""

import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple


class Affine(NamedTuple):
    """(q Q + k K + h H + c + sum w (x % m)) / den, with every remainder as ((x, m), w)."""

    den: int
    q: int
    k: int
    h: int
    c: int
    mods: "tuple[tuple[Remainder, int], ...]"


Remainder = tuple[Affine, int]
Box = tuple[Any, Any, Any, Any]
"""First query, last query, first key, last key; ends included. Integers, or numpy arrays of them."""


def const(value: int) -> Affine:
    return Affine(1, 0, 0, 0, value, ())


Q, K, H = Affine(1, 1, 0, 0, 0, ()), Affine(1, 0, 1, 0, 0, ()), Affine(1, 0, 0, 1, 0, ())


def make(den: int, q: int, k: int, h: int, c: int, mods: Mapping[Remainder, int]) -> Affine:
    """The normal form: no common factor, no zero weight, remainders in a fixed order."""
    kept = [(x, w) for x, w in mods.items() if w]
    g = math.gcd(den, q, k, h, c, *[w for _, w in kept])
    if len(kept) > 1:
        kept.sort(key=repr)
    return Affine(den // g, q // g, k // g, h // g, c // g, tuple((x, w // g) for x, w in kept))


def add(x: Affine, y: Affine, sign: int = 1) -> Affine:
    """x + sign * y."""
    den = math.lcm(x.den, y.den)
    u, v = den // x.den, sign * (den // y.den)
    mods = {r: w * u for r, w in x.mods}
    for r, w in y.mods:
        mods[r] = mods.get(r, 0) + w * v
    return make(den, x.q * u + y.q * v, x.k * u + y.k * v, x.h * u + y.h * v, x.c * u + y.c * v, mods)


def sub(x: Affine, y: Affine) -> Affine:
    return add(x, y, -1)


def scale(x: Affine, by: int, over: int = 1) -> Affine:
    """x * by / over."""
    return make(x.den * over, x.q * by, x.k * by, x.h * by, x.c * by, {r: w * by for r, w in x.mods})


def mod(x: Affine, m: int) -> Affine:
    """x % m for a positive m, coefficients reduced modulo m."""
    period = m * x.den

    def reduced(v: int) -> int:
        half = (period - 1) // 2
        return (v + half) % period - half

    y = make(x.den, reduced(x.q), reduced(x.k), reduced(x.h), x.c % period, {r: reduced(w) for r, w in x.mods})
    if (y.q, y.k, y.h) == (0, 0, 0) and not y.mods:
        return const(y.c % m)
    return const(0) if m == 1 else make(1, 0, 0, 0, 0, {(y, m): 1})


def div(x: Affine, m: int) -> Affine:
    """x // m for a positive m."""
    return scale(sub(x, mod(x, m)), 1, m)


def is_const(x: Affine) -> bool:
    return (x.den, x.q, x.k, x.h) == (1, 0, 0, 0) and not x.mods


def uses_head(x: Affine) -> bool:
    return reads_of(x)[2]


@cache
def substitute(x: Affine, q: Affine, k: Affine, h: Affine) -> Affine:
    """x with q, k, h replaced by expressions: a head chosen, or another layout of the sequence."""
    y = const(0)
    for weight, by in ((x.q, q), (x.k, k), (x.h, h)):
        y = add(y, scale(by, weight, x.den)) if weight else y
    y = add(y, Affine(x.den, 0, 0, 0, x.c, ()))
    for (z, m), w in x.mods:
        y = add(y, scale(mod(substitute(z, q, k, h), m), w, x.den))
    return y


@cache
def congruences(x: Affine) -> frozenset[tuple[int, int, int]]:
    """(a, b, m): the residual of x is unchanged by (dq, dk) where a dq + b dk = 0 mod m for all of them."""
    out: set[tuple[int, int, int]] = set()
    for (y, m), _ in x.mods:
        period = m * y.den
        g = math.gcd(y.q, y.k, period)
        out |= congruences(y)
        if period > g:
            out.add((y.q // g % (period // g), y.k // g % (period // g), period // g))
    return frozenset(out)


@cache
def reads_of(x: Affine) -> tuple[bool, bool, bool]:
    """Does it read q, k, h?"""
    inner = [reads_of(y) for (y, _), _ in x.mods]
    q, k, h = (any(r[side] for r in inner) for side in range(3))
    return q or x.q != 0, k or x.k != 0, h or x.h != 0


@cache
def residual(x: Affine) -> tuple[int, int]:
    """Least and greatest of den * value minus the plane's q and k terms."""
    low = x.c + sum(min(0, w * (m - 1)) for (_, m), w in x.mods)
    return low, x.c + sum(max(0, w * (m - 1)) for (_, m), w in x.mods)


def coarse_bounds(x: Affine, box: Box) -> tuple[int, int]:
    """An interval that holds x on a box, from the plane and the residual alone: the same for every coset."""
    low, high = residual(x)
    return _interval(x.den, x.q, x.k, low, high, box)


def bounds(x: Affine, box: Box) -> tuple[int, int]:
    """An interval that holds x on a box; tighter, since a remainder that does not wrap there is affine."""
    den, a, b, low, high, todo = x.den, x.q, x.k, x.c, x.c, list(x.mods)
    while todo:
        (y, m), w = todo.pop()
        least, most = bounds(y, box)
        f = least // m
        if f != most // m:
            low, high = low + min(0, w * (m - 1)), high + max(0, w * (m - 1))
            continue
        u, shift = y.den, w * (y.c - m * f * y.den)  # y % m is y - m f here
        den, a, b, low, high = den * u, a * u + w * y.q, b * u + w * y.k, low * u + shift, high * u + shift
        todo = [(r, v * u) for r, v in todo] + [(r, v * w) for r, v in y.mods]
    return _interval(den, a, b, low, high, box)


def _interval(den: int, a: int, b: int, low: int, high: int, box: Box) -> tuple[int, int]:
    q0, q1, k0, k1 = box
    aq0, aq1, bk0, bk1 = (a * q0, a * q1, b * k0, b * k1)
    if a < 0:
        aq0, aq1 = aq1, aq0
    if b < 0:
        bk0, bk1 = bk1, bk0
    return -(-(aq0 + bk0 + low) // den), (aq1 + bk1 + high) // den


def numerator(x: Affine, q: Any, k: Any, h: Any = 0) -> Any:
    """den * value at integer indices: of the same sign, without the division.

    Operators only, so numpy arrays and torch tensors broadcast through it.
    """
    # what reads one index only is summed first, while it is still a vector
    parts: dict[tuple[bool, bool, bool], Any] = {(False, False, False): x.c}
    for at, (weight, index) in enumerate(((x.q, q), (x.k, k), (x.h, h))):
        if weight:
            parts[at == 0, at == 1, at == 2] = index if weight == 1 else weight * index
    for (y, m), w in x.mods:
        term = w * (evaluate(y, q, k, h) % m)
        reads = reads_of(y)
        parts[reads] = parts[reads] + term if reads in parts else term
    return sum(parts.values())


def evaluate(x: Affine, q: Any, k: Any, h: Any = 0) -> Any:
    """The value at integer indices, as `numerator`."""
    out = numerator(x, q, k, h)
    return out // x.den if x.den > 1 else out


def moduli(xs: Iterable[Affine]) -> frozenset[int]:
    """Every modulus in use, those inside remainders included."""
    return frozenset(m for x in xs for _, _, m in congruences(x))
