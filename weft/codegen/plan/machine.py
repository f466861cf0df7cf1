"""What the passes look like from outside: the machine's own target, and files of graphs between passes."""

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from weft import outputs
from weft.ir.types import Graph
from weft.passes.pipeline import Watch, shown
from weft.targets import BY_NAME

DEVICES = ("/dev/nvidia0", "/dev/kfd")


def own_target() -> str:
    """The target of this machine. torch is imported only where a GPU's device file exists."""
    if not any(os.path.exists(d) for d in DEVICES):
        return "cpu"
    import torch  # torch is imported only where it is needed

    if not torch.cuda.is_available():
        return "cpu"
    if torch.version.hip:
        name = torch.cuda.get_device_properties(0).gcnArchName.split(":")[0]
    else:
        major, minor = torch.cuda.get_device_capability(0)
        name = f"sm_{major}{minor}"
    return name if name in BY_NAME else "cpu"


def watcher(folder: str | None, names: Collection[str], say: Callable[[str], object]) -> Watch | None:
    """Writes the graphs to `folder` as NN_pass.txt, numbered in the order passes end, and says those after `names`."""
    if not folder and not names:
        return None
    if folder:
        outputs.tried_folder(folder)
    count = 0

    def watch(name: str, graphs: Mapping[str, Graph]) -> None:
        nonlocal count
        count += 1
        text = f"# after pass {name}\n{shown(graphs)}\n"
        if folder:
            with outputs.Batch() as batch:
                batch.folder(folder)
                batch.add(Path(folder) / f"{count:02d}_{name}.txt", text)
        if name in names:
            say(text)

    return watch
