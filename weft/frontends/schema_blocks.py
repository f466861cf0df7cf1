"""The block kinds of a spec: what one sub-layer computes between its norm and its residual."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, Tag, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from weft.frontends.schema_values import Formula, Init, Name, Norm, Number, Part, Rate, Size, one_of

Activation = Annotated[
    Formula,
    Field(
        description="`gelu`, `gelu_tanh`, `gelu_sigmoid`, `relu`, `silu`, `tanh`, `sigmoid`, `none`, "
        "or a formula in `x` such as `max(x, 0)**2`"
    ),
]


class Rotary(Part):
    """Rotary positions on queries and keys (Su et al. 2021)."""

    base: float = Field(default=10000.0, gt=1, description="wavelength base")
    interleaved: bool = Field(default=False, description="rotate pairs (2i, 2i+1) instead of (i, i + half)")


class Globals(Part):
    """Longformer's global tokens: they see all and are seen by all; their rows have projections of their own.

    `rotary`, `scale` and `score` hold for these rows as for the others, and so do `valid` and `same_segment` where the
    pattern joins them to the rest by `and`."""

    tokens: Size = Field(description="how many leading positions are global")


class BlockPlan(Part):
    """A static set of key blocks for each query block, per head, counted with multiplicity (BigBird).

    It is made for the largest `seq`: a shorter run lacks the last blocks."""

    block: Size = Field(description="positions in a block")
    window: Annotated[int, Field(ge=1)] = Field(default=3, description="diagonal blocks a middle row sees; odd")
    random: Annotated[int, Field(ge=0)] = Field(
        default=3, description="random blocks a middle row sees besides window and global blocks"
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        default=0, description="seed of the drawn plan; the plan itself is kept in the package"
    )
    table: list[list[list[int]]] | None = Field(
        default=None, description="the random blocks given outright, `[head][middle row][...]`, instead of drawing them"
    )

    @field_validator("window")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("the window must be odd: it is centred on the diagonal")
        return value


class Attention(Part):
    """Multi-head attention: softmax over the keys that `pattern` allows."""

    kind: Literal["attention"] = "attention"
    heads: Size = Field(default="heads", description="query heads")
    kv_heads: Size | None = Field(
        default=None, description="key and value heads; a divisor of `heads`; default: as `heads`"
    )
    head: Size = Field(default="head", description="size of a query and key head")
    value: Size | None = Field(default=None, description="size of a value head; default: as `head`")
    pattern: Formula | None = Field(
        default=None,
        description="which keys k a query q sees: a predicate such as `causal and fixed(stride, summary)`, "
        "`0 <= q - k < 256`, `heads(window(stride), strided(stride))`",
    )
    plan: BlockPlan | None = Field(default=None, description="a block plan with multiplicity, instead of `pattern`")
    globals: Globals | None = Field(default=None, description="global tokens with their own projections (Longformer)")
    rotary: Annotated[
        Annotated[bool, Tag("flag")] | Annotated[Rotary, Tag("map")], one_of("`true`, `false`, or a map with `base`")
    ] = Field(default=False, description="rotary positions on queries and keys")
    scale: Number = Field(
        default="1/sqrt(head)", description="factor on q·k: a number, of any sign, or a formula over dims"
    )
    score: Number = Field(
        default="s",
        description="score after scaling: a formula in `s`, `q`, `k`, `h` and dims, e.g. `30*tanh(s/30)`; it may be "
        "anything, even undefined, where the pattern hides a key",
    )
    bias: Annotated[
        Annotated[bool, Tag("flag")] | Annotated[list[Literal["query", "key", "value", "output"]], Tag("list")],
        one_of("`true`, `false`, or a list of query, key, value, output"),
    ] = Field(default=True, description="which projections have a bias: all, none, or a list")

    @model_validator(mode="after")
    def _one_pattern(self) -> Attention:
        if (self.pattern is None) == (self.plan is None):
            raise ValueError("give `pattern` or `plan`, one of the two")
        if self.globals and (self.plan or self.kv_heads):
            raise ValueError("`globals` goes with a `pattern` and without `kv_heads`")
        return self


class Mlp(Part):
    """Position-wise feed-forward: down(activation(up(x))), or down(activation(gate(x)) * up(x)) when gated."""

    called = "MLP"
    kind: Literal["mlp"] = "mlp"
    inner: Size = Field(default="inner", description="hidden size")
    activation: Activation = "gelu"
    gated: bool = Field(default=False, description="a second matrix, multiplied in: GEGLU, SwiGLU")
    bias: bool = Field(default=True, description="biases on every matrix")


class CellAttention(Part):
    """Attention inside the projection of a recurrence, at low rank (SRU++, Lei 2021)."""

    rank: Size = Field(description="size of the shared low-rank projection")
    heads: Size = Field(default=1, description="heads the rank is divided into")
    pattern: Formula = Field(
        default="causal", description="which keys a query sees; `none`: no attention, only the rank"
    )
    alpha: float = Field(default=0.0, description="initial factor on the attention's output (ReZero: 0)")
    norm: Norm = Field(default="layer_norm", description="normalisation before the last projection")
    dropout: Rate = Field(default=0.0, description="before the last projection")


class Recurrence(Part):
    """A recurrent cell written as formulas, run along `seq` for every channel by itself.

    In a formula: the cell's states (their value before this step), `inputs`, `parameters`, earlier lets, and `x`, the
    block's own input at this channel, and `mask`, 1 or what `dropout` makes of it. In `output` also `next(h)`, the
    value of the state `h` after this step; an output of `h` alone lags by one position, and `weft check` warns of it.
    """

    kind: Literal["recurrence"] = "recurrence"
    inputs: list[Name] = Field(description="names of the projected inputs; each has a matrix from the layer's input")
    state: dict[Name, float] = Field(description="the cell's states and their first values")
    parameters: dict[Name, Init] = Field(default_factory=dict, description="one number per channel each, and its rule")
    let: dict[Name, Formula] = Field(default_factory=dict, description="named steps, in order")
    update: dict[Name, Formula] = Field(description="each state's next value")
    output: Formula = Field(description="the cell's output, such as `next(h)`")
    dropout: Rate = Field(
        default=0.0, description="of `mask`: one draw for each sequence and channel, shared along `seq`"
    )
    projection: Annotated[
        Annotated[Literal["linear"], Tag("text")] | Annotated[CellAttention, Tag("map")],
        one_of("`linear`, or a map with `rank`"),
    ] = Field(
        default="linear",
        description="how inputs come from the layer's input: one matrix each, or through low-rank attention",
    )
    init: dict[Literal["down", "key_value", "up"], Init] = Field(
        default_factory=dict, description="rules for the projection's matrices; default as `weight`"
    )

    @model_validator(mode="after")
    def _complete(self) -> Recurrence:
        if set(self.update) != set(self.state):
            raise ValueError("`update` must give the next value of each state, and of nothing else")
        names = ["x", "mask", *self.inputs, *self.state, *self.parameters, *self.let]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)}: a name may stand for one thing only")
        return self


class Moe(Part):
    """Routed experts: each token goes to its `top_k` best experts, up to their capacity (Fedus et al. 2021).

    A capacity that no sequence can exceed (`seq`, or as large a factor) drops nothing: then tokens are not laid into
    slots, and experts compute on as many as they were sent. `seq` in a capacity is the run's length; `prefill` and
    `step`, which do not know how long the run will be, keep to the capacity of the longest one."""

    called = "MoE"
    kind: Literal["moe"] = "moe"
    experts: Size = Field(default="experts", description="number of experts")
    top_k: Annotated[int, Field(ge=1)] = Field(default=1, description="experts per token; ties go to the lower index")
    capacity: Size | None = Field(
        default=None, description="tokens an expert takes from one sequence, at least 1; what is over is dropped"
    )
    capacity_factor: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="capacity as a multiple of `top_k * seq / experts`, rounded up; instead of `capacity`"
    )
    inner: Size = Field(default="inner", description="hidden size of an expert")
    activation: Activation = "gelu"
    gated: bool = Field(default=False, description="a second matrix, multiplied in")
    bias: bool = Field(default=False, description="biases on the experts' matrices")
    normalize: bool = Field(default=False, description="gates of a token's experts sum to 1")
    aux_loss: Annotated[float, Field(ge=0)] = Field(default=0.01, description="weight of the load-balancing loss")

    @model_validator(mode="after")
    def _one_capacity(self) -> Moe:
        if (self.capacity is None) == (self.capacity_factor is None):
            raise ValueError("give `capacity` or `capacity_factor`, one of the two")
        return self


class Opaque(Part):
    """Any `torch.nn.Module` as a block, planned around and never looked into. Python builder only."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    positional = ("module", "signature")

    kind: Literal["opaque"] = "opaque"
    module: SkipJsonSchema[Any] = Field(
        default=None, validate_default=True, description="the module: one tensor in, one tensor out"
    )
    signature: str = Field(
        default="batch seq width -> batch seq width", description="dims of the input and of the output"
    )

    if TYPE_CHECKING:

        def __init__(self, module: Any, signature: str = "batch seq width -> batch seq width") -> None: ...

    @field_validator("module")
    @classmethod
    def _is_module(cls, value: Any) -> Any:
        if not (callable(value) and hasattr(value, "named_parameters")):
            raise ValueError("an opaque block wraps a torch.nn.Module: only the Python builder can make one")
        return value


Block = Annotated[Attention | Mlp | Recurrence | Moe | Opaque, Field(discriminator="kind")]

__all__ = [
    "Activation", "Attention", "Block", "BlockPlan", "CellAttention", "Globals", "Mlp", "Moe", "Opaque", "Recurrence",
    "Rotary",
]  # fmt: skip
