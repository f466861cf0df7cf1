"""The shipped specs as programs, kept in the tree: a GPU machine plans and emits them without the spec language.

    python -m benchmarks.gpu.programs        write lowered/ again from examples/specs

A program is what `weft compile` keeps of a spec in a package: its graph as text and, beside it, what is no graph.
"""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

from benchmarks.specs import LIKE, SPECS
from weft.codegen.package.saved import from_data, to_data
from weft.ir.program import Program, Runtime
from weft.ir.text import show

HOME = Path(__file__).parent / "lowered"
SIZES = ("published", "small")


def names() -> list[str]:
    """The shipped specs; those whose parts others stand for come last, where the time may be up."""
    found = (p.name.removesuffix(".small.weft") for p in HOME.glob("*.small.weft"))
    return sorted(found, key=lambda name: (name in LIKE, name))


@cache
def program(name: str, size: str, longest: int = 0) -> Program:
    """A shipped spec at "published" or "small" dims; longest: of its sequence, where that is another."""
    data = json.loads((HOME / f"{name}.{size}.json").read_text(encoding="utf-8"))
    found = from_data(data, (HOME / f"{name}.{size}.weft").read_text(encoding="utf-8"))
    if not longest or "seq" not in found.runtime:
        return found
    return replace(found, runtime={**found.runtime, "seq": Runtime(longest, found.runtime["seq"].align)})


def texts() -> dict[str, str]:
    """File name -> text, from the specs."""
    from weft import api  # a machine with torch and triton alone reads no spec

    out: dict[str, str] = {}
    for spec in sorted(SPECS.glob("*.yaml")):
        for size in SIZES:
            lowered = api.program(api.open_spec(spec, (), size == "small"))
            out[f"{spec.stem}.{size}.weft"] = show(lowered.graph)
            out[f"{spec.stem}.{size}.json"] = json.dumps(to_data(lowered), separators=(",", ":")) + "\n"
    return out


def main() -> None:
    HOME.mkdir(exist_ok=True)
    for name, text in texts().items():
        (HOME / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
