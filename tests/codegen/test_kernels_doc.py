"""docs/kernels.md shows what weft writes today. `python -m tests.codegen.test_kernels_doc` puts it in again."""

import re
import tempfile
from pathlib import Path

from weft import api
from weft.codegen.skeletons import families, rows
from weft.codegen.skeletons.common.writer.hazards import EVER, Hazard, every

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "kernels.md"
SPEC = """weft: 1
name: tiny
dims: {batch: 2, seq: 6, width: 8, heads: 2, head: width // heads, inner: 2*width, layers: 1, vocab: 7}
blocks:
  attention: {kind: attention, pattern: causal}
  feedforward: {kind: mlp, activation: gelu}
stack:
  - {repeat: layers, layer: [attention, feedforward]}
norm: rms_norm
head: {tied: true}
"""


def example() -> str:
    """The kernel of the norm before the head, as number 14 of its package, whatever it is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.yaml"
        path.write_text(SPEC)
        files = api.package(path, target="sm_90")
    (name,) = (n for n in files if re.fullmatch(r"kernels/k\d+_rowwise_norm\.py", n))
    return re.sub(r"\bk\d+_rowwise_norm", "k14_rowwise_norm", files[name])


def versions(h: Hazard) -> str:
    first, last = (".".join(map(str, v)) for v in (h.since, h.before))
    words = [f"from {first}"] if h.since > (0,) else []
    words += [f"before {last}"] if h.before < EVER else []
    return " ".join(words) or "all"


def hazards() -> str:
    rows = ["| fault | targets | Triton | kept clear of it by |", "|---|---|---|---|"]
    for h in every():
        by = f"{h.avoid}; rule `{h.rule}`" if h.rule else h.avoid
        rows.append(f"| {h.what} ({h.source}) | {', '.join(h.targets) or 'all'} | {versions(h)} | {by} |")
    return "\n".join(rows)


def renewed(page: str) -> str:
    for mark, content in (("file", f"```python\n{example()}```"), ("hazards", hazards())):
        before, rest = page.split(f"<!-- {mark} -->")
        after = rest.split("<!-- end -->", 1)[1]
        page = f"{before}<!-- {mark} -->\n{content}\n<!-- end -->{after}"
    return page


def test_it_shows_what_weft_writes():
    page = PAGE.read_text()
    assert page == renewed(page), "python -m tests.codegen.test_kernels_doc renews it"


def test_every_path_in_it_exists():
    page = re.sub(r"<!-- (file|hazards) -->.*?<!-- end -->", "", PAGE.read_text(), flags=re.DOTALL)
    paths = set(re.findall(r"`((?:weft|tests|docs)/[\w/.*]+)`", page))
    missing = [p for p in paths if "NAME" not in p and not list(ROOT.glob(p))]
    assert missing == []
    assert len(paths) > 10


def test_the_folder_of_a_skeleton_is_that_of_every_skeleton():
    assert {f.takes for f in families().values()} == {r.name for r in rows()}
    for name, family in families().items():
        home = ROOT / "weft/codegen/skeletons" / name
        kernels = {"kernel.py"} if name != "attention" else {"forward.py", "backward.py"}
        assert kernels | {"__init__.py", "launch.py"} <= {p.name for p in home.glob("*.py")}
        assert {"__init__.py", "space.py", "write.py"} <= {p.name for p in (home / "writer").glob("*.py")}
        assert family.row is None or family.row.name == name
        assert family.write.__module__ == f"weft.codegen.skeletons.{name}.writer.write"
        assert (ROOT / f"tests/kernels/{name}_faults.py").exists()


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
