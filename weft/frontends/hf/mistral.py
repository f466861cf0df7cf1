"""Mistral (Jiang et al. 2023): Llama's blocks with a sliding window."""

from weft.frontends.hf import llama
from weft.frontends.hf.config.family import Architecture, Spec, Values
from weft.frontends.hf.config.options import default, number, size

OPTIONS = llama.without_biases() | {
    "intermediate_size": size(14336),
    "num_key_value_heads": default(size(None), 8),
    "max_position_embeddings": size(131072),
    "rms_norm_eps": number(1e-6),
    "sliding_window": default(size(None), 4096),
}


def windowed(c: Values) -> tuple[str, Spec]:
    """The pattern and its dims."""
    window = c["sliding_window"]
    return ("causal", {}) if window is None else ("causal and window(window)", {"window": window})


def spec(c: Values) -> Spec:
    pattern, more = windowed(c)
    sizes = llama.sizes_of(c, **more)
    blocks = {"attention": llama.attention(c, sizes, pattern), "feedforward": llama.feedforward(c)}
    return llama.decoder("mistral", "Mistral (Jiang et al. 2023)", c, sizes, blocks)


MISTRAL = llama.DECODER(
    name="mistral",
    architectures={"MistralForCausalLM": Architecture()},
    options=OPTIONS,
    spec=spec,
    rows=llama.LLAMA.rows,
)
