"""Every family that is imported, and why others are not yet."""

from weft.frontends.hf.bert import BERT
from weft.frontends.hf.big_bird import BIG_BIRD
from weft.frontends.hf.config.family import ModelFamily
from weft.frontends.hf.deepseek import DEEPSEEK_V3
from weft.frontends.hf.gemma import GEMMA, GEMMA2, GEMMA3
from weft.frontends.hf.gpt2 import GPT2
from weft.frontends.hf.gpt_neox import GPT_NEOX
from weft.frontends.hf.gpt_oss import GPT_OSS
from weft.frontends.hf.llama import LLAMA
from weft.frontends.hf.longformer import LONGFORMER
from weft.frontends.hf.mistral import MISTRAL
from weft.frontends.hf.mixtral import MIXTRAL
from weft.frontends.hf.olmo2 import OLMO2
from weft.frontends.hf.phi import PHI
from weft.frontends.hf.phi3 import PHI3
from weft.frontends.hf.qwen import QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE
from weft.frontends.hf.roberta import ROBERTA
from weft.frontends.hf.switch import SWITCH
from weft.frontends.hf.t5 import T5

DECODERS = (
    *(GPT2, GPT_NEOX, LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE, OLMO2),
    *(GEMMA, GEMMA2, GEMMA3, PHI, PHI3, DEEPSEEK_V3, GPT_OSS),
)
ENCODERS = (BERT, ROBERTA, LONGFORMER, BIG_BIRD)
WITH_DECODERS = (T5, SWITCH)
"""An encoder with a decoder."""
FAMILIES: dict[str, ModelFamily] = {family.name: family for family in (*DECODERS, *ENCODERS, *WITH_DECODERS)}

REFUSED = {
    "gemma3": "a model of text and images; of one of text alone the model_type is gemma3_text",
    "olmo": "a norm without weights is not in the spec language",
}
"""Model types that have been looked at: what of them no spec says."""
