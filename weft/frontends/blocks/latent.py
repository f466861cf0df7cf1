"""Low-rank keys and values, and queries: what all heads' are products of (DeepSeek-V2, Liu et al. 2024, 2.1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from weft.errors import FormulaError, Path, Problem
from weft.frontends.blocks.rotary import RotaryPositions, turned
from weft.frontends.resolve import Dims
from weft.frontends.schema_values import Norm, Size, SpecPart

if TYPE_CHECKING:
    from weft.frontends.blocks.sides import Axes
    from weft.frontends.lower.scope import Scope
    from weft.ir.types import Val


class Latent(SpecPart):
    """Keys and values as products of one latent, smaller than they are together (multi-head latent attention).

    c = norm(x w) [rank]; a head's keys are c times a matrix, its values c times another. `shared` dims of a head's key
    are a product of x instead, the same for all heads; `rotary` turns these alone. With `query_rank` queries are
    products of a latent of their own. `bias`: `value` is that of c, `key` that of the shared key, `query` that of the
    queries' latent, or of the queries where they have none. Decoding keeps c and the shared key of a position, not keys
    and values, where that is less."""

    rank: Size = Field(description="size of the latent that keys and values are products of")
    query_rank: Size | None = Field(
        default=None, description="size of the latent that queries are products of; default: queries are products of x"
    )
    shared: Size | None = Field(
        default=None,
        description="how many dims of a head have a key that all heads share, and turn with `rotary`; default: none",
    )
    norm: Norm = Field(default="rms_norm", description="of each latent")


def latent_problems(rule: Latent, dims: Dims, head: int | str, turns: bool, path: Path) -> Iterator[Problem]:
    """A shared key that leaves nothing of a head, or that cannot turn."""
    try:
        many, some = dims.size(head), 0 if rule.shared is None else dims.size(rule.shared)
    except FormulaError:
        return
    if some >= many:
        message = f"{some} dims of a head of {many} are shared, and none is left for a key of its own"
        yield Problem("W0402", message, (*path, "shared"), f"a number below {many}")
    elif turns and some % 2:
        message = f"rotary positions turn pairs, and of {some} shared dims one has none"
        yield Problem("W0402", message, (*path, "shared"), "an even number")


def products(
    s: Scope, x: Val, rows: Val, rule: Latent, turning: RotaryPositions | None, a: Axes, stem: str, path: Path,
    biased: set[str],
) -> tuple[Val, Val, Val]:  # fmt: skip
    """Queries of x [batch length width], keys and values of `rows` [batch source width]: [batch rows heads head].

    turning: the rotary positions of the shared dims, if they have any."""
    low, where = s.low, (*path, "latent")
    taken = (*s.space, a.source, *a.query.split(), a.head, a.value)
    rank = low.axis(rule.rank, "rank", (*where, "rank"), taken)
    shared = "" if rule.shared is None else low.axis(rule.shared, "shared", (*where, "shared"), (*taken, rank))
    own = a.head if not shared else low.mint("own", low.number(a.head) - low.number(shared), (*taken, rank, shared))
    with s.at(*where):
        queries, of, down = x, "width", "query" if "query" in biased else ""
        if rule.query_rank is not None:
            of = low.axis(rule.query_rank, "query_rank", (*where, "query_rank"), (*taken, own, shared))
            queries = _latent(s, x, rule, of, f"{stem}.query_latent", where, down)
            down = ""
        c = _latent(s, rows, rule, rank, f"{stem}.latent", where, "value" if "value" in biased else "")

        def product(x: Val, name: str, of: str, to: str, bias: str = "") -> Val:
            length = x.dims[1]
            return s.linear(
                name, x, f"{of} {to}", f"batch {length} {to}", f"{stem}.{name}", to if bias else None, fan_in=of
            )

        q, k = product(queries, "query", of, f"{a.query} {own}", down), product(c, "key", rank, f"{a.keys} {own}")
        v = product(c, "value", rank, f"{a.keys} {a.value}")
        if not shared:
            return q, k, v
        more = product(queries, "query_shared", of, f"{a.query} {shared}", down)
        one = product(rows, "key_shared", "width", shared, "key" if "key" in biased else "")
    if turning is not None:
        more = turned(s, more, turning, s.length, shared, (*path, "rotary"), "query_turned", a.past)
        one = turned(s, one, turning, a.source, shared, (*path, "rotary"), "key_turned")
    with s.at(*where):
        each = s.g.expand(one, to=f"batch {a.source} {a.keys} {shared}")
        q, k = (s.g.concat(*parts, dims=(shared, own), new=a.head) for parts in ((more, q), (each, k)))
        return q, k, v


def _latent(s: Scope, x: Val, rule: Latent, rank: str, stem: str, path: Path, biased: str) -> Val:
    """norm(x w + b): [batch rows rank]."""
    name = stem.rpartition(".")[2]
    c = s.linear(name, x, f"width {rank}", f"batch {x.dims[1]} {rank}", f"{stem}", rank if biased else None)
    return s.norm(c, rule.norm, f"{stem}_norm", (*path, "norm"), rank)
