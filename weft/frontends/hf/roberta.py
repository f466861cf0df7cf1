"""RoBERTa (Liu et al. 2019): BERT whose positions count on from the padding token, and another masked-word head."""

from weft.frontends.hf import bert
from weft.frontends.hf.config.family import Architecture, ModelFamily, Spec, Values
from weft.frontends.hf.config.options import number, whole
from weft.frontends.hf.tensors.weights import WeightRow, affine, linear, same, turned

OPTIONS = bert.OPTIONS | {"vocab_size": bert.size(50265), "layer_norm_eps": number(1e-12), "pad_token_id": whole(1)}


def embed(c: Values) -> tuple[int, Spec, Spec]:
    """The longest sequence, the tables, and their dims: the first rows of the positions are of padding, and a single
    type of token is a position that all share."""
    skipped = c["pad_token_id"] + 1
    positions = [{"learned": f"seq + {skipped}", "index": f"i + {skipped}"}]
    if c["type_vocab_size"] == 1:
        return c["max_position_embeddings"] - skipped, {"positions": [*positions, {"learned": 1, "index": "0"}]}, {}
    return (
        c["max_position_embeddings"] - skipped,
        {"positions": positions, "types": "types"},
        {"types": c["type_vocab_size"]},
    )


def spec(c: Values) -> Spec:
    seq, tables, more = embed(c)
    heads = [bert.language(c)] if c["architecture"] == "RobertaForMaskedLM" else [bert.classes(c)]
    sizes = bert.sizes_of(c, seq, **more)
    return bert.encoder("roberta", "RoBERTa (Liu et al. 2019)", c, sizes, {"pattern": "all"}, tables, heads)


def tables(theirs: str) -> tuple[WeightRow, ...]:
    """The embedding, whose types are a table of types or of one position."""
    return (*bert.embedding(theirs), *same("embed.positions.1", f"{theirs}.token_type_embeddings.weight"))


HEAD: tuple[WeightRow, ...] = (
    *linear("head.transform", "lm_head.dense"),
    *affine("head.transform.norm", "lm_head.layer_norm"),
    *same("head.bias", "lm_head.bias"),
    *turned("head.weight", "lm_head.decoder.weight"),
)


def tied(tokens: str) -> tuple[tuple[str, str], ...]:
    """What the masked-word head shares with the embedding, and with itself."""
    return ("lm_head.decoder.weight", tokens), ("lm_head.decoder.bias", "lm_head.bias")


CLASSIFIER: tuple[WeightRow, ...] = (
    *linear("classify.pool", "classifier.dense"),
    *linear("classify.classes", "classifier.out_proj"),
)

ROBERTA = ModelFamily(
    name="roberta",
    architectures={
        "RobertaForMaskedLM": Architecture(HEAD, unneeded=("roberta.pooler.",)),
        "RobertaForSequenceClassification": Architecture(CLASSIFIER, unneeded=("roberta.pooler.",)),
    },
    options=OPTIONS,
    spec=spec,
    rows=(*tables("roberta.embeddings"), *bert.layer("roberta.encoder.layer.{}")),
    prefix="roberta.",
    divides=bert.DIVIDES,
    renamed=bert.RENAMED,
    tied=tied("roberta.embeddings.word_embeddings.weight"),
    unneeded=(".position_ids",),
)
