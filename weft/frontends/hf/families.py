"""Every family that is imported, and why others are not yet."""

from weft.frontends.hf.bert import BERT
from weft.frontends.hf.big_bird import BIG_BIRD
from weft.frontends.hf.family import ModelFamily
from weft.frontends.hf.gpt2 import GPT2
from weft.frontends.hf.llama import LLAMA
from weft.frontends.hf.longformer import LONGFORMER
from weft.frontends.hf.mistral import MISTRAL
from weft.frontends.hf.mixtral import MIXTRAL
from weft.frontends.hf.roberta import ROBERTA

DECODERS = (GPT2, LLAMA, MISTRAL, MIXTRAL)
ENCODERS = (BERT, ROBERTA, LONGFORMER, BIG_BIRD)
FAMILIES: dict[str, ModelFamily] = {family.name: family for family in (*DECODERS, *ENCODERS)}

REFUSED = {
    "deepseek_v3": "latent projections of queries and keys are not in the spec language",
    "gpt_oss": "sinks of attention and a clamped SwiGLU are not in the spec language",
    "switch_transformers": "its checkpoints are an encoder with a decoder, with biases by relative position, which no "
    "spec says; `weft new moe` starts a decoder with routed experts",
    "t5": "biases by relative position are not in the spec language",
}
"""Model types that have been looked at: what of them no spec says."""
