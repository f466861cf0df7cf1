"""Phi (Li et al. 2023): attention and feed-forward beside each other after one LayerNorm, a part of each head turns, a
bias on the logits."""

from weft.frontends.hf import llama
from weft.frontends.hf.config.family import Architecture, Spec, Values, norm, without
from weft.frontends.hf.config.options import activation, default, flag, layers, number, rate, size
from weft.frontends.hf.config.rotary import share
from weft.frontends.hf.tensors.weights import WeightRow, affine, linear, same

OPTIONS = {k: o for k, o in llama.without_biases().items() if k not in ("head_dim", "rms_norm_eps")} | {
    "vocab_size": size(51200),
    "hidden_size": size(2048),
    "intermediate_size": size(8192),
    "num_hidden_layers": layers(24),
    "num_key_value_heads": default(size(None), None),
    "hidden_act": activation("gelu_new"),
    "resid_pdrop": rate(0.0),
    "embd_pdrop": rate(0.0),
    "layer_norm_eps": number(1e-5),
    "partial_rotary_factor": share(0.5),
    "qk_layernorm": flag(False),
}


def spec(c: Values) -> Spec:
    rule = norm("layer_norm", c["layer_norm_eps"])
    sizes = llama.sizes_of({**c, "head_dim": None})
    blocks = {
        "attention": llama.attention(c, sizes, biased=True, qk_norm=rule if c["qk_layernorm"] else None),
        "feedforward": {"kind": "mlp", "activation": c["hidden_act"]},
    }
    return llama.decoder(
        "phi", "Phi (Li et al. 2023)", c, sizes, blocks, rule,
        embed={"dropout": c["embd_pdrop"]} if c["embd_pdrop"] else None,
        sublayer=without({"norm": rule, "residual": "pre", "dropout": c["resid_pdrop"]}),
        stack=[{"repeat": "layers", "layer": [{"parallel": ["attention", "feedforward"], "norm": rule}]}],
        head={"tied": True, "bias": True} if c["tie_word_embeddings"] else {"bias": True},
    )  # fmt: skip


ROWS: tuple[WeightRow, ...] = (
    *same("embed.tokens", "model.embed_tokens.weight"),
    *affine("layers.{}.parallel_norm", "model.layers.{}.input_layernorm"),
    *llama.ATTENTION[:6],
    *linear("layers.{}.attention.output", "model.layers.{}.self_attn.dense"),
    *affine("layers.{}.attention.query_norm", "model.layers.{}.self_attn.q_layernorm"),
    *affine("layers.{}.attention.key_norm", "model.layers.{}.self_attn.k_layernorm"),
    *linear("layers.{}.feedforward.up", "model.layers.{}.mlp.fc1"),
    *linear("layers.{}.feedforward.down", "model.layers.{}.mlp.fc2"),
    *affine("norm", "model.final_layernorm"),
    *linear("head", "lm_head"),
)

PHI = llama.DECODER(
    name="phi",
    architectures={"PhiForCausalLM": Architecture()},
    options=OPTIONS,
    spec=spec,
    rows=ROWS,
    divides=(("num_key_value_heads", "num_attention_heads"), ("num_attention_heads", "hidden_size")),
)
