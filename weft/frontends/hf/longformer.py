"""Longformer (Beltagy et al. 2020): RoBERTa with a window a layer, and global tokens with projections of their own.

How many leading tokens are global is an input of transformers and a size of the spec: here one, the first."""

from itertools import groupby

from weft.errors import SpecError
from weft.frontends.hf import bert, roberta
from weft.frontends.hf.config.family import Architecture, ModelFamily, Spec, Values
from weft.frontends.hf.config.options import only, sizes
from weft.frontends.hf.tensors.weights import linear

OPTIONS = roberta.OPTIONS | {
    "vocab_size": bert.size(30522),
    "attention_window": sizes(512, even=True),
    "onnx_export": only(False, "an export of another kind"),
}


def spec(c: Values) -> Spec:
    seq, tables, more = roberta.embed(c)
    heads = [bert.language(c)] if c["architecture"] == "LongformerForMaskedLM" else [bert.classes(c)]
    many = c["num_hidden_layers"]
    windows = c["attention_window"] * many if len(c["attention_window"]) == 1 else c["attention_window"]
    if len(windows) != many:
        message = f"attention_window names {len(windows)} layers, and num_hidden_layers is {many}"
        raise SpecError.at(("attention_window",), "W0402", message, "name every layer once, or give one number")
    runs = [(reach, len([*same])) for reach, same in groupby(w // 2 for w in windows)]
    reach = {"reach": runs[0][0]} if len(runs) == 1 else {}
    dims = bert.sizes_of(c, seq, globals=1, **reach, **more)
    attention = {"pattern": band("reach" if reach else runs[0][0]), "globals": {"tokens": "globals"}}
    made = bert.encoder("longformer", "Longformer (Beltagy et al. 2020)", c, dims, attention, tables, heads)
    if len(runs) > 1:
        made["stack"] = [
            {"repeat": n, "layer": [{"block": "attention", "set": {"pattern": band(w)}}, "feedforward"]}
            for w, n in runs
        ]
        del made["small"]["layers"], dims["layers"]
    return made


def band(reach: int | str) -> str:
    """The keys to each side."""
    return f"band({reach}, {reach})"


LONGFORMER = ModelFamily(
    name="longformer",
    architectures={
        "LongformerForMaskedLM": Architecture(roberta.HEAD, unneeded=("longformer.pooler.",)),
        "LongformerForSequenceClassification": Architecture(roberta.CLASSIFIER, unneeded=("longformer.pooler.",)),
    },
    options=OPTIONS,
    spec=spec,
    rows=(
        *roberta.tables("longformer.embeddings"),
        *bert.layer("longformer.encoder.layer.{}"),
        *(
            row
            for part in ("query", "key", "value")
            for row in linear(
                f"layers.{{}}.attention.{part}_global", f"longformer.encoder.layer.{{}}.attention.self.{part}_global"
            )
        ),
    ),
    prefix="longformer.",
    ignored=frozenset({"attention_mode", "ignore_attention_mask"}),
    divides=bert.DIVIDES,
    renamed=bert.RENAMED,
    tied=roberta.tied("longformer.embeddings.word_embeddings.weight"),
    unneeded=(".position_ids",),
)
