"""Mixtral (Jiang et al. 2024): Mistral's attention, and experts that drop no token, a token's gates summing to 1."""

from weft.frontends.hf import llama, mistral
from weft.frontends.hf.config.family import Architecture, Spec, Values
from weft.frontends.hf.config.options import default, number, only, size
from weft.frontends.hf.config.rotary import options as rotary_options
from weft.frontends.hf.tensors.weights import WeightRow, turned

BALANCE = "transformers adds one loss over all layers, weft one a layer: set it false, and `aux_loss` in the spec"
OPTIONS = mistral.OPTIONS | {
    "sliding_window": size(None),
    "rms_norm_eps": number(1e-5),
    "num_local_experts": size(8),
    "num_experts_per_tok": size(2),
    "output_router_logits": only(False, BALANCE),
    "router_jitter_noise": only(0.0, "noise on the router's input is not in the spec language", 0),
    **rotary_options(1e6),
}


def spec(c: Values) -> Spec:
    pattern, more = mistral.windowed(c)
    sizes = llama.sizes_of(c, experts=c["num_local_experts"], **more)
    blocks = {
        "attention": llama.attention(c, sizes, pattern),
        "experts": {
            "kind": "moe", "top_k": c["num_experts_per_tok"], "capacity": "none", "activation": c["hidden_act"],
            "gated": True, "normalize": True, "aux_loss": 0,
        },
    }  # fmt: skip
    return llama.decoder("mixtral", "Mixtral (Jiang et al. 2024)", c, sizes, blocks)


EXPERTS: tuple[WeightRow, ...] = tuple(
    row
    for ours, theirs in {"gate": "w1", "up": "w3", "down": "w2"}.items()
    for row in turned(
        f"layers.{{}}.experts.{ours}.weight", f"model.layers.{{}}.block_sparse_moe.experts.*.{theirs}.weight"
    )
)

MIXTRAL = llama.DECODER(
    name="mixtral",
    architectures={"MixtralForCausalLM": Architecture()},
    options=OPTIONS | {"num_key_value_heads": default(size(None), 8)},
    spec=spec,
    rows=(
        *llama.ENDS,
        llama.NORMS[0],
        WeightRow(("layers.{}.experts_norm.weight",), "model.layers.{}.post_attention_layernorm.weight"),
        *llama.ATTENTION,
        *turned("layers.{}.experts.router.weight", "model.layers.{}.block_sparse_moe.gate.weight"),
        *EXPERTS,
    ),
    ignored=frozenset({"router_aux_loss_coef"}),
)
