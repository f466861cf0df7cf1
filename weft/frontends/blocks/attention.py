"""Attention blocks: projections, rotary positions, the pattern, global tokens, the output projection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from weft.errors import FormulaError, Path, Problem, SpecError
from weft.frontends.blocks.apart import apart, misplaced, segments
from weft.frontends.blocks.block_plan import BlockPlan, planned
from weft.frontends.blocks.kind import Aux, BlockKind
from weft.frontends.blocks.latent import Latent, latent_problems
from weft.frontends.blocks.memory.among import among, between, unfit_across, unfit_among
from weft.frontends.blocks.memory.behind import unfit, unfit_score
from weft.frontends.blocks.mixed_chunk import Chunks, MixedChunk
from weft.frontends.blocks.projected import QkNorm, Sides, turned_and_normed
from weft.frontends.blocks.relative import Placed, Relative, placed
from weft.frontends.blocks.rotary import RotaryPositions, rotary_problems, score_factor
from weft.frontends.blocks.sides import Axes, axes_of, keys_of
from weft.frontends.resolve import Dims
from weft.frontends.schema_values import Activation, Formula, Name, Number, Rate, Size, SpecPart, one_of
from weft.ir.pattern import is_causal, rows_seeing_nothing
from weft.ir.pattern.formula import BatchCondition, Junction
from weft.ir.pattern.pattern import Pattern

if TYPE_CHECKING:
    from weft.frontends.lower.scope import Scope
    from weft.ir.types import Val


WEIGHTS = {"laplace": "(1 + erf((s - sqrt(1/2))*sqrt(2*pi)))/2"}
"""Weights by name. Laplace: of mean sqrt(1/2) and deviation sqrt(1/(4 pi)), the closest to max(s, 0)**2."""
PROJECTIONS = ("query", "key", "value", "gate", "output")


class Globals(SpecPart):
    """Longformer's global tokens: they see all and are seen by all; their rows have projections of their own.

    `rotary`, `scale`, `score` and `sinks` hold for these rows as for the others, and so do `valid` and `same_segment`
    where the pattern joins them to the rest by `and`."""

    tokens: Size = Field(description="how many leading positions are global")


class Attention(BlockKind):
    """Multi-head attention: softmax over the keys that `pattern` allows."""

    either = (("pattern", "plan"),)
    kind: Literal["attention"] = "attention"
    heads: Size = Field(default="heads", description="query heads")
    kv_heads: Size | None = Field(
        default=None, description="key and value heads; a divisor of `heads`; default: as `heads`"
    )
    head: Size = Field(default="head", description="size of a query and key head")
    value: Size | None = Field(default=None, description="size of a value head; default: as `head`")
    latent: Latent | None = Field(
        default=None, description="keys and values as products of a latent (multi-head latent attention)"
    )
    pattern: Formula | None = Field(
        default=None,
        description="which keys k a query q sees: a predicate such as `causal and fixed(stride, summary)`, "
        "`0 <= q - k < 256`, `heads(window(stride), strided(stride))`",
    )
    plan: BlockPlan | None = Field(default=None, description="a block plan with multiplicity, instead of `pattern`")
    globals: Globals | None = Field(default=None, description="global tokens with their own projections (Longformer)")
    qk_norm: Annotated[
        Annotated[Literal["rms_norm", "layer_norm", "l2", "none"], Tag("text")] | Annotated[QkNorm, Tag("map")],
        one_of("`rms_norm`, `layer_norm`, `l2`, `none`, or a map with `kind`"),
    ] = Field(default="none", description="normalisation of queries and keys, before rotary positions")
    rotary: Annotated[
        Annotated[bool, Tag("flag")] | Annotated[RotaryPositions, Tag("map")],
        one_of("`true`, `false`, or a map with `base`"),
    ] = Field(default=False, description="rotary positions on queries and keys")
    relative: Relative | None = Field(
        default=None, description="relative positions: scores that depend on the distance of query and key"
    )
    scale: Number = Field(
        default="1/sqrt(head)", description="factor on q·k: a number, of any sign, or a formula over dims"
    )
    score: Number = Field(
        default="s",
        description="score after scaling: a formula in `s`, `q`, `k`, `h` and dims, e.g. `30*tanh(s/30)`; it may be "
        "anything, even undefined, where the pattern hides a key",
    )
    sinks: bool = Field(
        default=False,
        description="a learned logit of each head that takes part in the softmax's sum and has no value (gpt-oss); a "
        "parameter `sinks` [heads], initialised as biases are",
    )
    weights: Formula = Field(
        default="softmax",
        description="what values are weighed by: `softmax` of the scores; or a formula in the score `s` of one key, "
        "`q`, `k`, `h` and dims, of which nothing is divided by a sum: `relu2` is max(s, 0)**2 (Hua et al. 2022), "
        "`laplace` a smooth step (Ma et al. 2022). A factor in `scale` is squared with the score, as that of "
        "`scale: 1/seq`; one in `weights` is not, as that of `relu2(s)/seq`",
    )
    dropout: Rate = Field(default=0.0, description="on each weight, where it meets its value")
    bias: Annotated[
        Annotated[bool, Tag("flag")] | Annotated[list[Literal["query", "key", "value", "gate", "output"]], Tag("list")],
        one_of("`true`, `false`, or a list of query, key, value, gate, output"),
    ] = Field(default=True, description="which projections have a bias: all, none, or a list")
    activation: Activation = Field(
        default="none",
        description="of the products that queries, keys and values are, before norms and positions: as in [MLP](#mlp)",
    )
    shared_qk: bool = Field(
        default=False,
        description="queries and keys are z*g + o of one product z of x, with a scale g and an offset o of each head "
        "(the gated attention unit: Hua et al. 2022); the bias of z is that of `query`",
    )
    mixed_chunk: MixedChunk | None = Field(
        default=None, description="the pattern within chunks, and linear attention of the others (FLASH)"
    )
    gate: Activation | None = Field(
        default=None,
        description="an output gate: what heads have found, before the output projection, times activation(x w + b) of "
        "the block's input; w is a parameter `gate` [width heads value]. An activation as in [MLP](#mlp), or a formula "
        "in `x`",
    )
    context: Name | None = Field(
        default=None, description="the stream that keys and values come from (cross attention); default: its own"
    )

    @model_validator(mode="after")
    def _one_pattern(self) -> Attention:
        if (self.pattern is None) == (self.plan is None):
            raise ValueError("give `pattern` or `plan`, one of the two")
        if self.globals and (self.plan or self.kv_heads):
            raise ValueError("`globals` goes with a `pattern` and without `kv_heads`")
        if self.context and (self.plan or self.globals):
            raise ValueError("`context` goes with a `pattern` and without `globals`")
        if self.latent and (self.globals or self.qk_norm != "none"):
            raise ValueError("`latent` goes without `globals` and `qk_norm`; its own `norm` is of the latents")
        if self.latent and self.rotary and self.latent.shared is None:
            raise ValueError("with `latent`, rotary positions turn its `shared` dims: say how many there are")
        if self.latent and isinstance(self.rotary, RotaryPositions) and self.rotary.dims is not None:
            raise ValueError("with `latent`, `shared` says which dims turn, not `dims`")
        if self.latent and (self.shared_qk or self.activation != "none" or self.mixed_chunk):
            raise ValueError("`latent` goes without `activation`, `shared_qk` and `mixed_chunk`")
        if self.shared_qk and (self.globals or self.context):
            raise ValueError("`shared_qk` goes without `globals` and `context`")
        if self.mixed_chunk and (self.plan or self.globals or self.context):
            raise ValueError("`mixed_chunk` goes with a `pattern` and without `globals` and `context`")
        if self.gate is None and isinstance(self.bias, list) and "gate" in self.bias:
            raise ValueError("`bias` of a `gate` goes with one: give `gate: sigmoid`, or leave it out of the list")
        if self.sinks and self.weights != "softmax":
            raise ValueError("`sinks` take part in a softmax, and `weights` says that there is none: leave out one")
        if self.relative and (self.plan or self.globals or self.context):
            raise ValueError("`relative` goes with a `pattern` and without `globals` and `context`")
        if self.relative and self.rotary and not self.relative.with_rotary:
            raise ValueError(f"`relative` of kind `{self.relative.kind}` goes without `rotary`")
        return self

    def lower(self, s: Scope, x: Val, stem: str, path: Path) -> tuple[Val, Aux]:
        """softmax(scale q·k) v over the keys the pattern allows, projected back."""
        with s.at(*path):
            keys = keys_of(s, x, self, stem, path)
            a = axes_of(s, self, path, keys)
            biased: set[str] = {*PROJECTIONS} if self.bias is True else {*(self.bias or ())}
            sides = Sides(s, x, keys.rows, a, self, stem, path, biased)
            q, k, v = sides.products()
            pattern, t = _pattern(s, self, path), s.low.among.get(s.stream) if keys.own else None
            mixed = None if self.mixed_chunk is None else Chunks.of(s, self.mixed_chunk, pattern, a, path)
            pattern = pattern if mixed is None else mixed.within
            placed = _distanced(s, q, a, self, stem, path, between(t, pattern), t and _sees_later(s, pattern, a))
            sinks = s.param(f"{stem}.sinks", a.query, "bias", dtype=s.accumulate) if self.sinks else None

            def seen(x: Placed, k: Val, v: Val, a: Axes, pattern: Pattern, seq: str) -> Val:
                return _attend(s, x, k, v, a, self, path, pattern, sinks, seq)

            if t is None:
                out = seen(placed, k, v, a, pattern, s.length)
            else:
                s.low.remembers.add(s.stream)
                if wrong := [*unfit_among(s, self, pattern, path)]:
                    raise SpecError(wrong)
                out = among(t, s, placed, k, v, a, pattern, seen)
            if self.globals:
                out = _globals(s, x, out, a, self, stem, path, biased, _metadata(pattern), sinks)
            if mixed is not None:
                out = mixed.added(out, *sides.queries_and_keys("_linear"), v)
            own, bias = f"{a.query} {a.value}", "width" if "output" in biased else None
            if self.gate is not None:
                out = _gated(s, x, out, own, self.gate, stem, path, "gate" in biased)
            to = " ".join(s.space)
            return s.linear(stem, out, f"{own} width", to, f"{stem}.output", bias, "output", own), []

    @property
    def turning(self) -> RotaryPositions:
        """Its rotary positions, where it has them."""
        rule = self.rotary if isinstance(self.rotary, RotaryPositions) else RotaryPositions()
        return rule if self.latent is None else rule.model_copy(update={"dims": self.latent.shared})

    def problems(self, dims: Dims, path: Path) -> Iterator[Problem]:
        found = list[Problem]()
        if self.latent is not None:
            yield from (found := [*latent_problems(self.latent, dims, self.head, bool(self.rotary), (*path, "latent"))])
        if self.rotary and not found:
            yield from rotary_problems(self.turning, dims, self.head, (*path, "rotary"))

    def warnings(self, dims: Dims, path: Path, predicts: bool) -> Iterator[Problem]:
        """Attention that sees nothing, and attention that shows a language head what it is to predict."""
        if self.pattern is None or self.context is not None:
            return
        where, longest = (*path, "pattern"), dims.longest
        try:
            heads, pattern = dims.size(self.heads), Pattern.parse(self.pattern, dims.named)
        except FormulaError:
            return  # told as a problem
        if rows_seeing_nothing(pattern, longest, heads) == ((0, longest),):
            yield Problem("W0503", "no query sees a key, so this attention gives 0", where)
        elif predicts and not is_causal(pattern, longest, heads):
            message = "a token sees later ones; targets that are the next tokens would be seen, not predicted"
            yield Problem("W0503", message, where, "a model of masked tokens is meant so")


def _gated(s: Scope, x: Val, out: Val, own: str, text: str, stem: str, path: Path, biased: bool) -> Val:
    """out [batch rows heads value] times a gate of x [batch rows width] (Hua et al. 2022; Qiu et al. 2025)."""
    with s.at(*path, "gate"):
        gate = s.einsum("gate", x, s.param(f"{stem}.gate.weight", f"width {own}", fan_in="width"), to=f"{s.rows} {own}")
        bias = {"gate_bias": s.param(f"{stem}.gate.bias", own, "bias")} if biased else {}
        return s.hidden(out, gate, s.activation(text, (*path, "gate")), f"{s.rows} {own}", **bias)


def _sees_later(s: Scope, pattern: Pattern, a: Axes) -> bool:
    """Does the pattern show tokens later ones?"""
    return not is_causal(pattern, a.longest, prod(map(s.low.number, a.query.split())))


def _distanced(
    s: Scope, q: Val, a: Axes, block: Attention, stem: str, path: Path, pattern: Pattern, later: bool | None
) -> Placed:
    """Queries [batch rows heads head] with what the block says of relative positions. later: see `placed`."""
    scale, rule = _scale(s, a, block, path), block.relative
    return Placed(q, scale) if rule is None else placed(s, q, rule, stem, (*path, "relative"), pattern, scale, a, later)


def _attend(
    s: Scope, x: Placed, k: Val, v: Val, a: Axes, block: Attention, path: Path, pattern: Pattern, sinks: Val | None,
    seq: str, whole: bool = True,
) -> Val:  # fmt: skip
    """The queries of dim `seq` against k and v [batch source ..], with all that the block says of scores. whole: they
    are no global tokens beside others."""
    k, v = (s.rename(name, y, a.source, a.key) for name, y in (("keys", k), ("values", v)))
    score, heads = _fitting(s, x, a, block, path, pattern), tuple(a.query.split())
    meta = _given(s, a, pattern, seq, block.context or "")
    meta |= ({} if x.near is None else {"near": x.near}) | ({} if sinks is None else {"sinks": sinks})
    op = s.ir.Attend(a.head, a.key, seq, pattern, x.scale, score, heads, tuple(meta))
    op = replace(op, normalised=block.weights == "softmax")
    op = op if x.near is None else replace(op, first=x.first)
    if s.low.train and block.dropout:
        meta |= {m: s.shared(m) for m in ("seed", "layer")}
        op = replace(op, meta=tuple(meta), rate=s.ir.exact(block.dropout), op_id=next(s.low.dropouts))
    if a.past or (op.placed and _written(s, seq)):
        op = replace(op, tail=True)
    part = "globals" if not whole else "plan" if block.plan else "pattern"
    names = ["attended", "lse"] if whole else ["attended_global", "lse_global"]
    with s.at(*path, part):
        return s.g.many(op, x.q, k, v, *meta.values(), names=names)[0]


def _written(s: Scope, seq: str) -> bool:
    """Are these rows the memory tokens that are written?"""
    return s.stream in s.low.among and s.low.among[s.stream].write == seq


def _unfit(
    s: Scope, a: Axes, block: Attention, path: Path, pattern: Pattern, score: Any, scored: str
) -> Iterator[Problem]:
    """What has no meaning beside a memory."""
    across = block.context is not None and block.context != s.stream
    if a.past:
        yield from unfit(pattern, s, prod(map(s.low.number, a.query.split())), path)
    if across and {s.stream, block.context} & s.low.among.keys():
        yield from unfit_across(s, block.context or "", pattern, score, path, scored)
    elif a.past or s.stream in s.low.among:
        yield from unfit_score(s, score, path, scored)


def _given(s: Scope, a: Axes, pattern: Pattern, seq: str, context: str) -> dict[str, Val]:
    """The metadata a pattern reads, of the queries along `seq` and of the keys."""
    found: dict[str, Val] = {}
    if "segments" in pattern.metadata:
        found["segments"], keys = segments(s, context)
        if seq != s.length:
            first = s.map("index", s.ir.symbol(f"i_{seq}"), to=seq, dtype="i64")
            own = s.gather("segments", found["segments"], first, at=s.length)
            found["segments"] = s.g.expand(own, to=f"batch {seq}")
        if found["segments"] is not keys:
            found["key_segments"] = s.rename("key_segments", keys, a.source, a.key)
    if "valid" in pattern.metadata:
        found["valid"] = s.rename("valid", s.shared("valid", context), a.source, a.key)
    return found


def _scale(s: Scope, a: Axes, block: Attention, path: Path) -> Any:
    """The factor on q·k, a finite number when compiling, in which `head` is the block's own."""
    where = (*path, "scale")
    s.low.constant(block.scale, where, {"head": s.ir.sympy.Integer(s.low.number(a.head))})
    scale = s.low.formula(block.scale, where, {"head": s.ir.symbol(f"n_{a.head}")})
    return scale * score_factor(s, block.turning) if block.rotary else scale


def _score(s: Scope, block: Attention, path: Path, added: Any) -> Any:
    """The formula of scores; added: to `s` before."""
    names = {"s": s.ir.symbol("s") + added} | {c: s.ir.symbol(f"i_{c}") for c in "qkh"}
    return s.low.formula(block.score, (*path, "score"), names)


def _fitting(s: Scope, x: Placed, a: Axes, block: Attention, path: Path, pattern: Pattern) -> Any:
    """What a pair counts, a formula; told: that or a pattern that does not go with the rows of the stream."""
    score = _score(s, block, path, x.added)
    weight, key = _weight(s, block, path, score), "globals" if block.globals else "plan" if block.plan else "pattern"
    for name, formula in (("score", score), ("weights", weight)):
        wrong = [*_unfit(s, a, block, path, pattern, formula, name)]
        if wrong and not a.past:
            raise SpecError(wrong)
        wrong += misplaced(s, pattern, formula, block.context or "", path, key, name)
        for problem in wrong:
            s.low.tell(problem)
        if wrong:
            break
    return weight


def _weight(s: Scope, block: Attention, path: Path, score: Any) -> Any:
    """What a pair counts: its score, of which a softmax is taken, or a formula in that."""
    if block.weights == "softmax":
        return score
    text = WEIGHTS.get(block.weights, block.weights)
    names = {"s": score} | {c: s.ir.symbol(f"i_{c}") for c in "qkh"}
    text = f"{text}(s)" if text.isidentifier() and text not in names else text
    return s.low.formula(text, (*path, "weights"), names)


def _pattern(s: Scope, block: Attention, path: Path) -> Pattern:
    dims = s.low.dims.on(s.low.length(s.stream)).named
    if block.plan is not None:
        return apart(s, planned(s, block.plan, block.heads, path))
    assert block.pattern is not None
    with s.low.reading((*path, "pattern"), "W0302"):
        pattern = apart(s, Pattern.parse(block.pattern, dims), block.context or "")
    if block.globals is None:
        return pattern
    with s.low.reading((*path, "globals", "tokens"), "W0201"):
        count = s.low.dims.size(block.globals.tokens)
    return Pattern.parse(" and ".join([*_metadata(pattern), f"q >= {count} and ({pattern.text} or k < {count})"]))


def _metadata(pattern: Pattern) -> list[str]:
    """What a pattern demands of the metadata of every pair, and global tokens keep to: what it joins by `and`."""
    f = pattern.formula
    parts = f.parts if isinstance(f, Junction) and f.op == "and" else (f,)
    return [f"{'not ' * p.negated}{p.name}" for p in parts if isinstance(p, BatchCondition)]


def _globals(
    s: Scope, x: Val, out: Val, a: Axes, block: Attention, stem: str, path: Path, biased: set[str], demands: list[str],
    sinks: Val | None,
) -> Val:  # fmt: skip
    """The global tokens' rows, which the pattern left empty: they see every key that `demands` on metadata leave them,
    through their own projections.

    They are gathered, not cut out: in a run that is shorter, those it lacks read 0 and are read by nobody.
    """
    assert block.globals is not None
    low = s.low
    with s.at(*path, "globals"):
        some = low.axis(block.globals.tokens, "globals", (*path, "globals", "tokens"), (*x.dims, a.key))
        if low.number(some) > low.dims.most[s.length]:
            raise SpecError.at((*path, "globals", "tokens"), "W0402", "there are more global tokens than tokens")
        leading = s.map("index", s.ir.symbol(f"i_{some}"), to=some, dtype="i64")
        first = s.gather("first", x, leading, at=s.length)
        sides = Sides(s, x, x, a, block, stem, path, biased)
        (q,) = sides.projected(first, ("query",), "_global")
        k, v = sides.projected(x, ("key", "value"), "_global")
        q = turned_and_normed(s, q, some, a, block, stem, path, "query_global")
        k = turned_and_normed(s, k, s.length, a, block, stem, path, "key_global")
        placed = Placed(q, _scale(s, a, block, path))
        seen = _attend(
            s, placed, k, v, a, block, path, Pattern.parse(" and ".join(demands) or "all"), sinks, some, False
        )
        index = s.map("index", s.ir.symbol(f"i_{s.length}"), to=s.length, dtype="i64")
        spread = s.gather("spread", seen, index, at=some)  # rows past the global ones read 0
        return s.map("attended", "a + b", a=out, b=spread, to=" ".join(out.dims), dtype=s.compute)
