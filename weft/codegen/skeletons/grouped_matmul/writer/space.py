"""What may be tuned of the grouped matmul kernels: data, read by the autotuner. They start where matmul starts.

The knobs are those of `matmul_space`; rows are slots of an expert, or what the gradient of its weights has as rows. A
region of experts that dispatches nothing runs the matmul kernel.
"""

from weft.codegen.skeletons.matmul.writer.space import CONSTRAINTS, KNOBS, SHARED

SPACES = {
    "grouped_matmul": {
        "kernels": ("grouped_matmul", "grouped_weights", "matmul"),
        "knobs": KNOBS,
        "sizes": ("bytes",),
        "constraints": CONSTRAINTS,
        "shared": SHARED,
    }
}
