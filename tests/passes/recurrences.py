"""Generated recurrences of tensors, each with what the compiler has to say of it."""

from dataclasses import dataclass, field
from random import Random
from typing import Any

from weft.frontends.load import load_mapping
from weft.frontends.lower.program import lower
from weft.ir.composite import Call
from weft.ir.ops.regions import Loop
from weft.ir.program import Program
from weft.ir.types import Graph

DIMS = {"batch": 2, "seq": 9, "width": 3, "heads": 2, "key": 3, "value": 2, "many": 2, "vocab": 5}
KEY, VALUE, HEAD, STATE = ["heads", "key"], ["heads", "value"], ["heads"], ["heads", "key", "value"]
BASE: dict[str, Any] = {"q": KEY, "k": KEY, "v": VALUE, "n": ["many", "key"]}


@dataclass
class Drawn:
    """A block, and words of the decision about it; serial: why it stays a step for each position."""

    block: dict[str, Any]
    says: list[str] = field(default_factory=list[str])
    serial: str = ""


DECAYS: list[tuple[str, dict[str, list[str]], str]] = [
    ("", {}, "no decay"),
    ("0.9*", {}, "a fixed decay over []"),
    ("sigmoid(g)*", {"g": []}, "a decay over []"),
    ("sigmoid(g)*", {"g": HEAD}, "a decay over [heads]"),
    ("g*", {"g": HEAD}, "a decay over [heads]"),
    ("exp(-softplus(g))*", {"g": ["key"]}, "a decay over [key]"),
    ("sigmoid(g)*", {"g": KEY}, "a decay over [heads key]"),
    ("tanh(g)*", {"g": VALUE}, "a decay over [heads value]"),
    ("(1 - exp(-1 - i(heads)))*", {}, "a fixed decay over [heads]"),
    ("sigmoid(g + h)*", {"g": HEAD, "h": ["key"]}, "a decay over [heads key]"),
]
WRITES: list[tuple[str, dict[str, list[str]]]] = [
    ("k*v", {}),
    ("b*k*v", {"b": HEAD}),
    ("(1 - sigmoid(k))*v", {}),
    ("k*(v + 1)", {}),
    ("k*v - c*v", {"c": ["key"]}),
    ("relu(k)*sigmoid(v)*v + c*d", {"c": ["key"], "d": VALUE}),
    ("k", {}),
    ("v", {}),
]
DELTAS: list[tuple[str, dict[str, list[str]], str]] = [
    ("b*k*(v - {a}sum(key, k*s))", {"b": HEAD}, "1 of 1 writes depend on reads"),
    ("k*v - r*sum(key, e*s)", {"r": KEY, "e": KEY}, "1 of 2 writes depend on reads"),
    ("b*k*(v - sum(key, k*s)) + r*(v - 0.5*sum(key, r*s))", {"b": HEAD, "r": KEY}, "2 of 2 writes depend on reads"),
    ("k*v - 0.1*k*sum(many, c*sum(key, p*s))", {"p": ["many", "key"], "c": ["many"]}, "1 of 1 writes depend on reads"),
    ("0.3*k*v - 0.2*k*sum(key, (k + r)*s)", {"r": ["key"]}, "1 of 1 writes depend on reads"),
]
READS = [
    "sum(key, q*next(s))", "sum(key, q*s)", "sum(key, q*(s + u*k*v))", "tanh(sum(key, q*next(s)))*v",
    "sum(key, q*next(s)) / sqrt(1 + sum(key, k*s)**2)", "sum(key, q*next(s)) + sum(key, s)",
    "2*sum(key, sigmoid(q)*next(s))",
    "sum(key, n*next(s))", "sum(many, sum(key, n*next(s))*v)",
]  # fmt: skip
SPOILED = [
    ("tanh(s) + k*v", "sum(key, q*next(s))", "the next value of s is not linear in the states"),
    ("s + k*sum(key, k*s)**2*v", "sum(key, q*next(s))", "the next value of s is not linear in the states"),
    ("max(s, k*v)", "sum(key, q*next(s))", "the next value of s is not linear in the states"),
    ("0.5*s + k*v", "sum(key, q*tanh(s))", "s is read as a whole"),
    ("0.5*s + k*v", "sum(key, q*s) + sum(key, sum(value, v*s))", "s is summed along other dims here than there"),
    ("where(sum(key, k*s) > 0, s, k*v)", "sum(key, q*s)", "the next value of s is not linear in the states"),
    ("0.5*s + k*v - k*sum(heads, sum(key, q*s))", "sum(key, q*s)", "s is summed along other dims here than there"),
    ("0.5*s + k*sum(value, v*s) + k*v", "sum(key, q*s)", "s is summed along other dims here than there"),
]


def drawn(rng: Random) -> Drawn:
    """One recurrence; every fifth is none that can be done in chunks."""
    if rng.random() < 0.2:
        update, output, why = rng.choice(SPOILED)
        return Drawn(_block(BASE, {"s": update}, output), serial=why)
    decay, more, says = rng.choice(DECAYS)
    output = rng.choice(READS)
    given = {**BASE, **more}
    if rng.random() < 0.4:
        write, others, how = rng.choice(DELTAS)
        if "{a}" in write and "key]" in says:
            how = "1 of 2 writes depend on reads"  # at the key times its decay, and at the key
        write = write.format(a=decay)
    else:
        write, others = rng.choice(WRITES)
        how = "writes are outer products"
    given |= others
    found = Drawn(_block(given, {"s": f"{decay}s + {write}"}, output), [says, how])
    if "value" in more.get("g", ()) and how != "writes are outer products":
        return found
    if rng.random() < 0.3:
        _normalised(rng, found)
    return found


def _block(inputs: dict[str, list[str]], update: dict[str, str], output: str) -> dict[str, Any]:
    text = " ".join([*update.values(), output])
    parameters = {"parameters": {"u": {"dims": KEY, "init": {"normal": 0.5}}}} if "u*" in text else {}
    used = {n: d for n, d in inputs.items() if any(w == n for w in _words(text))}
    return {
        "kind": "tensor_recurrence", "inputs": used, "state": {"s": STATE}, "update": update, "output": output,
        **parameters,
    }  # fmt: skip


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() or c == "_" else " " for c in text).split()


def _normalised(rng: Random, found: Drawn) -> None:
    """A second state, or a stabiliser that is a loop of its own."""
    block = found.block
    if rng.random() < 0.5:
        block["inputs"] |= {"k": KEY, "q": KEY}
        block["state"] = {**block["state"], "z": KEY}
        block["update"] |= {"z": "0.8*z + k"}
        block["output"] = f"({block['output']}) / (3 + tanh(sum(key, q*next(z))))"
        found.says.append("z has a fixed decay over []")
    else:
        block["inputs"] |= {"j": HEAD}
        block["state"] = {**block["state"], "m": {"dims": HEAD, "init": 0.5}}
        block["update"] |= {"m": "max(m - 0.1, j)"}
        block["output"] = f"({block['output']})*exp(-next(m))"
        found.says.append("m step by step before the others")


def program(block: dict[str, Any], chunk: int, documents: bool = False, **dims: int) -> Program:
    """A model of that one block, whose rows may hold several documents."""
    layer = {"block": {**block, "chunk": chunk}, "norm": "none", "residual": "none"}
    spec = {"weft": 1, "name": "one", "dims": {**DIMS, **dims}, "stack": [{"layer": [layer]}]}
    spec |= {"rows": {"documents": True}} if documents else {}
    loaded = load_mapping(spec)
    return lower(loaded.model, loaded.dims)


def recurrence(made: Program) -> Graph:
    """The body of the block that has a loop over positions."""

    def bodies(graph: Graph):
        for n in graph.nodes:
            if isinstance(n.op, Call):
                yield n.op.body
            elif isinstance(n.op, Loop):
                yield from bodies(n.op.body)

    return next(b for b in bodies(made.graph) if any(isinstance(n.op, Loop) and n.op.chunks for n in b.nodes))
