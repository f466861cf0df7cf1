"""What queries, keys and values of an attention are: a product each, or scales and offsets of one they share; and the
norms of queries and keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from weft.errors import Path
from weft.frontends.blocks.latent import products
from weft.frontends.blocks.rotary import turned
from weft.frontends.schema_values import SpecPart

if TYPE_CHECKING:
    from weft.frontends.blocks.attention import Attention
    from weft.frontends.blocks.sides import Axes
    from weft.frontends.lower.scope import Scope
    from weft.ir.types import Val


class QkNorm(SpecPart):
    """A normalisation of queries and keys, of each by weights of its own, before rotary positions.

    `l2` is x / sqrt(sum(x**2) + eps) times a weight."""

    kind: Literal["rms_norm", "layer_norm", "l2"] = Field(description="`rms_norm`, `layer_norm` or `l2`")
    over: Literal["head", "each_head", "projection"] = Field(
        default="head",
        description="`head`: each head by itself, all with one weight [head]; `each_head`: by itself, with a weight of "
        "its own [heads head] (Cohere); `projection`: all heads together, with a weight [heads head] (OLMo 2)",
    )
    eps: float | None = Field(
        default=None,
        gt=0,
        description="added to the variance, or to the sum of squares; default 1e-5 (`layer_norm`) or 1e-6",
    )
    bias: bool = Field(default=True, description="`layer_norm` only: whether it adds a bias")
    offset: float = Field(default=0.0, description="added to the weight, as in [NormRule](#normrule)")


def normed(s: Scope, x: Val, rule: QkNorm, heads: tuple[str, ...], head: str, stem: str, path: Path) -> Val:
    """x [batch rows heads head] normalised; its weights are called by `stem`."""
    over = (*heads, head) if rule.over == "projection" else (head,)
    with s.at(*path):
        return s.normalised(x, rule, stem, over, heads if rule.over == "each_head" else ())


class Sides:
    """Queries of x [batch length width], keys and values of `rows` [batch source width].

    biased: which of a block's products have a bias."""

    def __init__(
        self, s: Scope, x: Val, rows: Val, a: Axes, block: Attention, stem: str, path: Path, biased: set[str]
    ) -> None:
        self.s, self.x, self.rows, self.a, self.block = s, x, rows, a, block
        self.stem, self.path, self.biased = stem, path, biased
        self.act = None if block.activation == "none" else s.activation(block.activation, (*path, "activation"))
        self.both = self._shared() if block.shared_qk else None

    def products(self) -> tuple[Val, Val, Val]:
        """All three [batch rows heads head], where they stand."""
        block = self.block
        if block.latent is not None:
            turning = block.turning if block.rotary else None
            return products(self.s, self.x, self.rows, block.latent, turning, self.a, self.stem, self.path, self.biased)
        if self.both is not None:
            (v,) = self.projected(self.rows, ("value",))
            return *self.queries_and_keys(), v
        (q,) = self.projected(self.x, ("query",))
        k, v = self.projected(self.rows, ("key", "value"))
        return *self._placed(q, k), v

    def queries_and_keys(self, suffix: str = "") -> tuple[Val, Val]:
        """With parameters of names that end so."""
        if self.both is None:
            (q,), (k,) = self.projected(self.x, ("query",), suffix), self.projected(self.rows, ("key",), suffix)
        else:
            q, k = (self._offset(z, f"{name}{suffix}") for z, name in zip(self.both, ("query", "key")))
        return self._placed(q, k, suffix)

    def projected(self, x: Val, which: tuple[str, ...], suffix: str = "") -> list[Val]:
        """Each of `which` as activation(x w + b): [batch rows heads head]."""
        a, s = self.a, self.s
        out: list[Val] = []
        (rows,) = {*x.dims} - {"batch", "width"}
        for name in which:
            own = f"{a.query if name == 'query' else a.keys} {a.value if name == 'value' else a.head}"
            full, bias = name + suffix, own if name in self.biased else None
            to = f"batch {rows} {own}"
            if self.act is None:
                out.append(s.linear(full, x, f"width {own}", to, f"{self.stem}.{full}", bias))
                continue
            y = s.einsum(full, x, s.param(f"{self.stem}.{full}.weight", f"width {own}", fan_in="width"), to=to)
            more = {} if bias is None else {"up_bias": s.param(f"{self.stem}.{full}.bias", bias, "bias")}
            out.append(s.hidden(y, None, self.act, to, **more))
        return out

    def _shared(self) -> tuple[Val, Val]:
        """z of the queries' rows and of the keys', by one matrix: [batch rows head]."""
        s, head = self.s, self.a.head
        with s.at(*self.path, "shared_qk"):
            w = s.param(f"{self.stem}.shared.weight", f"width {head}", fan_in="width")
            bias = {"up_bias": s.param(f"{self.stem}.shared.bias", head, "bias")} if "query" in self.biased else {}
            act = s.ir.symbol("x") if self.act is None else self.act
            each: dict[Val, Val] = {}
            for x in (self.x, self.rows):
                if x not in each:
                    to = f"batch {x.dims[1]} {head}"
                    each[x] = s.hidden(s.einsum("shared", x, w, to=to), None, act, to, **bias)
        return each[self.x], each[self.rows]

    def _offset(self, z: Val, name: str) -> Val:
        """z times a scale and plus an offset of each head: [batch rows heads head]."""
        s = self.s
        own = f"{self.a.query if name.startswith('query') else self.a.keys} {self.a.head}"
        with s.at(*self.path, "shared_qk"):
            scale = s.param(f"{self.stem}.{name}_scale", own)
            offset = s.param(f"{self.stem}.{name}_offset", own, "bias")
            to = f"batch {z.dims[1]} {own}"
            return s.map(name, "z*g + o", z=z, g=scale, o=offset, to=to, dtype=s.compute)

    def _placed(self, q: Val, k: Val, suffix: str = "") -> tuple[Val, Val]:
        s, a = self.s, self.a
        of = (a, self.block, self.stem, self.path)
        q = turned_and_normed(s, q, s.length, *of, f"query{suffix}", a.past)
        return q, turned_and_normed(s, k, a.source, *of, f"key{suffix}")


def turned_and_normed(
    s: Scope, x: Val, seq: str, a: Axes, block: Attention, stem: str, path: Path, name: str, past: str = ""
) -> Val:
    """Queries or keys along `seq`, called `name`, with the norm and the rotary positions that the block has; past: the
    dim of rows before the first."""
    if block.qk_norm != "none":
        rule = QkNorm(kind=block.qk_norm) if isinstance(block.qk_norm, str) else block.qk_norm
        many = a.keys if name.startswith("key") else a.query
        x = normed(s, x, rule, tuple(many.split()), a.head, f"{stem}.{name}_norm", (*path, "qk_norm"))
    if not block.rotary:
        return x
    return turned(s, x, block.turning, seq, a.head, (*path, "rotary"), name, past)
