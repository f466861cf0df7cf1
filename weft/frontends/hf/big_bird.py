"""BigBird (Zaheer et al. 2020): BERT whose attention is a window, two global blocks and blocks that were drawn.

transformers draws blocks while it trains; where it evaluates, every drawn block is the first, counted as often as it is
drawn. That is the function of a checkpoint, and what an import writes."""

from weft.errors import SpecError
from weft.frontends.hf import bert
from weft.frontends.hf.config.family import Architecture, ModelFamily, Spec, Values
from weft.frontends.hf.config.options import choice, flag, size, whole
from weft.frontends.hf.tensors.weights import linear

MOST = 8192
OPTIONS = bert.OPTIONS | {
    "vocab_size": size(50358),
    "hidden_act": bert.activation("gelu_new"),
    "max_position_embeddings": size(4096),
    "attention_type": choice({"block_sparse": True, "original_full": False}, "block_sparse"),
    "block_size": size(64),
    "num_random_blocks": whole(3),
    "use_bias": flag(True),
    "rescale_embeddings": flag(False),
}


def spec(c: Values) -> Spec:
    seq, block, drawn = c["max_position_embeddings"], c["block_size"], c["num_random_blocks"]
    sparse = c["attention_type"] and seq > (5 + 2 * drawn) * block  # a shorter one transformers runs in full
    more = {"block": block} if sparse else {}
    sizes = bert.sizes_of(c, seq, types=c["type_vocab_size"], **more)
    rows = max(0, -(-seq // block) - 2)
    if rows * drawn > MOST:
        message = f"{rows} blocks with {drawn} drawn for each are more than {MOST:,}, which a spec lists one by one"
        raise SpecError.at(("num_random_blocks",), "W0106", message, "make block_size larger")
    plan = {"block": "block", "window": 3, "random": drawn, "table": [[[0] * drawn] * rows]}
    attention: Spec = {"plan": plan} if sparse else {"pattern": "all"}
    attention |= {} if c["use_bias"] else {"bias": ["output"]}
    embed = {"positions": [{"learned": "seq"}], "types": "types"}
    embed |= {"scale": "sqrt(width)"} if c["rescale_embeddings"] else {}
    next_sentence = {"kind": "classify", "classes": 2, "pool": "tanh"}
    heads = [bert.language(c), *([next_sentence] if c["architecture"] == "BigBirdForPreTraining" else [])]
    made = bert.encoder("big_bird", "BigBird (Zaheer et al. 2020)", c, sizes, attention, embed, heads)
    return made | {"small": made["small"] | {"seq": seq}} if sparse else made


BIG_BIRD = ModelFamily(
    name="big_bird",
    architectures={
        "BigBirdForMaskedLM": Architecture(bert.PREDICTIONS, unneeded=("bert.pooler.", "cls.seq_relationship.")),
        "BigBirdForPreTraining": Architecture(
            (
                *bert.PREDICTIONS,
                *linear("classify.pool", "bert.pooler"),
                *linear("classify.classes", "cls.seq_relationship"),
            )
        ),
    },
    options=OPTIONS,
    spec=spec,
    rows=(*bert.embedding("bert.embeddings"), *bert.layer("bert.encoder.layer.{}")),
    prefix="bert.",
    divides=bert.DIVIDES,
    renamed=bert.RENAMED,
    tied=bert.TIED,
    unneeded=(".position_ids",),
)
