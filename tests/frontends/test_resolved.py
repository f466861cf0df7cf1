"""Every value of a spec with its origin."""

from pathlib import Path

from weft.frontends.load import load_spec
from weft.frontends.resolved import ResolvedValue, resolved

SPEC = Path(__file__).parents[2] / "examples" / "specs" / "sparse_transformer_enwik8.yaml"


def test_origins_are_lines_settings_and_defaults():
    rows = resolved(load_spec(SPEC, ["heads=4"], small=True))

    assert rows[0] == ResolvedValue("weft", "1", "sparse_transformer_enwik8.yaml:1")
    lines = SPEC.read_text().splitlines()
    width = next(i for i, line in enumerate(lines, 1) if line.startswith("small:"))
    head = next(i for i, line in enumerate(lines, 1) if line.startswith("  head:"))
    for row in (
        ResolvedValue("dims.heads", "4", "--set"),
        ResolvedValue("dims.width", "32", f"sparse_transformer_enwik8.yaml:{width}"),
        ResolvedValue("dims.head", "8 = width // heads", f"sparse_transformer_enwik8.yaml:{head}"),
        ResolvedValue("dtype.params", "f32", "default"),
        ResolvedValue("blocks.feedforward.bias", "true", "default"),
        ResolvedValue("blocks.attention.scale", "1/sqrt(head)", "default"),
    ):
        assert row in rows
    assert len({row.path for row in rows}) == len(rows)
