"""`weft new KIND`: commented specs to start from."""

from importlib import resources

from weft.errors import UsageError
from weft.frontends.suggest import did_you_mean

KINDS = {
    "gpt": "decoder-only transformer, learned positions",
    "sparse": "Sparse Transformer: local and strided layers in turn",
    "local": "sliding window, grouped queries, rotary, RMSNorm, SwiGLU",
    "encoder": "bidirectional encoder, post-norm, masked tokens",
    "recurrent": "a recurrent cell written as formulas",
    "hybrid": "recurrent layers with attention in between",
    "moe": "routed experts in every second layer",
}


def text(kind: str) -> str:
    """The spec of that kind; UsageError for a kind there is not."""
    if kind not in KINDS:
        raise UsageError(f"no kind '{kind}'; {did_you_mean(kind, KINDS, 'kinds: ')}")
    return (resources.files("weft.frontends") / "templates" / f"{kind}.yaml").read_text(encoding="utf-8")
