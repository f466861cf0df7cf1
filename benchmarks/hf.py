"""What loading a checkpoint of Hugging Face costs: seconds, and peak memory over its size.

Run: python -m benchmarks.hf [gigabytes]. Llama's blocks in a single safetensors file and in shards, in a process of its
own; `peak` is the most that was resident above an imported torch (VmHWM: anonymous memory, and what of mapped files is
in memory, shards among them), `own` above the same model compiled without weights: the compiler takes 0.08 GB.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tabulate import tabulate

from benchmarks.environment import environment
from weft.api_hf import tensors_of
from weft.frontends.hf.imported import import_values

RESULT = Path(__file__).parent / "results" / "hf.json"
MOST = 1.15
"""Peak over the size of the weights."""
WIDTH, INNER, VOCAB = 1024, 2816, 32000
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": WIDTH, "intermediate_size": INNER,
    "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": VOCAB, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
}  # fmt: skip


def generate(folder: Path, size: int, shards: int) -> int:
    """A checkpoint of about `size` bytes of f32 in `shards` files; gives the bytes of its weights."""
    layer = 4 * (2 * WIDTH * WIDTH + 2 * WIDTH * WIDTH // 4 + 3 * WIDTH * INNER)
    config = CONFIG | {"num_hidden_layers": max(1, (size - 8 * WIDTH * VOCAB) // layer)}
    names = tensors_of(import_values(config))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    generator, total, index = torch.Generator().manual_seed(0), 0, {}
    for i in range(shards):
        held = {n: torch.randn(t.shape, generator=generator) * 0.02 for n, t in list(names.items())[i::shards]}
        file = "model.safetensors" if shards == 1 else f"model-{i + 1:05}-of-{shards:05}.safetensors"
        save_file(held, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(held, file)
        total += sum(4 * t.numel() for t in held.values())
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return total


MEASURED = """
import json, sys, time
import torch
def peak():  # of this program: getrusage has what its parent held when it was forked
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
base = peak()
import weft
from weft import api
begin = time.process_time()
if sys.argv[2] == "compile":
    module = weft.compile(api.import_hf(sys.argv[1]).spec, train=False, device="meta")
else:
    module = weft.load_hf(sys.argv[1], train=False)
print(json.dumps({"bytes": sum(p.nbytes for p in module.parameters()), "peak": peak() - base,
                  "seconds": time.process_time() - begin}))
"""


def measured(folder: Path, what: str) -> dict[str, float]:
    """Bytes of the weights, of the peak above an imported torch, and CPU-seconds, of one load or compile."""
    command = [sys.executable, "-c", MEASURED, str(folder), what]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main(size: float = 1.0) -> int:
    rows = []
    for shards in (1, 4):
        with tempfile.TemporaryDirectory() as home:
            folder = Path(home)
            generate(folder, int(size * 1e9), shards)
            bare = measured(folder, "compile")
            begin = time.perf_counter()
            found = measured(folder, "load")
            wall = time.perf_counter() - begin
            over = {"peak": found["peak"], "own": found["peak"] - bare["peak"]}
            rows.append({"shards": shards, "bytes": found["bytes"], "CPU seconds": found["seconds"], "seconds": wall,
                         "compile": bare["seconds"], **{k: n / found["bytes"] for k, n in over.items()}})  # fmt: skip
    print(tabulate(rows, "keys", floatfmt=".3f"))
    RESULT.write_text(
        json.dumps({"schema": "weft.bench/1", "environment": environment(), "rows": rows}, indent=2) + "\n"
    )
    return 0 if all(row["peak"] <= MOST for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(*map(float, sys.argv[1:])))
