"""Program -> the files of its package, as text. Nothing here touches a disk or imports torch."""

import re
from collections.abc import Mapping, Sequence
from importlib import resources

from weft.codegen.package.block import block_file
from weft.codegen.package.decoding import Decoding, decoding
from weft.codegen.package.disk import as_json
from weft.codegen.package.kernels import NO_KERNELS, Emitted
from weft.codegen.package.model import model_file
from weft.codegen.package.saved import to_data
from weft.codegen.torch.composites import known
from weft.ir.program import Program
from weft.ir.text import show
from weft.passes.blocks import key, trusted
from weft.passes.halves import Derived
from weft.passes.pipeline import PIPELINE, run
from weft.passes.stage import PassOptions, StagedProgram
from weft.passes.structure import Structure
from weft.progress import doing

NEEDS: Mapping[str, tuple[str, ...]] = {
    "attention": (
        "attention",
        "attention_blocks",
        "attention_core",
        "attention_drop",
        "attention_layouts",
        "attention_merge",
        "attention_op",
        "attention_parts",
        "attention_pieces",
        "attention_segments",
        "attention_strips",
        "attention_tiles",
        "philox",
        "whole",
    ),
    "decode": ("decode", "attention_core"),
    "distances": ("distances", "attention_core", "attention_drop", "attention_segments", "philox", "whole"),
    "drop": ("drop", "philox"),
    "module": ("module", "whole"),
    "steps": ("steps", "whole"),
}
"""The runtime files that come with a runtime module; a module that is not listed comes alone."""
RUFF = 'line-length = 120\n\n[lint]\nselect = ["E4", "E7", "E9", "F"]\n'


def emit(program: Program) -> dict[str, str]:
    """The files of a program that nothing is decided about: nothing kept but statistics, no kernels."""
    plain = [p for p in PIPELINE if not p.decides]
    sizes = program.resolve(**{d: r.max for d, r in program.runtime.items()})
    stage = run(StagedProgram(program), PassOptions(sizes, known=known), plain)
    assert stage.model is not None
    made = {key(m.block.site): m for m in stage.blocks}
    return files(stage.model, made, decoding(stage.model, {k: m.block for k, m in made.items()}))


def files(
    model: Structure,
    made: Mapping[object, Derived],
    found: Decoding,
    layers: Mapping[str, Sequence[str]] | None = None,
    plan: Mapping[str, object] | None = None,
    kernels: Emitted = NO_KERNELS,
) -> dict[str, str]:
    """The package's files: path below its folder -> text.

    made: its blocks by `key`, in the modes that are printed. found: how it decodes. layers: by block, the mode of each
    of its runs, in order (needed where it has several). plan: what stands in plan.json. kernels: the plan's.
    """
    doing("writing the package")
    program, blocks = model.program, {k: m.block for k, m in made.items()}
    files = {
        f"blocks/{m.block.name}.py": block_file(
            program, m, trusted(model, m.block), found.steps.get(k), m.block.name in kernels.fused
        )
        for k, m in made.items()
    }
    files["blocks/__init__.py"] = '"""One file for each distinct block of the model."""\n'
    files["model.py"] = model_file(model, blocks, found, layers)
    files["__init__.py"] = package_init(program)
    files |= kernels.files
    files |= runtime("\n".join(files.values()))
    files["graph.weft"] = show(program.graph) + "\n"
    files["program.json"] = as_json(to_data(program))
    files["plan.json"] = as_json(plan or {"schema": "weft.plan/1"})
    files["ruff.toml"] = RUFF
    return dict(sorted(files.items()))


def package_init(program: Program) -> str:
    return '''"""An emitted package: `Model` is a torch.nn.Module; nothing but torch is needed."""

from .model import Model as Model
from .model import Output as Output
from .runtime.module import install as install
'''


def runtime(text: str) -> dict[str, str]:
    """The hand-written files that the code imports, copied as they are."""
    wanted = {"module"}
    for line in re.findall(r"^from \.+runtime import (.*)$", text, re.M):
        wanted |= {n.strip() for n in line.split(",")}
    wanted |= set(re.findall(r"^from \.+runtime\.(\w+) import", text, re.M))
    every = {f for w in wanted for f in NEEDS.get(w, (w,))}
    home = resources.files("weft.codegen.runtime")
    files = {f"runtime/{name}.py": (home / f"{name}.py").read_text() for name in sorted(every)}
    files["runtime/__init__.py"] = '"""What the blocks are made of: hand-written torch, the same in every package."""\n'
    return files
