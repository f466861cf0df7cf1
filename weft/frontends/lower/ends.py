"""Both ends of a model: the embedding, and the heads with their losses."""

from __future__ import annotations

from typing import Any

import sympy as sp

from weft.errors import Path, Problem, SpecError
from weft.frontends import streams
from weft.frontends.lower.scope import Scope
from weft.frontends.schema import ClassifyHead, LanguageHead
from weft.frontends.vocabulary import exact
from weft.ir.formula import symbol
from weft.ir.formula.functions import where
from weft.ir.library.loss import CrossEntropy
from weft.ir.types import Val


def embed(s: Scope, path: Path) -> Val:
    """Token table [+ position tables] [+ type table], norm, dropout, as the spec says at `path`:
    [batch length width]."""
    low, rule, space = s.low, streams.embed(s.low.model, s.stream), " ".join(s.space)
    vocab = low.axis(rule.tokens, "vocab", (*path, "tokens"), s.space)
    with s.at(*path, "tokens"):
        table = _table(s, rule.tied, vocab, (*path, "tied"))
        x = s.gather("token", table, s.shared("tokens"), at=vocab)
        if rule.scale is not None:
            factor = _factor(s, rule.scale, path)
            x = s.map("tokens", symbol("x") * factor, x=x, to=space, dtype=s.compute)
    parts = {"x": x}
    for i, position in enumerate(rule.positions):
        with s.at(*path, "positions", i):
            parts[f"p{i}"] = _position(s, i, (*path, "positions", i), position.learned, position.index)
    if rule.types is not None:
        with s.at(*path, "types"):
            kinds = low.axis(rule.types, "types", (*path, "types"), (*s.space, vocab))
            parts["t"] = s.gather(
                "kind", s.param("types", f"{kinds} width", "embedding", "width"), s.shared("types"), at=kinds
            )
    with s.at(*path):
        if len(parts) > 1:
            x = s.map("embedded", " + ".join(parts), to=space, dtype=s.compute, **parts)
        return s.dropout(s.norm(x, rule.norm, "norm", (*path, "norm")), rule.dropout)


def _table(s: Scope, tied: str | None, vocab: str, path: Path) -> Val:
    """The token table: the stream's own, or that of another."""
    if tied is None:
        return s.param("tokens", f"{vocab} width", "embedding", "width")
    return _tokens(s, tied, vocab, path, "a tied embedding has as many tokens as the table of the other stream")


def _tokens(s: Scope, stream: str, vocab: str, path: Path, why: str) -> Val:
    """The token table that a stream uses, which has `vocab` rows."""
    model = s.low.model
    while (other := streams.embed(model, stream).tied) is not None:
        stream = other
    name = s.low.called(stream, "embed.tokens", ".")
    table = next((p for p in s.low.params if p.name == name), None)
    if table is None:
        if not s.low.problems:
            message = f"the table of '{stream}' is not there yet"
            raise SpecError.at(
                path, "W0405", message, f"write the stream '{stream}' first, and let others be tied to it"
            )
        raise SpecError([])  # that embedding has problems of its own, which are told
    if table.dims != (vocab, "width"):
        raise SpecError.at(path, "W0402", why)
    return s.tied(name)


def _factor(s: Scope, scale: float | str, path: Path) -> sp.Expr:
    """A `scale` that leaves something of what it multiplies."""
    where = (*path, "scale")
    found = s.low.constant(scale, where)
    if found == 0:
        s.low.tell(Problem("W0301", "a scale of 0 leaves nothing", where, "another number, or leave it out"))
    return found


def _position(s: Scope, number: int, path: Path, learned: int | str, index: str) -> Val:
    """A table's rows at the index of each position: [length width], of the batch too where rows differ."""
    low = s.low
    rows = low.axis(learned, "positions", (*path, "learned"), s.space)
    table = s.param(f"positions.{number}", f"{rows} width", "position", "width")
    at = s.place()
    i = symbol(f"i_{s.length}" if at is None else "at")
    formula = low.formula(index, (*path, "index"), {"i": i})
    if at is None:
        at = s.map("row", formula, to=s.length, dtype="i64")
    elif formula != i:
        at = s.map("row", formula, at=at, to=s.rows, dtype="i64")
    return s.gather("position", table, at, at=rows)


def language(s: Scope, x: Val, head: LanguageHead, stem: str, path: Path) -> tuple[Val, Val | None]:
    """Logits [batch length vocab], and when training their mean cross-entropy f32[]."""
    low = s.low
    vocab = low.axis(head.vocab, "vocab", (*path, "vocab"), s.space)
    with s.at(*path):
        if head.transform is not None:
            x = _transform(s, x, head, stem, path)
        weight = _matrix(s, head, stem, path, vocab)
        logits = s.einsum("logits", x, weight, to=f"{s.rows} {vocab}")
        formula: Any = symbol("y")
        operands = {"y": logits}
        if head.scale is not None:
            formula = formula * _factor(s, head.scale, path)
        if head.bias:
            formula, operands = formula + symbol("b"), operands | {"b": s.param(f"{stem}bias", vocab, "bias")}
        if head.softcap is not None:
            formula = softcapped(formula, exact(head.softcap))
        if formula != symbol("y"):
            logits = s.map("logits", formula, to=f"{s.rows} {vocab}", dtype=s.compute, **operands)
        extra = (head.label_smoothing, head.z_loss)
        return logits, _loss(s, logits, vocab, "targets", head.ignore, path, *extra) if low.train else None


def softcapped(x: Any, cap: Any) -> Any:
    """cap * tanh(x / cap), which stays within the cap."""
    return cap * sp.tanh(x / cap)


def _transform(s: Scope, x: Val, head: LanguageHead, stem: str, path: Path) -> Val:
    assert head.transform is not None
    rule, where = head.transform, (*path, "transform")
    with s.at(*where):
        other = s.low.mint("transform", s.low.sizes["width"], s.space)
        y = s.einsum(
            "transformed",
            x,
            s.param(f"{stem}transform.weight", f"width {other}", fan_in="width"),
            to=f"{s.rows} {other}",
        )
        bias = s.param(f"{stem}transform.bias", other, "bias")
        act = s.activation(rule.activation, (*where, "activation"))
        y = s.map("transformed", act, let={"x": "y + b"}, y=y, b=bias, to=f"{s.rows} {other}", dtype=s.compute)
        return s.norm(s.rename("transformed", y, other, "width"), rule.norm, f"{stem}transform.norm", (*where, "norm"))


def _matrix(s: Scope, head: LanguageHead, stem: str, path: Path, vocab: str) -> Val:
    if not head.tied:
        return s.param(f"{stem}weight", f"width {vocab}", "head", "width")
    return _tokens(s, s.stream, vocab, (*path, "tied"), "a tied head has as many classes as the token table has rows")


def classify(s: Scope, x: Val, head: ClassifyHead, stem: str, path: Path) -> tuple[Val, Val | None]:
    """Logits [batch classes] of the first position, pooled, and when training their mean cross-entropy f32[]."""
    low = s.low
    if s.rows_of().documents:
        message = f"a row of '{s.stream}' holds several documents, and its label is one"
        raise SpecError.at(path, "W0403", message, "leave out `documents`, or this head")
    with s.at(*path):
        classes = low.axis(head.classes, "classes", (*path, "classes"), s.space)
        pooled = low.mint("pooled", low.sizes["width"], (*s.space, classes))
        first = s.gather("first", x, _first(s), at=s.length)
        y = s.einsum(
            "pooled", first, s.param(f"{stem}pool.weight", f"width {pooled}", fan_in="width"), to=f"batch {pooled}"
        )
        act = s.activation(head.pool, (*path, "pool"))
        bias = s.param(f"{stem}pool.bias", pooled, "bias")
        y = s.map("pooled", act, let={"x": "y + b"}, y=y, b=bias, to=f"batch {pooled}", dtype=s.compute)
        logits = s.linear(
            "classes", y, f"{pooled} {classes}", f"batch {classes}", f"{stem}classes", classes, "weight", pooled
        )
        return logits, _loss(s, logits, classes, "labels", head.ignore, path) if low.train else None


def _first(s: Scope) -> Val:
    """The place in the row of a sequence's first token: i64[], of each row where it may be padding."""
    if not s.rows_of().padding:
        return s.map("at", 0, to="", dtype="i64")
    there = s.map("there", "where(v, 1, 0)", v=s.shared("valid"), to=s.rows, dtype=s.accumulate)
    return s.g.reduce(there, to="batch", kind="argmax")


def _loss(
    s: Scope, logits: Val, over: str, target: str, ignore: int, path: Path, smoothing: float = 0.0, z_loss: float = 0.0
) -> Val:
    """The mean loss over the targets that count: f32[]. With none that count it is 0."""
    want = s.shared(target)
    with s.at(*path, "loss"):
        each = s.g.one(CrossEntropy(over, ignore), logits, want, names=["losses"])
        if smoothing or z_loss:
            each = _more(s, each, logits, want, over, ignore, smoothing, z_loss)
        counts = s.map("counts", f"where(Ne(y, {ignore}), 1, 0)", y=want, dtype="i64")
        if s.rows_of().padding and s.length in want.dims:
            each, counts = (
                s.map(name, "where(v, x, 0)", v=s.shared("valid"), x=x, to=" ".join(x.dims), dtype=x.dtype)
                for name, x in (("losses", each), ("counts", counts))
            )
        formula = "total / max(count, 1)"
        total, number = s.g.reduce(each, to=""), s.g.reduce(counts, to="")
        return s.map("mean", formula, total=total, count=number, to="", dtype=each.dtype)


def _more(s: Scope, each: Val, x: Val, target: Val, over: str, ignore: int, smoothing: float, z_loss: float) -> Val:
    """Cross-entropies of logits x with smoothed targets and z-loss: with the logit x_y of the target, the log-sum-exp
    is their sum, and a share e spread evenly adds e (x_y - mean(x)). 0 where the target does not count."""
    left, dtype = " ".join(each.dims), each.dtype
    hit = s.map("hit", f"where(i_{over} == y, x, 0)", x=x, y=target, to=" ".join(x.dims), dtype=dtype)
    operands = {"each": each, "y": target, "hit": s.g.reduce(hit, to=each.dims)}
    formula: Any = symbol("each") + exact(z_loss) * (symbol("each") + symbol("hit")) ** 2
    if smoothing:
        operands["total"] = s.g.reduce(s.g.cast(x, dtype), to=each.dims)
        formula += exact(smoothing) * (symbol("hit") - symbol("total") / symbol(f"n_{over}"))
    return s.map("losses", where(sp.Ne(symbol("y"), ignore), formula, sp.S.Zero), to=left, dtype=dtype, **operands)


def heads(s: Scope, x: Val, rules: list[LanguageHead | ClassifyHead], listed: bool) -> tuple[dict[str, Val], list[Val]]:
    """Every head of x: outputs by name, and the losses."""
    outputs: dict[str, Val] = {}
    losses: list[Val] = []
    for i, rule in enumerate(rules):
        path: Path = ("head", i) if listed else ("head",)
        is_language = isinstance(rule, LanguageHead)
        if ("logits" if is_language else "classes") in outputs:
            raise SpecError.at(path, "W0403", f"a second {rule.kind} head", "one head of each kind")
        logits, loss = (
            language(s, x, rule, "head.", path)
            if isinstance(rule, LanguageHead)
            else classify(s, x, rule, "classify.", path)
        )
        outputs["logits" if is_language else "classes"] = logits
        losses += [loss] if loss is not None else []
    return outputs, losses
