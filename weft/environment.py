"""The environment variables weft reads; any other `WEFT_*` is a misspelling, and is told."""

import os
from collections.abc import Mapping

ENVIRONMENT = {
    "WEFT_CACHE_DIR": "where tuned configurations are kept; default: $XDG_CACHE_HOME/weft or ~/.cache/weft",
    "WEFT_DUMP": "a folder: the graph after each pass is written there as NN_pass.txt",
    "WEFT_KERNELS": "what a package runs: torch (its torch path everywhere) or interpret (its kernels, on a CPU)",
    "WEFT_REQUIRE_TUNED": "1: a kernel without a measured configuration for its key is an error",
    "WEFT_SOAK": "1: the test suite runs the full counts of its campaigns",
    "WEFT_TRITON36": "a Python with Triton 3.6: the full counts compile every shipped kernel with it too",
}


def unknown(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Variables that look like weft's and are not."""
    return sorted(name for name in environment if name.startswith("WEFT_") and name not in ENVIRONMENT)
