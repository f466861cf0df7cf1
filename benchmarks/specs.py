"""The shipped specs, and which of them are run through what every one is: a table, and nothing imported."""

from pathlib import Path

SPECS = Path(__file__).parent.parent / "examples" / "specs"
EVERY = tuple(sorted(p.stem for p in SPECS.glob("*.yaml")))
STANDS_FOR = {
    "bart_base": "two streams, cross attention, post-norm",
    "bert_base": "an encoder, two heads",
    "bigbird_base": "a drawn block plan",
    "gpt2_345m": "learned positions, dropout, biases, a tied head",
    "longformer_base": "global tokens, a window of two sides",
    "megatron_8b": "large sizes of a decoder's shapes",
    "mistral_7b": "grouped queries, a causal window, rotary positions, RMSNorm, a gated feed-forward",
    "sparse_transformer_cifar10": "strided attention, positions of several tables",
    "sparse_transformer_enwik8": "the fixed pattern, recomputation at length",
    "sparse_transformer_imagenet64": "strided attention of images",
    "sru_pp_enwik8": "a recurrent cell with attention, keys of its queries",
    "switch_base": "experts with a capacity, layers of two kinds",
    "transformer_xl_base": "relative positions, a memory",
}
"""Specs that `make test` crosses with what every spec goes through (ONNX, decoding, gradients, leaks), and for what."""
LIKE = {
    "bart_large": "bart_base in other sizes",
    "block_recurrent_150m": "transformer_xl_base; windows and states: tests/codegen/test_block_recurrence.py",
    "deepseek_v3": "latents, groups of experts, a bias that chooses, an expert of all: the sweep, tests/hf",
    "dss": "state spaces are drawn by the sweep, tests/passes/test_state_spaces",
    "flash_base": "gated units and mixed chunks: drawn by the sweep, and tests/codegen/test_gated_unit.py",
    "gemma3_4b": "mistral_7b; norms of queries and keys, norms behind sub-layers: drawn by the sweep, and tests/hf",
    "gss": "state spaces are drawn by the sweep, tests/passes/test_state_spaces",
    "gpt_oss_20b": "mistral_7b; sinks, experts that drop none, clamped gates: drawn by the sweep, and tests/hf",
    "h3_125m": "state spaces, and attention of gpt2_345m: drawn by the sweep, tests/passes/test_state_spaces",
    "llama3_8b": "mistral_7b without a window",
    "memory_transformer_base": "bart_base; memory tokens: tests/codegen/test_memory_tokens.py, drawn by the sweep",
    "mixtral_8x7b": "mistral_7b; experts that drop none: drawn by the sweep, and tests/hf",
    "olmo2_7b": "mistral_7b; norms of whole projections: drawn by the sweep, and tests/hf",
    "phi3_mini": "mistral_7b without grouped queries",
    "qwen3_30b_a3b": "mistral_7b; experts that drop none: drawn by the sweep, and tests/hf",
    "qwen3_8b": "mistral_7b; norms of queries and keys: drawn by the sweep, and tests/hf",
    "rmt_enwik8": "transformer_xl_base; memory tokens: tests/codegen/test_memory_tokens.py, drawn by the sweep",
    "t5_11b": "t5_base in other sizes",
    "t5_3b": "t5_base in other sizes",
    "t5_base": "bart_base; buckets of distances, one table for all layers: drawn by the sweep, and tests/hf",
    "t5_large": "t5_base in other sizes",
    "t5_small": "t5_base in other sizes",
    "s4d": "state spaces are drawn by the sweep, tests/passes/test_state_spaces",
    "transformer_xl_large": "transformer_xl_base",
}
"""Specs of parts that others stand for: checked, counted and lowered in `make test`; the soak runs them through all."""
CROSSED = tuple(name for name in EVERY if name not in LIKE)
