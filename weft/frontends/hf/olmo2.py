"""OLMo 2 (OLMo team 2025): norms after each sub-layer in place of before, and of queries and keys over all heads."""

from weft.frontends.hf import llama, qwen
from weft.frontends.hf.config.family import Architecture, Spec, Values, norm
from weft.frontends.hf.config.options import number, size
from weft.frontends.hf.tensors.weights import WeightRow, same

OPTIONS = {key: option for key, option in llama.OPTIONS.items() if key != "mlp_bias"} | {
    "vocab_size": size(50304),
    "rms_norm_eps": number(1e-5),
}


def spec(c: Values) -> Spec:
    sizes, rule = llama.sizes_of(c), norm("rms_norm", c["rms_norm_eps"])
    over = norm("rms_norm", c["rms_norm_eps"], over="projection")
    blocks = {
        "attention": llama.attention(c, sizes, biased=c["attention_bias"], qk_norm=over),
        "feedforward": llama.feedforward(c),
    }
    after = {"norm": "none", "residual": "pre", "output_norm": rule}
    return llama.decoder("olmo2", "OLMo 2 (OLMo team 2025)", c, sizes, blocks, sublayer=after)


NORMS: tuple[WeightRow, ...] = (
    *same("layers.{}.attention_output_norm.weight", "model.layers.{}.post_attention_layernorm.weight"),
    *same("layers.{}.feedforward_output_norm.weight", "model.layers.{}.post_feedforward_layernorm.weight"),
)

OLMO2 = llama.DECODER(
    name="olmo2",
    architectures={"Olmo2ForCausalLM": Architecture()},
    options=OPTIONS,
    spec=spec,
    rows=(*llama.ENDS, *NORMS, *llama.ATTENTION, *qwen.QK_NORMS, *llama.FEEDFORWARD),
)
