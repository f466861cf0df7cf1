"""The tiny models as transformers saves them: their configs, and the names and shapes of their tensors.

Run: python -m tests.hf.record, after a family is added; tests read the record and so need no transformers."""

import json
import tempfile
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parent / "recorded.json"
RECORDED: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.exists() else {}


def record(family: str) -> dict[str, Any]:
    """One family's config, tensors and parameters."""
    # transformers is not there where the record alone is read
    from tests.hf.models import oracle, saved
    from weft.frontends.hf.tensors.checkpoint import Checkpoint

    model = oracle(family)
    with tempfile.TemporaryDirectory() as home:
        folder = saved(model, Path(home))
        config = json.loads((folder / "config.json").read_text())
        tensors = Checkpoint.open(folder).tensors
    shapes = {name: list(tensor.shape) for name, tensor in sorted(tensors.items())}
    kept = [x for name, x in model.named_buffers() if name in tensors]
    count = sum(x.numel() for x in (*model.parameters(), *kept))
    return {"config": config, "parameters": count, "tensors": shapes}


def main() -> None:
    from tests.hf.models import MODELS  # transformers is not there where the record alone is read

    found = {name: record(name) for name in MODELS if "-" not in name}
    lines = [f"{json.dumps(family)}: {json.dumps(one)}" for family, one in found.items()]
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
