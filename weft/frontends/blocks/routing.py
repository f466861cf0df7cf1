"""Which experts a token goes to, how much each counts, and what the router adds to the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weft.errors import Path, SpecError
from weft.frontends.blocks.kind import Aux

if TYPE_CHECKING:
    from weft.frontends.blocks.moe import Moe
    from weft.frontends.lower.scope import Scope
    from weft.ir.types import Val


@dataclass(frozen=True)
class Sent:
    """A token's experts and their gates [batch length choice], its places in their queues, and the router's losses."""

    expert: Val
    place: Val
    gate: Val
    losses: Aux


def routed(s: Scope, block: Moe, x: Val, stem: str, path: Path, routes: str, choice: str) -> Sent:
    """x [batch length width] sent to its best experts, in the accumulate dtype. routes: the dim of the router's
    experts; choice: that of a token's, "" for one."""
    router = s.param(f"{stem}.router.weight", f"width {routes}", "router", "width", dtype=s.accumulate)
    logits = s.einsum("logits", s.g.cast(x, s.accumulate), router, to=f"{s.rows} {routes}")
    if block.logit_bias:
        b = s.param(f"{stem}.router.logit_bias", routes, "bias", dtype=s.accumulate)
        logits = s.map("logits", "x + b", x=logits, b=b, to=" ".join(logits.dims), dtype=s.accumulate)
    names = ["expert", "place", "gate", "balance", "load"]
    if block.router == "softmax" and not block.choice_bias and block.groups is None:
        op = s.ir.Route(routes, s.length, block.top_k, choice, block.normalize)
        expert, place, gate, aux, _ = s.g.many(op, logits, names=names)
        shares: Val | None = None
    else:
        scores = _scores(s, block, logits, routes)
        best = _preferred(s, block, s.g.detach(scores), stem, path, routes)
        expert, place, *_ = s.g.many(s.ir.Route(routes, s.length, block.top_k, choice), best, names=names)
        gate, aux, shares = _gates(s, block, s.gather("gate", scores, expert, at=routes), choice), None, scores
    if block.route_scale != 1:
        gate = s.map("gate", s.ir.symbol("g") * s.ir.exact(block.route_scale), g=gate, dtype=s.accumulate)
    rows = s.rows_of()
    if aux is None or block.aux == "pooled" or block.skip_padding or rows.documents or rows.padding:
        shares = _scores(s, block, logits, routes) if shares is None else shares
        aux = _balance(s, block, shares, expert, routes, choice)
    losses: Aux = [(aux, block.aux_loss)]
    return Sent(expert, place, gate, [*losses, (_z(s, block, logits), block.z_loss)] if block.z_loss else losses)


def _scores(s: Scope, block: Moe, logits: Val, routes: str) -> Val:
    """What the router makes of its logits: probabilities, or a sigmoid of each."""
    if block.router == "softmax":
        return s.g.one(s.ir.Softmax(routes), logits, names=["scores"])
    return s.map("scores", "sigmoid(x)", x=logits, to=" ".join(logits.dims), dtype=s.accumulate)


def _gates(s: Scope, block: Moe, gate: Val, choice: str) -> Val:
    """The scores of the chosen, which sum to 1 where the block says so."""
    if not block.normalize:
        return gate
    total = s.g.reduce(gate, to=[d for d in gate.dims if d != choice])
    return s.map("gate", "g / (t + 10**(-20))", g=gate, t=total, to=" ".join(gate.dims), dtype=s.accumulate)


def _preferred(s: Scope, block: Moe, scores: Val, stem: str, path: Path, routes: str) -> Val:
    """What experts are chosen by: scores, with a bias that no gate has and no gradient moves; -oo outside the best
    groups."""
    to = " ".join(scores.dims)
    if block.choice_bias:
        bias = s.param(f"{stem}.router.bias", routes, rule=("zeros", path), dtype=s.accumulate, fixed=True)
        scores = s.map("preferred", "x + b", x=scores, b=bias, to=to, dtype=s.accumulate)
    if block.groups is None:
        return scores
    groups, members = _groups(s, block, path, routes)
    best = _kept(s, block, _of_groups(s, scores, routes, groups, members), groups)
    own = s.map("group", s.ir.parse(f"i_{routes} // n_{members}"), to=routes, dtype="i64")
    inside = s.gather("inside", best, own, at=groups)
    return s.map("preferred", "where(h > 0, x, -oo)", x=scores, h=inside, to=to, dtype=s.accumulate)


def _groups(s: Scope, block: Moe, path: Path, routes: str) -> tuple[str, str]:
    """The dims of groups and of a group's experts."""
    low, avoid, kept = s.low, (*s.space, routes), block.groups_kept or 1
    with low.reading((*path, "groups"), "W0201"):
        count, experts = low.dims.size(block.groups or 1), low.number(routes)
    if experts % count or experts // count < 2:
        message = f"{experts} experts are not {count} equal groups of two or more"
        raise SpecError.at((*path, "groups"), "W0402", message, "change one of them")
    if kept > count or block.top_k > kept * (experts // count):
        message = f"{kept} of {count} groups, of {experts // count} experts each, do not hold {block.top_k} experts"
        raise SpecError.at((*path, "groups_kept"), "W0402", message, "change one of them")
    groups = low.mint("groups", count, avoid)
    return groups, low.mint("members", experts // count, (*avoid, groups))


def _of_groups(s: Scope, scores: Val, routes: str, groups: str, members: str) -> Val:
    """A group's score [.. groups]: the sum of its two best."""
    place = s.map("place", s.ir.parse(f"i_{groups} * n_{members} + i_{members}"), to=f"{groups} {members}", dtype="i64")
    each = s.gather("grouped", scores, place, at=routes)
    left = [d for d in each.dims if d != members]
    first, at = s.g.reduce(each, to=left, kind="max"), s.g.reduce(each, to=left, kind="argmax")
    others = s.map(
        "others", f"where(i_{members} == k, -oo, x)", x=each, k=at, to=" ".join(each.dims), dtype=s.accumulate
    )
    second = s.g.reduce(others, to=left, kind="max")
    return s.map("groups", "a + b", a=first, b=second, to=" ".join(left), dtype=s.accumulate)


def _kept(s: Scope, block: Moe, scores: Val, groups: str) -> Val:
    """1 for the best groups, else 0: i64[.. groups]; of equal ones the lower index is better."""
    to, left = " ".join(scores.dims), [d for d in scores.dims if d != groups]
    hots: dict[str, Val] = {}
    for j in range(block.groups_kept or 1):
        best = s.g.reduce(scores, to=left, kind="argmax")
        hots[f"h{j}"] = hot = s.map("best", f"where(i_{groups} == k, 1, 0)", k=best, to=to, dtype="i64")
        scores = s.map("open", "where(h == 0, x, -oo)", x=scores, h=hot, to=to, dtype=s.accumulate)
    return s.map("kept", " + ".join(hots), to=to, dtype="i64", **hots)


def _counting(s: Scope, block: Moe) -> Val:
    """1 for each token that counts in the router's losses, else 0: [batch length]."""
    if not block.skip_padding and not s.rows_of().padding:
        return s.map("counting", 1, to=s.rows, dtype=s.accumulate)
    return s.map("counting", "where(v, 1, 0)", v=s.shared("valid"), to=s.rows, dtype=s.accumulate)


def _balance(s: Scope, block: Moe, scores: Val, expert: Val, routes: str, choice: str) -> Val:
    """n sum_i f_i P_i over the tokens of a sequence or document, or of the whole batch: f_i the share of tokens that
    chose expert i, P_i the mean of its share of a token's scores."""
    every, dtype = " ".join(scores.dims), s.accumulate
    if block.router == "sigmoid":
        total = s.g.reduce(scores, to=s.rows.split())
        scores = s.map("shares", "p / t", p=scores, t=total, to=every, dtype=dtype)
    taken = s.map("taken", f"where(i_{routes} == k, 1, 0)", k=expert, to=f"{every} {choice}".strip(), dtype=dtype)
    taken, counting = s.g.reduce(taken, to=scores.dims), _counting(s, block)
    if block.aux == "sequence" and s.rows_of().documents:
        return _of_documents(s, taken, scores, counting, routes)
    over = ("batch",) if block.aux == "sequence" else ()
    tokens = s.g.reduce(counting, to=over)

    def mean(x: Val) -> Val:
        counted = s.map("counted", "x*m", x=x, m=counting, to=every, dtype=dtype)
        return s.map("average", "t / max(n, 1)", t=s.g.reduce(counted, to=(*over, routes)), n=tokens, dtype=dtype)

    load: Any = s.map("load", f"n_{routes}*f*p", f=mean(taken), p=mean(scores), dtype=dtype)
    total = s.g.reduce(load, to=over)
    return s.g.mean(total, total.dims) if over else total


def _of_documents(s: Scope, taken: Val, scores: Val, counting: Val, routes: str) -> Val:
    """The mean over documents of n sum_i f_i P_i: what they have is added up in a row for each that there can be."""
    number, dtype = s.counted("document"), s.accumulate
    each = s.low.mint("documents", s.low.sizes[s.length], (*s.space, routes))

    def total(name: str, x: Val) -> Val:
        counted = s.map(name, "x*m", x=x, m=counting, to=" ".join(x.dims), dtype=dtype)
        to = tuple(each if d == s.length else d for d in x.dims)
        return s.g.one(s.ir.Scatter((each,), to), counted, number, names=[name])

    tokens = total("tokens", counting)
    load = s.map("load", f"n_{routes}*f*p / max(n, 1)**2", f=total("taken", taken), p=total("scores", scores), n=tokens)
    there = s.map("there", "where(n > 0, 1, 0)", n=tokens, dtype=dtype)
    formula = "t / max(n, 1)"
    return s.map("balance", formula, t=s.g.reduce(load, to=()), n=s.g.reduce(there, to=()), to="", dtype=dtype)


def _z(s: Scope, block: Moe, logits: Val) -> Val:
    """The mean squared log-sum-exp of the logits over the tokens that count (ST-MoE: Zoph et al. 2022, eq. 5)."""
    rows, dtype, counting = s.rows.split(), s.accumulate, _counting(s, block)
    top = s.g.detach(s.g.reduce(logits, to=rows, kind="max"))
    each = s.map("exp", "exp(x - m)", x=logits, m=top, to=" ".join(logits.dims), dtype=dtype)
    squares = s.map(
        "square", "c*(m + log(t))**2", c=counting, m=top, t=s.g.reduce(each, to=rows), to=s.rows, dtype=dtype
    )
    total, tokens = s.g.reduce(squares, to=()), s.g.reduce(counting, to=())
    return s.map("z", "t / max(n, 1)", t=total, n=tokens, to="", dtype=dtype)
