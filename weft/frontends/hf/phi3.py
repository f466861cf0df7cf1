"""Phi-3 (Abdin et al. 2024): Llama's blocks, whose queries, keys and values are one matrix, and so are gate and up."""

from weft.frontends.hf import llama, mistral
from weft.frontends.hf.config.family import Architecture, Spec, Values, without
from weft.frontends.hf.config.options import number, only, rate, size
from weft.frontends.hf.config.rotary import share
from weft.frontends.hf.tensors.weights import WeightRow, fused, linear

OPTIONS = {k: option for k, option in llama.OPTIONS.items() if k not in ("attention_bias", "mlp_bias", "head_dim")} | {
    "vocab_size": size(32064),
    "hidden_size": size(3072),
    "intermediate_size": size(8192),
    "max_position_embeddings": size(4096),
    "rms_norm_eps": number(1e-5),
    "sliding_window": size(None),
    "resid_pdrop": rate(0.0),
    "attention_bias": only(False, "biases of a fused matrix are not imported"),
    "partial_rotary_factor": share(1.0),
}


def spec(c: Values) -> Spec:
    pattern, more = mistral.windowed(c)
    sizes = llama.sizes_of({**c, "head_dim": None}, **more)
    blocks = {"attention": llama.attention(c, sizes, pattern), "feedforward": llama.feedforward(c)}
    made = llama.decoder("phi3", "Phi-3 (Abdin et al. 2024)", c, sizes, blocks)
    return made | {"sublayer": without(made["sublayer"] | {"dropout": c["resid_pdrop"]})}


ROWS: tuple[WeightRow, ...] = (
    *fused("layers.{}.attention", ("query", "key", "value"), "model.layers.{}.self_attn.qkv_proj"),
    *linear("layers.{}.attention.output", "model.layers.{}.self_attn.o_proj"),
    *fused("layers.{}.feedforward", ("gate", "up"), "model.layers.{}.mlp.gate_up_proj"),
    *linear("layers.{}.feedforward.down", "model.layers.{}.mlp.down_proj"),
)

PHI3 = llama.DECODER(
    name="phi3",
    architectures={"Phi3ForCausalLM": Architecture()},
    options=OPTIONS,
    spec=spec,
    rows=(*llama.ENDS, *llama.NORMS, *ROWS),
    ignored=frozenset({"embd_pdrop", "original_max_position_embeddings"}),  # read by nothing without scaled positions
    divides=(("num_key_value_heads", "num_attention_heads"), ("num_attention_heads", "hidden_size")),
)
