"""The table of families in docs/models.md, measured.

Run: python -m tests.hf.figures, after a family is added or changed."""

import json
import tempfile
from pathlib import Path

import torch

from tests.hf.models import oracle, saved
from tests.hf.test_parity import BOUNDS, compared
from weft import api
from weft.frontends.hf.config.options import COMMON
from weft.frontends.hf.families import FAMILIES

DOC = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- families -->\n", "<!-- end of families -->\n"
TITLES = (
    "family",
    "of transformers",
    "logits fp32, fp64",
    "gradients fp32, fp64",
    "options of which one value is read",
)


def row(family: str) -> str:
    """One line of the table."""
    figures: dict[torch.dtype, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as home:
        module = api.load_hf(saved(oracle(family), Path(home) / "saved"))
        for dtype in BOUNDS:
            errors = compared(module, oracle(family, dtype), family, dtype, Path(home) / str(dtype))
            own = {name: e for name, e in errors.items() if name.startswith("d ")}
            figures[dtype] = max(e for name, e in errors.items() if name not in own), max(own.values())
    shown = [", ".join(f"{figures[d][i]:.0e}" for d in (torch.float32, torch.float64)) for i in (0, 1)]
    return line(family, *shown)


def line(family: str, logits: str, gradients: str) -> str:
    made = FAMILIES[family]
    fixed = [f"`{k}`: {json.dumps(o.default)}" for k, o in made.options.items() if o.fixed and k not in COMMON]
    classes = ", ".join(f"`{name}`" for name in made.architectures)
    return f"| `{family}` | {classes} | {logits} | {gradients} | {', '.join(fixed)} |"


def main() -> None:
    before, _, rest = DOC.read_text().partition(BEGIN)
    rows = [f"| {' | '.join(TITLES)} |", "|" + "---|" * len(TITLES), *(row(family) for family in FAMILIES)]
    DOC.write_text(f"{before}{BEGIN}\n" + "\n".join(rows) + f"\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
