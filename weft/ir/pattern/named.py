"""The named patterns, each an abbreviation in the grammar itself; q is the query's index, k the key's, h the head's."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Named:
    """`name(params)` stands for `body`; `source` is where the name comes from."""

    name: str
    params: tuple[str, ...]
    body: str
    meaning: str
    source: str = ""


CHILD = "Child et al. 2019, Generating Long Sequences with Sparse Transformers"

NAMED = (
    Named("all", (), "true", "every key"),
    Named("causal", (), "k <= q", "the keys up to the query's own"),
    Named("strict_causal", (), "k < q", "the keys before the query's own"),
    Named(
        "window",
        ("width",),
        "0 <= q - k < width",
        "the last `width` keys, the query's own included",
        "OpenAI sparse_attention `local`; LRA; Mistral",
    ),
    Named(
        "window_inclusive",
        ("width",),
        "0 <= q - k <= width",
        "the query's own and `width` before it",
        f"{CHILD}, section 4.3, A(1) of strided as printed",
    ),
    Named(
        "window_before",
        ("width",),
        "-width <= k - q < 0",
        "the `width` keys before the query's own",
        "Hutchins et al. 2022, Block-Recurrent Transformers (meliad)",
    ),
    Named("band", ("left", "right"), "-left <= k - q <= right", "`left` keys before to `right` keys after"),
    Named(
        "dilated",
        ("width", "step"),
        "0 <= q - k < width * step and (q - k) % step == 0",
        "`width` keys back in steps of `step`, the query's own included",
    ),
    Named(
        "dilated_band",
        ("left", "right", "step"),
        "-left * step <= k - q <= right * step and (q - k) % step == 0",
        "a band in steps of `step`",
        "Beltagy et al. 2020, Longformer, section 3.1",
    ),
    Named("strided", ("step",), "(q - k) % step == 0", "every `step`-th key, counted from the query's own", CHILD),
    Named(
        "fixed",
        ("block", "columns"),
        "q // block == k // block or k % block >= block - columns",
        "the query's block, and the last `columns` of every block",
        f"{CHILD}, section 4.3",
    ),
    Named(
        "fixed_with_zero",
        ("block", "columns"),
        "q // block == k // block or k % block == 0 or k % block >= block - columns",
        "as fixed, and the first of every block",
        "Long Range Arena, sparse attention masks",
    ),
    Named(
        "fixed_heads",
        ("block", "columns", "choices"),
        "q // block == k // block or "
        "block - columns * (h % choices + 1) <= k % block < block - columns * (h % choices)",
        "as fixed, head h looking at group h % choices of `columns`, counted from each block's end",
        "openai/sparse_attention, get_callback `fixed`, num_verts",
    ),
    Named(
        "block_diagonal",
        ("block",),
        "q // block == k // block",
        "the query's own block",
        "Xiong et al. 2021, Simple Local Attentions Remain Competitive",
    ),
    Named(
        "columns",
        ("block", "start", "width"),
        "(k - start) % block < width",
        "of every block, `width` keys from `start` on, going round",
    ),
    Named("rows", ("count",), "q < count", "the first `count` queries see every key"),
    Named("cols", ("count",), "k < count", "every query sees the first `count` keys"),
    Named(
        "longformer",
        ("left", "right", "count"),
        "-left <= k - q <= right or q < count or k < count",
        "a band, and `count` global tokens",
        "Beltagy et al. 2020, Longformer",
    ),
    Named("prefix", ("count",), "k < count or k <= q", "causal after a prefix that all see"),
    Named(
        "chunks_before",
        ("block",),
        "k // block < q // block",
        "the blocks before the query's own",
        "Zhu et al. 2021, Long-Short Transformer",
    ),
)

BY_NAME = {n.name: n for n in NAMED}

METADATA = {
    "same_segment": "segments",
    "valid": "valid",
}
"""Conditions on batch metadata, and the vector each reads: segments[q] == segments[k]; valid[k]."""
