"""docs/spec.md and the JSON Schema, both made from the schema's classes: `python -m weft.frontends.document PATH`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from weft.frontends.emit_yaml import emit
from weft.frontends.new import text
from weft.frontends.problems import CODES, WARNINGS
from weft.ir.pattern.named import METADATA, NAMED

DRAFT = "http://json-schema.org/draft-07/schema#"


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a spec, in the words that draft 7 and 2020-12 share, which is what editors read."""
    from weft.frontends.schema import Model  # pydantic, which `weft new` does without

    found = Model.model_json_schema(ref_template="#/definitions/{model}")
    definitions = found.pop("$defs", {})
    return {"$schema": DRAFT} | found | {"required": ["weft", *found["required"]], "definitions": definitions}


def page() -> str:
    """docs/spec.md."""
    return "\n".join([*_head(), *_parts(), *_formulas(), *_patterns(), *_errors()]) + "\n"


def _head() -> Iterator[str]:
    yield from _INTRODUCTION.format(sample=text("gpt").rstrip()).splitlines()


_INTRODUCTION = """\
# The spec language

<!-- Made by `make docs` from weft/frontends/schema*.py; a test keeps the two equal. -->

A spec is one YAML (or JSON) file that says what a model computes. `weft check SPEC` reads it and tells everything that
is wrong at once, each with file, line and column; `weft schema` prints its JSON Schema for editors; `weft new KIND -o
SPEC` writes one to start from. The Python builder `weft.Model(...)` takes the same keys, and its `to_yaml()` gives the
file back.

```yaml
{sample}
```

## How a file is read

Strictly: an unknown key is an error, and so is a key that stands twice. Only `true` and `false` are booleans, `1e-3` is
a number, `yes`, `012` and `1_000` are texts. There are no tags, anchors, aliases or merge keys; reuse goes by named
`blocks` and by `extends: base.yaml`, whose maps are merged key by key under this file's and whose file lies in the same
folder or below it. A file holds at most 1 MiB, 32 levels and 10,000 values. Nothing in a file is ever evaluated.

## Sizes

`dims` names the sizes; every other size in the spec is a dim, a number, or an expression over dims with `+ - * // %`,
`/` (exact division; of `batch` and `seq` in `dims` and in a capacity it is refused), parentheses, `ceil_div(a, b)`,
`min(...)` and `max(...)`. `batch` and `seq` are chosen at run time, up to the size in `dims` or to `runtime.max`; all
others are fixed when compiling. `--set DIM=VALUE` changes a dim, and `--small` applies the map `small`. Either way a
run-time dim gets the new size as its maximum.

Where `batch` or `seq`, or a dim made of them, stands in a formula, a pattern or a size that is fixed when compiling, it
means the largest size, not that of the run: `scale: 4/seq` is one number, `window(seq // 2)` one pattern. So the first
positions of a sequence give the same results whatever follows them, and `prefill` and `step` what `forward` gives. Of
all sizes the [capacity of experts](#moe) alone may follow the run.
"""
_FORMULAS = """\
Activations, scores, scales, initial values, position indices and recurrent cells are formulas: `+ - * / // % **`,
comparisons, `and`, `or`, `not`, `a if condition else b`, numbers, `pi`, the names that the key allows, and the
functions below. Each function has a stable derivative of its own; `1 - sigmoid(x)` becomes `sigmoid(-x)`.
"""
_PATTERNS = """\
A pattern is a predicate over the query's index `q`, the key's `k` and the head's `h`: comparisons of sums of indices,
numbers and dims, with `* // %` by a number or dim; `and`, `or`, `not`; and the names below. `heads(A, B)` deals
patterns out to the heads in turn, `on_heads(0, 4, A)` holds on heads 0 to 3 and nowhere else, `blocks(size, rows)` is a
static set of key blocks with multiplicity, a row for every block of the largest `seq`, for all heads or for each in
turn. A query that sees no key gets output 0 and gradient 0.
"""

_METADATA = """\
`segments` holds integers [batch seq]: `same_segment` lets a query see the keys whose number is its own, whatever the
numbers and their order. `valid` holds booleans [batch seq]: whether a key may be seen. Both are inputs of `forward` and
`prefill`, and of `step` for the tokens it is fed; the state keeps those of the keys.

`rows: {documents: true}` packs several documents in a row: tokens see those of their own document, positions and the
states of a recurrence start anew with each, and a document gives what it gives alone, gradients and its
load-balancing loss too. So a pattern and a score may read `q - k` and not where in the row a token is, and experts take
`capacity: none`; both are checked. No target is left out: that of a document's last token is the one that ends it, or
`ignore`. Other losses are means over all tokens. A number that comes again behind another document is a new document.

`rows: {padding: true}` leaves out the tokens that `valid` denies: nobody sees them, they move no state, count in no
loss, whatever their target, and what follows them is counted without them, so prompts may be padded on either side.
Patterns, scores and `relative` go by distance along the row, and what counts from its start (`q // block`, `k < 4`,
block sets) is for padding behind. With `positions: given` tables and rotary positions go by the input `positions`, as
Hugging Face's `position_ids` do. `same_segment` or `valid` alone, in a pattern, are conditions on keys and no more.

Tiles of attention that lie in different documents are left out, as the numbers say, in torch on a CPU and in kernels,
which wait for nothing; where a kernel walks a list of blocks (`strided`, `fixed`, block sets) they are only hidden.
"""

_ERRORS = """\
Every problem is printed as `file:line:col: error[code]: message; way out`, with its source line and a caret; the exit
code is 3.
"""
_WARNINGS = """
What is no error and yet probably not meant is printed by `weft check` in the same form, `warning[code]` for
`error[code]`; the exit code is 0. `--json` has it under `warnings`.
"""


def _parts() -> Iterator[str]:
    from weft.frontends import schema  # pydantic, which `weft new` does without

    yield "\n## Keys\n"
    todo: list[Any] = [schema.Model]
    for part in todo:
        rows = list(_rows(part))
        yield f"### {_name(part)}\n"
        yield " ".join((part.__doc__ or "").split()) + "\n"
        if rows:
            yield "| key | value | default | meaning |\n|---|---|---|---|"
            yield from rows
        yield ""
        todo += dict.fromkeys(inner for inner in _inner(part) if inner not in todo)


def _name(part: Any) -> str:
    """What a part is called in Python, where it can be made as well."""
    return part.called or part.__name__


def _rows(part: Any) -> Iterator[str]:
    for name, field in part.model_fields.items():
        if name == "module":
            continue
        meaning = field.description or ("which of these it is" if name == "kind" else "")
        cells = (f"`{name}`", _type(field.annotation, tuple(field.metadata)), _default(field), meaning)
        yield "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"


def _default(field: Any) -> str:
    from pydantic_core import PydanticUndefined  # pydantic, which `weft new` does without

    value = field.default
    if field.is_required():
        return "required"
    if value is PydanticUndefined:
        made = field.default_factory()
        return "empty" if not made else f"`{made}`"
    if value is None:
        return ""
    if hasattr(value, "model_dump"):
        given = value.model_dump(exclude_unset=True)
        return f"`{_plain(given)}`" if given else "as below"
    return f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    return emit({"x": value}).removeprefix("x: ").strip()


def _members(kind: Any) -> list[tuple[Any, tuple[Any, ...]]]:
    """The members of a union with their constraints; None left out."""
    if get_origin(kind) is Annotated:
        inner, *extra = get_args(kind)
        return [(k, (*m, *extra)) for k, m in _members(inner)]
    if hasattr(kind, "__args__") and get_origin(kind) not in (list, dict, Literal):
        return [pair for option in get_args(kind) if option is not NoneType for pair in _members(option)]
    return [(kind, ())]


def _type(kind: Any, extra: tuple[Any, ...] = ()) -> str:
    words = [_one(k, (*m, *extra)) for k, m in _members(kind)]
    if words[:2] == ["whole number", "size"]:
        words = words[1:]
    return " or ".join(dict.fromkeys(words))


def _one(kind: Any, constraints: tuple[Any, ...]) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if get_origin(kind) is list:
        return f"list of: {_type(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        key, value = get_args(kind)
        return f"map: {_type(key)} -> {_type(value)}"
    if hasattr(kind, "model_fields"):
        return f"[{_name(kind)}](#{_name(kind).lower()})"
    limit = next((c.max_length for c in _flat(constraints) if getattr(c, "max_length", None)), None)
    texts = {40: "name", 200: "size", 2000: "formula", None: "text"}
    return {bool: "`true`, `false`", int: "whole number", float: "number", str: texts.get(limit, "text")}.get(
        kind, "any"
    )


def _flat(constraints: tuple[Any, ...]) -> Iterator[Any]:
    for c in constraints:
        yield c
        yield from getattr(c, "metadata", ())


def _inner(part: Any) -> Iterator[Any]:
    """The classes a part's keys lead to, in order."""

    def walk(kind: Any) -> Iterator[Any]:
        for member, _ in _members(kind):
            if get_origin(member) in (list, dict):
                for arg in get_args(member):
                    yield from walk(arg)
            elif hasattr(member, "model_fields"):
                yield member

    for field in part.model_fields.values():
        yield from walk(field.annotation)


def _formulas() -> Iterator[str]:
    from weft.ir.formula.functions import FUNCTIONS  # SymPy, which the language alone does without

    hidden = {"Abs", "Max", "Min", "Mod", "Piecewise", "Eq", "Ne", "uniform"}
    names = [f"`{name}`" for name in FUNCTIONS if name not in hidden and not name.endswith("_grad")]
    yield "## Formulas\n"
    yield _FORMULAS
    yield ", ".join(names) + ".\n"


def _patterns() -> Iterator[str]:
    yield "## Patterns\n"
    yield _PATTERNS
    yield "| name | stands for | meaning | source |\n|---|---|---|---|"
    for named in NAMED:
        call = f"{named.name}({', '.join(named.params)})" if named.params else named.name
        yield f"| `{call}` | `{named.body}` | {named.meaning} | {named.source} |"
    yield ""
    yield "Conditions on batch metadata, each with the model input it reads:"
    yield ", ".join(f"`{name}` (`{vector}`)" for name, vector in METADATA.items()) + ".\n"
    yield _METADATA


def _errors() -> Iterator[str]:
    yield "## Errors\n"
    yield _ERRORS
    yield "| code | meaning |\n|---|---|"
    yield from (f"| {code} | {meaning} |" for code, meaning in CODES.items())
    yield _WARNINGS
    yield "| code | meaning |\n|---|---|"
    yield from (f"| {code} | {meaning} |" for code, meaning in WARNINGS.items())


def main(path: str) -> None:
    """Write the page to `path`."""
    Path(path).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
