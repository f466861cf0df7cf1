"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm before each sub-layer, weights [in, out]."""

from weft.frontends.hf.config.family import RUNTIME, Architecture, ModelFamily, Spec, Values, dims, norm, small, without
from weft.frontends.hf.config.options import ConfigOption, activation, flag, layers, number, only, rate, size
from weft.frontends.hf.tensors.weights import WeightRow, affine, same, turned

OPTIONS: dict[str, ConfigOption] = {
    "vocab_size": size(50257),
    "n_positions": size(1024),
    "n_embd": size(768),
    "n_layer": layers(12),
    "n_head": size(12),
    "n_inner": size(None),
    "activation_function": activation("gelu_new"),
    "resid_pdrop": rate(0.1),
    "embd_pdrop": rate(0.1),
    "attn_pdrop": rate(0.1),
    "layer_norm_epsilon": number(1e-5),
    "initializer_range": number(0.02),
    "scale_attn_weights": flag(True),
    "scale_attn_by_inverse_layer_idx": only(False, "a scale by the layer's number is not in the spec language"),
    "tie_word_embeddings": flag(True),
}


def spec(c: Values) -> Spec:
    width, eps = c["n_embd"], c["layer_norm_epsilon"]
    sizes = dims(c["n_positions"], width, c["n_head"], c["n_inner"] or 4 * width, c["n_layer"], c["vocab_size"])
    return without({
        "weft": 1,
        "name": "gpt2",
        "about": "GPT-2 (Radford et al. 2019), at the shapes of a Hugging Face config.",
        "dims": sizes,
        "runtime": RUNTIME,
        "blocks": {
            "attention": without({
                "kind": "attention", "pattern": "causal", "scale": None if c["scale_attn_weights"] else 1,
                "dropout": c["attn_pdrop"],
            }),
            "feedforward": {"kind": "mlp", "activation": c["activation_function"]},
        },
        "embed": without({"positions": [{"learned": "seq"}], "dropout": c["embd_pdrop"]}),
        "sublayer": without({"norm": norm("layer_norm", eps), "residual": "pre", "dropout": c["resid_pdrop"]}),
        "stack": [{"repeat": "layers", "layer": ["attention", "feedforward"]}],
        "norm": norm("layer_norm", eps),
        "head": {"tied": True} if c["tie_word_embeddings"] else None,
        "init": {
            "weight": {"normal": c["initializer_range"]},
            "output": {"normal": f"{c['initializer_range']!r}/sqrt(2*layers)"},
        },
        "small": small(sizes),
    })  # fmt: skip


ROWS: tuple[WeightRow, ...] = (
    *same("embed.tokens", "transformer.wte.weight"),
    *same("embed.positions.0", "transformer.wpe.weight"),
    *affine("layers.{}.attention_norm", "transformer.h.{}.ln_1"),
    *(
        WeightRow(tuple(f"layers.{{}}.attention.{part}.{leaf}" for part in ("query", "key", "value")),
            f"transformer.h.{{}}.attn.c_attn.{leaf}", axis=-1)
        for leaf in ("weight", "bias")
    ),
    *affine("layers.{}.attention.output", "transformer.h.{}.attn.c_proj"),
    *affine("layers.{}.feedforward_norm", "transformer.h.{}.ln_2"),
    *affine("layers.{}.feedforward.up", "transformer.h.{}.mlp.c_fc"),
    *affine("layers.{}.feedforward.down", "transformer.h.{}.mlp.c_proj"),
    *affine("norm", "transformer.ln_f"),
    *turned("head.weight", "lm_head.weight"),
)  # fmt: skip

GPT2 = ModelFamily(
    name="gpt2",
    architectures={"GPT2LMHeadModel": Architecture()},
    options=OPTIONS,
    spec=spec,
    rows=ROWS,
    prefix="transformer.",
    # the sum that scores are kept in is a matter of dtypes; a summary belongs to heads that are not imported
    ignored=frozenset({
        "n_ctx", "reorder_and_upcast_attn", "summary_activation", "summary_first_dropout", "summary_proj_to_labels",
        "summary_type", "summary_use_proj",
    }),
    divides=(("n_head", "n_embd"),),
    tied=(("lm_head.weight", "transformer.wte.weight"),),
    unneeded=(".attn.bias", ".attn.masked_bias"),
)  # fmt: skip
