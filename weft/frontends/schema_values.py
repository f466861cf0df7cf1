"""The small values of a spec: sizes, formulas, initialisations, norms. Shared by every other part of the schema."""

from __future__ import annotations

import keyword
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from weft.errors import SpecError
from weft.frontends.validation import problems_of


class _Called(type(BaseModel)):
    """A part made by a call tells what is wrong in the words of a spec: a SpecError with all of it, or a TypeError."""

    called: str
    positional: tuple[str, ...]
    model_fields: dict[str, Any]

    def __call__(cls, *args: Any, **given: Any) -> Any:
        name = cls.called or cls.__name__
        if len(args) > len(cls.positional):
            keys = ", ".join(f"{key}=..." for key in cls.model_fields if key != "kind")
            raise TypeError(f"{name} takes its keys by name: {keys}")
        given = dict(zip(cls.positional, args)) | given
        try:
            return super().__call__(**given)
        except ValidationError as error:
            raise SpecError(problems_of(error, given, cls, (name,))) from None


class SpecPart(BaseModel, metaclass=_Called):
    """Base of every part of a spec: unknown keys are errors, values are not converted, nothing changes once checked."""

    called: ClassVar[str] = ""
    """Its name in `weft`, where it has another there."""
    positional: ClassVar[tuple[str, ...]] = ()
    """Keys that a call may give without their names."""
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def model_post_init(self, context: Any) -> None:
        """A part that names its kind always writes it, whether or not it was given."""
        if "kind" in type(self).model_fields:
            self.__pydantic_fields_set__.add("kind")


def shape(value: Any) -> str:
    """The form a value was written in; unions choose their branch by it, so that a bad value is one error."""
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, int | float):
        return "number"
    return {str: "text", list: "list"}.get(type(value), "map")


def one_of(expected: str, form: Callable[[Any], str] = shape) -> Discriminator:
    """Choose the branch of a union by its form; `expected` says what may stand here."""
    return Discriminator(form, custom_error_type="form", custom_error_message=f"expected {expected}")


def not_a_keyword(name: str) -> str:
    """Names become parts of state_dict keys and of file names; a keyword there only confuses."""
    if keyword.iskeyword(name):
        raise PydanticCustomError("W0107", "'{name}' is a word of Python's own, not a name", {"name": name})
    return name


Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=40), AfterValidator(not_a_keyword)]
Size = Annotated[
    Annotated[int, Field(ge=1), Tag("number")]
    | Annotated[str, StringConstraints(min_length=1, max_length=200), Tag("text")],
    one_of("a whole number, a dim, or an expression over dims such as `4*width`"),
]
Formula = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
Number = Annotated[Annotated[float, Tag("number")] | Annotated[Formula, Tag("text")], one_of("a number or a formula")]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
Activation = Annotated[
    Formula,
    Field(
        description="`gelu`, `gelu_tanh`, `gelu_sigmoid`, `relu`, `silu`, `tanh`, `sigmoid`, `none`, "
        "or a formula in `x` such as `max(x, 0)**2`"
    ),
]


class NormRule(SpecPart):
    """A normalisation over `width`, when its name alone does not say enough."""

    kind: Literal["layer_norm", "rms_norm"] = Field(description="`layer_norm` or `rms_norm`")
    eps: float | None = Field(
        default=None, gt=0, description="added to the variance; default 1e-5 (`layer_norm`) or 1e-6 (`rms_norm`)"
    )
    bias: bool = Field(default=True, description="`layer_norm` only: whether it adds a bias")
    offset: float = Field(
        default=0.0,
        description="added to the weight, such as 1 for gains of 1 + weight (Gemma); weights then start at 1 - offset "
        "where `init.norm` says nothing else",
    )


Norm = Annotated[
    Annotated[Literal["layer_norm", "rms_norm", "none"], Tag("text")] | Annotated[NormRule, Tag("map")],
    one_of("`layer_norm`, `rms_norm`, `none`, or a map with `kind`"),
]


class InitRule(SpecPart):
    """One rule for initial values; exactly one key. A formula may use dims, `fan_in` and `fan_out`."""

    normal: Number | None = Field(default=None, description="normal, mean 0, with this standard deviation")
    uniform: Number | None = Field(default=None, description="uniform between minus and plus this bound")
    xavier: Number | None = Field(default=None, description="Xavier uniform with this gain")
    constant: Number | None = Field(default=None, description="every entry is this number")

    @model_validator(mode="after")
    def _one_rule(self) -> InitRule:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("give exactly one of normal, uniform, xavier, constant")
        return self


Init = Annotated[
    Annotated[Literal["zeros", "ones"], Tag("text")] | Annotated[InitRule, Tag("map")],
    one_of("`zeros`, `ones`, or a map such as `{normal: 0.02}`"),
]


class Rates(SpecPart):
    """What an optimizer takes for parameters in place of its own numbers; see `parameter_groups` of the module."""

    lr: Annotated[float, Field(ge=0)] | None = Field(default=None, description="the learning rate")
    weight_decay: Annotated[float, Field(ge=0)] | None = Field(default=None, description="the weight decay")

    @property
    def given(self) -> tuple[tuple[str, float], ...]:
        """Those that are, by name."""
        return tuple(self.model_dump(exclude_none=True).items())


class Inits(SpecPart):
    """Initial values by the role of a parameter. `output` is a projection back into the residual stream."""

    weight: Init = Field(default=InitRule(normal=0.02), description="matrices without a rule of their own")
    output: Init | None = Field(
        default=None, description="last matrix of a block, written to the residual stream; default as `weight`"
    )
    embedding: Init | None = Field(default=None, description="token and type tables; default as `weight`")
    position: Init | None = Field(default=None, description="position tables; default as `embedding`")
    head: Init | None = Field(default=None, description="untied output matrix; default as `weight`")
    router: Init | None = Field(default=None, description="router of a `moe` block; default as `weight`")
    experts: Init | None = Field(
        default=None, description="expert matrices of a `moe` block; default as `weight`, their last one as `output`"
    )
    bias: Init = Field(default="zeros", description="biases")
    norm: Init = Field(default="ones", description="gains of normalisations")


class DtypePolicy(SpecPart):
    """Which dtype where. Statistics, softmax, router and cell state are cast to `accumulate` in the graph."""

    params: Literal["f16", "bf16", "f32", "f64"] = Field(default="f32", description="stored parameters")
    compute: Literal["f16", "bf16", "f32", "f64"] = Field(default="f32", description="activations and matrix products")
    accumulate: Literal["f32", "f64"] = Field(
        default="f32", description="statistics, softmax, router, cell state, loss"
    )


class RuntimeDim(SpecPart):
    """A dim whose size is chosen at run time; only `batch` and `seq` may be."""

    max: Size | None = Field(default=None, description="largest size accepted; default: its value in `dims`")
    align: Size = Field(default=1, description="sizes must be multiples of this")
