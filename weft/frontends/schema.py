"""The spec language: a pydantic model per part. A YAML file and the Python builder both end as one `Model`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

from weft.errors import Path
from weft.frontends.blocks import Block
from weft.frontends.emit_yaml import emit
from weft.frontends.schema_values import (
    Activation,
    DtypePolicy,
    Formula,
    Init,
    InitRule,
    Inits,
    Name,
    Norm,
    NormRule,
    Number,
    Rate,
    RuntimeDim,
    Size,
    SpecPart,
    one_of,
    shape,
)


class SubLayerDefaults(SpecPart):
    """What every sub-layer does unless it says otherwise."""

    norm: Norm = Field(default="layer_norm", description="the sub-layer's normalisation")
    residual: Literal["pre", "post", "none"] = Field(
        default="pre", description="`pre`: x + f(norm(x)); `post`: norm(x + f(x)); `none`: f(norm(x))"
    )
    output_norm: Norm = Field(
        default="none",
        description="normalisation of f's output, before dropout and before it is added: x + output_norm(f(norm(x))) "
        "(Gemma 2), and with `norm: none` x + output_norm(f(x)) (OLMo 2)",
    )
    dropout: Rate = Field(default=0.0, description="on f's output, before it is added")
    residual_scale: Number = Field(
        default=1.0,
        description="factor on what the sub-layer leaves, before `norm` where that is behind it: `sqrt(1/2)` keeps the "
        "variance of x + f(x) (Gehring et al. 2017)",
    )


class SubLayer(SpecPart):
    """One step of a layer: a block, its norm and how it joins the residual stream."""

    block: Annotated[
        Annotated[Name, Tag("text")] | Annotated[Block, Tag("map")], one_of("the name of a block, or a block")
    ] = Field(description="a name from `blocks`, or a block written here")
    set: dict[Name, Any] = Field(default_factory=dict, description="keys of the named block to change here")
    norm: Norm | None = Field(default=None, description="default: from `sublayer`")
    residual: Literal["pre", "post", "none"] | None = Field(default=None, description="default: from `sublayer`")
    output_norm: Norm | None = Field(default=None, description="default: from `sublayer`")
    dropout: Rate | None = Field(default=None, description="default: from `sublayer`")
    residual_scale: Number | None = Field(default=None, description="default: from `sublayer`")


Step = Annotated[
    Annotated[Name, Tag("text")] | Annotated[SubLayer, Tag("map")], one_of("the name of a block, or a map with `block`")
]


class Parallel(SpecPart):
    """Sub-layers beside each other, which all read the same x: x + f(norm(x)) + g(norm(x)) (GPT-NeoX, Phi)."""

    parallel: list[Step] = Field(min_length=2, description="the sub-layers; each has `residual: pre`")
    norm: Norm | None = Field(
        default=None, description="one normalisation that all of them read; default: each has its own"
    )


def _form(value: Any) -> str:
    """The branch of what stands in a layer."""
    beside = isinstance(value, Parallel) or (isinstance(value, dict) and "parallel" in value)
    return "beside" if beside else shape(value)


Layer = Annotated[
    list[
        Annotated[
            Annotated[Name, Tag("text")] | Annotated[SubLayer, Tag("map")] | Annotated[Parallel, Tag("beside")],
            one_of("the name of a block, or a map with `block` or `parallel`", _form),
        ]
    ],
    Field(min_length=1),
]


class Stage(SpecPart):
    """Layers in a row on one stream: one layer repeated, or a cycle of different layers repeated."""

    stream: Name | None = Field(default=None, description="the stream it is on, where there are several")
    repeat: Size = Field(default=1, description="how many times the layer, or the whole cycle, is repeated")
    layer: Layer | None = Field(default=None, description="the layer: its sub-layers in order")
    cycle: list[Layer] | None = Field(
        default=None, min_length=1, description="several layers in turn, instead of `layer`"
    )
    name: Name = Field(default="layer", description="name of the block in the package")
    norm: Norm = Field(default="none", description="normalisation after the last of these layers")

    @model_validator(mode="after")
    def _one_form(self) -> Stage:
        if (self.layer is None) == (self.cycle is None):
            raise ValueError("give `layer` or `cycle`, one of the two")
        return self

    @property
    def layers(self) -> list[Layer]:
        """The cycle; of one layer when `layer` was given."""
        return self.cycle if self.cycle is not None else [self.layer or []]

    @property
    def placed(self) -> list[tuple[Path, Step]]:
        """The sub-layers of all of them, those beside each other too, and where each stands in the stage."""
        found: list[tuple[Path, Step]] = []
        for j, layer in enumerate(self.layers):
            at: Path = ("layer",) if self.cycle is None else ("cycle", j)
            for k, step in enumerate(layer):
                beside = enumerate(step.parallel) if isinstance(step, Parallel) else ()
                found += [((*at, k, "parallel", m), each) for m, each in beside]
                found += [((*at, k), step)] if not isinstance(step, Parallel) else []
        return found

    @property
    def steps(self) -> list[Step]:
        """The sub-layers of all of them."""
        return [step for _, step in self.placed]


class Position(SpecPart):
    """A learned table of positions, added to the embedding."""

    learned: Size = Field(description="rows of the table")
    index: Formula = Field(default="i", description="row for position `i`, e.g. `i // stride` or `i % stride`")


class Embed(SpecPart):
    """From token numbers to the residual stream: tables added up, then norm and dropout."""

    like: Name | None = Field(
        default=None, description="another stream, whose keys but `tied` hold where this one is silent"
    )
    tokens: Size = Field(default="vocab", description="rows of the token table")
    tied: Name | None = Field(default=None, description="another stream, whose token table this one uses")
    positions: list[Position] = Field(default_factory=list, description="position tables, all added")
    types: Size | None = Field(default=None, description="rows of a token type table; adds the input `types`")
    scale: Number | None = Field(
        default=None, description="factor on the token embedding: a number or a formula over dims"
    )
    norm: Norm = Field(default="none", description="normalisation of the sum")
    dropout: Rate = Field(default=0.0, description="on the result")


class RowContent(SpecPart):
    """What a row of the batch holds, where that is not one sequence from end to end."""

    documents: bool = Field(
        default=False,
        description="several documents, numbered by the input `segments`: neighbours of one number are a document, and "
        "each is computed as if it were alone",
    )
    padding: bool = Field(
        default=False,
        description="tokens that the input `valid` denies, before and behind the others, which are computed as if "
        "there were none",
    )
    positions: Literal["counted", "given"] = Field(
        default="counted",
        description="`counted`: from the first token of a row or document that is no padding; `given`: in the input "
        "`positions`",
    )

    @property
    def counts(self) -> bool:
        """Is a token's position not its place in the row, and not given either?"""
        return self.positions == "counted" and (self.documents or self.padding)


class Stream(SpecPart):
    """A sequence of its own length, with inputs of its own, such as an encoder's or a decoder's."""

    length: Name = Field(description="its length: a dim that is chosen at run time, of no other stream")
    once: bool = Field(default=False, description="read whole before decoding starts, as an encoder's input is")
    rows: RowContent = Field(default=RowContent(), description="what its rows hold")
    embed: Embed = Field(default=Embed(), description="its embedding")


class Memory(SpecPart):
    """What a segment of a sequence leaves to the next one: rows that later queries see as well. `forward` takes it and
    gives the next.

    `hidden` (Transformer-XL, Dai et al. 2019): rows of earlier segments. `tokens` (Recurrent Memory Transformer,
    Bulatov et al. 2022): as many memory tokens before those of a segment, which it reads, and the same again behind
    them, which it writes: they see all, nobody else sees them, and behind the last norm they are the next segment's.
    The first segment's are a parameter `embed.memory` [read width]. Tokens see the memory that is read and each other
    by the attention's `pattern`. Positions, rotary or `relative`, are those of the row, memory tokens included; tables
    of the embedding count tokens alone."""

    of: Literal["hidden", "tokens"] = Field(
        default="hidden",
        description="`hidden`: the rows that enter each attention, of which it makes keys and values anew; `tokens`: "
        "memory tokens",
    )
    keep: Size = Field(description="how many rows each attention keeps, the last ones; how many memory tokens")
    through: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=0,
        description="how many borders of segments a gradient goes through before one stops it: 0 stops it at each, "
        "and k makes one of every k + 1 segments, as the memory that is handed on counts",
    )
    written: bool | None = Field(
        default=None,
        description="`tokens`: whether a segment writes them for the next; `false`: each reads those of the parameter "
        "(Memory Transformer, Burtsev et al. 2020); default true",
    )
    sees: Literal["memory", "all"] | None = Field(
        default=None,
        description="`tokens`: what those that are read see: each other, or all tokens too, as in an encoder; default "
        "`memory`",
    )
    stream: Name | None = Field(default=None, description="the stream that has it, where there are several")

    @model_validator(mode="after")
    def _of_its_kind(self) -> Memory:
        for key in ("written", "sees"):
            if self.of == "hidden" and getattr(self, key) is not None:
                raise ValueError(f"`{key}` is of memory tokens: `of: tokens`")
        if self.written is False and self.through:
            raise ValueError("`through` is of a memory that is written, and this one is the same in each segment")
        return self

    @property
    def carried(self) -> bool:
        """Does a segment leave it to the next?"""
        return self.of == "hidden" or self.written is not False


class Transform(SpecPart):
    """A dense layer before the output matrix (BERT's masked language model)."""

    activation: Activation = "gelu"
    norm: Norm = Field(default="layer_norm", description="normalisation after the activation")


class LanguageHead(SpecPart):
    """Logits over the vocabulary at every position, and their cross-entropy with the input `targets`."""

    kind: Literal["language"] = "language"
    stream: Name | None = Field(default=None, description="the stream it reads, where there are several")
    vocab: Size = Field(default="vocab", description="number of classes")
    tied: bool = Field(default=False, description="use the token table of its stream as output matrix")
    bias: bool = Field(default=False, description="a bias on the logits")
    transform: Transform | None = Field(default=None, description="a dense layer first")
    scale: Number | None = Field(default=None, description="factor on the logits: a number or a formula over dims")
    softcap: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="bound on the logits, after scale and bias: softcap*tanh(logits/softcap) (Gemma 2)"
    )
    loss: Literal["cross_entropy"] = Field(default="cross_entropy", description="mean over the targets that count")
    ignore: int = Field(default=-100, description="the target that does not count; with none that counts the loss is 0")
    label_smoothing: Rate = Field(
        default=0.0, description="the share of a target that is spread evenly over the vocabulary, as in torch"
    )
    z_loss: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="weight of the mean squared log-sum-exp of the logits, a part of the loss (PaLM)"
    )


class ClassifyHead(SpecPart):
    """A pooled first position and logits over a few classes; cross-entropy with the input `labels`."""

    kind: Literal["classify"]
    stream: Name | None = Field(default=None, description="the stream it reads, where there are several")
    classes: Size = Field(description="number of classes")
    pool: Activation = "tanh"
    ignore: int = Field(default=-100, description="the label that does not count; with none that counts the loss is 0")


Head = Annotated[LanguageHead | ClassifyHead, Field(discriminator="kind")]


class Model(SpecPart):
    """A sequence model. `weft.Model(...)` is the builder; `to_yaml()` gives the spec file of the same model."""

    weft: Literal[1] = Field(default=1, description="version of the spec language")
    name: Name = Field(description="name of the model and of its package")
    about: str | None = Field(default=None, description="one sentence on what it is and where its shapes come from")
    extends: str | None = Field(default=None, description="another spec file whose keys hold where this one is silent")
    dims: dict[Name, Size] = Field(
        description="sizes by name; `batch`, `width` and `seq` (or the lengths of `streams`) always; expressions may "
        "use the others"
    )
    runtime: dict[Name, RuntimeDim] = Field(
        default_factory=dict, description="limits on the sizes chosen at run time: `batch` and the lengths"
    )
    dtype: DtypePolicy = Field(default=DtypePolicy(), description="dtype policy")
    blocks: dict[Name, Block] = Field(default_factory=dict, description="blocks by name, for `stack`")
    streams: dict[Name, Stream] = Field(
        default_factory=dict,
        description="sequences by name, where there are several; else one, of length `seq`",
    )
    rows: RowContent = Field(default=RowContent(), description="what a row holds, where there is one sequence")
    embed: Embed = Field(default=Embed(), description="the embedding, where there is one sequence")
    memory: Memory | None = Field(
        default=None, description="rows that one segment of a sequence leaves to the next, in every attention"
    )
    sublayer: SubLayerDefaults = Field(default=SubLayerDefaults(), description="defaults of every sub-layer")
    stack: list[Stage] = Field(min_length=1, description="the layers, stage after stage")
    norm: Norm = Field(default="none", description="normalisation after the last layer")
    head: Annotated[
        Annotated[Head, Tag("map")] | Annotated[list[Head], Field(min_length=1), Tag("list")],
        one_of("a head, or a list of heads"),
    ] = Field(default=LanguageHead(), description="the head, or a list of heads whose losses are added")
    init: Inits = Field(default=Inits(), description="initial values by role")
    small: dict[Name, Size] = Field(
        default_factory=dict, description="dims of a model that runs in about a second (`--small`)"
    )

    @field_validator("head", mode="before")
    @classmethod
    def _kind_of_head(cls, value: Any) -> Any:
        """`kind: language` may be left out; pydantic's tagged union needs it written."""
        named = [
            {"kind": "language"} | h if isinstance(h, dict) else h
            for h in (value if isinstance(value, list) else [value])
        ]
        return named if isinstance(value, list) else named[0]

    @field_validator("dims")
    @classmethod
    def _needed_dims(cls, dims: dict[str, Any]) -> dict[str, Any]:
        missing = [d for d in ("batch", "width") if d not in dims]
        if missing:
            raise PydanticCustomError("W0102", "missing {names}", {"names": ", ".join(missing)})
        return dims

    @property
    def sequences(self) -> dict[str, Stream]:
        """Every stream by name; a spec that names none has one, `seq`, of the length `seq`."""
        return self.streams or {"seq": Stream(length="seq", rows=self.rows, embed=self.embed)}

    @property
    def runtime_dims(self) -> tuple[str, ...]:
        """The dims whose sizes are chosen at run time."""
        return "batch", *(stream.length for stream in self.sequences.values())

    @property
    def heads(self) -> list[LanguageHead | ClassifyHead]:
        """The heads in order."""
        return self.head if isinstance(self.head, list) else [self.head]

    def to_yaml(self) -> str:
        """The spec file of this model: loading it gives an equal model. ValueError when a block is opaque."""
        if self.modules():
            raise ValueError("an opaque block wraps a Python module and has no YAML form")
        return emit({"weft": 1} | self.model_dump(exclude_unset=True, exclude_none=True))

    def modules(self) -> dict[str, Any]:
        """The modules of opaque blocks, by the key that the graph knows each by."""
        found = [b.wrapped for b in self.all_blocks() if b.wrapped is not None]
        unlike = [m for i, m in enumerate(found) if all(m is not other for other in found[:i])]
        return {f"module_{i}": module for i, module in enumerate(unlike)}

    def all_blocks(self) -> list[Any]:
        """Every block written in this model, named or in place."""
        steps = [s for stage in self.stack for s in stage.steps]
        return [
            *self.blocks.values(),
            *(s.block for s in steps if isinstance(s, SubLayer) and not isinstance(s.block, str)),
        ]


__all__ = [
    "ClassifyHead", "DtypePolicy", "Embed", "Head", "Init", "InitRule", "Inits", "LanguageHead", "Layer", "Memory",
    "Model", "Norm", "NormRule", "Parallel", "Position", "RowContent", "RuntimeDim", "SpecPart", "Stage", "Step",
    "Stream", "SubLayer", "SubLayerDefaults", "Transform",
]  # fmt: skip
