"""Options of every architecture, with their defaults: each stands here and nowhere else.

Torch-free, so that a grid is checked before anything expensive starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from msvit.neuron_kinds import (
    DEFAULT_ALPHA,
    GLIF_HIGHEST_THRESHOLD,
    OPTIONS_READ,
    PER_TIMESTEP,
    NeuronName,
    SurrogateName,
    TwinName,
    across_steps,
)
from msvit.options import Options, later

Count = Annotated[int, Field(ge=1, le=65536)]
Positive = Annotated[float, Field(gt=0, le=1e6)]
Scale = Annotated[int, Field(ge=1, le=255)]
Layout = Literal["cifar", "imagenet", "events"]


class ModelOptions(Options):
    """Options that every model has. Units: pixels, channels, time steps."""

    takes_other_sizes: ClassVar[bool] = True
    """Whether a model that was trained at its ``image_size`` can be tested at another."""

    num_classes: Count = 10
    in_channels: Count = 3
    image_size: Count = 32
    timesteps: Annotated[int, Field(ge=1, le=1024)] = 4
    dim: Count = 384
    depths: tuple[Count, ...] = (4,)
    heads: Count = 8
    mlp_ratio: Positive = 4.0
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @classmethod
    def idle(cls, values: Mapping[str, Any]) -> dict[str, str]:
        if sum(values["depths"]) == 1:
            return {"drop_path": "the first block is never left out, and there is no other"}
        return {}


_NEURON_OPTIONS = (
    *("tau", "threshold", "attn_threshold"),
    *("surrogate", "surrogate_alpha", "hard_reset", "detach_reset"),
)


class SpikingOptions(ModelOptions):
    """Options of the neurons: names are spikingjelly's, ``tau`` counts time steps.

    ``surrogate_alpha`` is the slope of the surrogate; unset, spikingjelly's default. Which of them
    a kind of neuron has, :mod:`msvit.neuron_kinds` tells; the others are lacking.
    """

    neuron: NeuronName = "lif"
    tau: Annotated[float, Field(gt=1, le=1e6)] = 2.0
    threshold: Positive = 1.0
    attn_threshold: Positive = 0.5
    surrogate: SurrogateName = "sigmoid"
    surrogate_alpha: Positive | None = None
    hard_reset: bool = True
    detach_reset: bool = True

    @classmethod
    def lacking(cls, values: Mapping[str, Any]) -> dict[str, str]:
        neuron = values["neuron"]
        read = OPTIONS_READ.get(neuron, _NEURON_OPTIONS)
        has = [o for o in _NEURON_OPTIONS if o.removeprefix("attn_") in read]
        why = f"the neuron {neuron!r} has no such option; it has {', '.join(has)}"
        return {option: why for option in _NEURON_OPTIONS if option not in has}

    @classmethod
    def idle(cls, values: Mapping[str, Any]) -> dict[str, str]:
        found = super().idle(values)
        if values["timesteps"] == 1 and not values.get("batch_coupled"):
            why = "it acts from one time step to the next, and there is one only"
            found |= dict.fromkeys(across_steps(values["neuron"]), why)
        return found

    def _restated(self) -> dict[str, Any]:
        usual = self.surrogate_alpha == DEFAULT_ALPHA[self.surrogate]
        return {"surrogate_alpha": None} if usual else {}

    @model_validator(mode="after")
    def _check_neuron(self) -> SpikingOptions:
        for option in ("threshold", "attn_threshold"):
            value = getattr(self, option)
            if self.neuron == "glif" and value > GLIF_HIGHEST_THRESHOLD:
                raise ValueError(
                    f"{option}: that of a 'glif' is at most {GLIF_HIGHEST_THRESHOLD} (got {value})"
                )
        return self


class TwinOptions(SpikingOptions):
    """Of architectures that have twins: the same structure in one time step, without spikes.

    ``twin`` puts a ReLU (``ann``) or a quantiser in place of each neuron; that of ``quantised`` has
    ⌈log₂(T + 1)⌉ bits, T being ``twin_of_timesteps``, those of the network whose twin it is.
    """

    twin: TwinName = later("none")
    twin_of_timesteps: int = later(4, ge=1, le=1024)

    @classmethod
    def lacking(cls, values: Mapping[str, Any]) -> dict[str, str]:
        twin = values["twin"]
        found = super().lacking(values)
        if twin != "none":
            why = f"the twin {twin!r} has no neurons"
            found |= dict.fromkeys(("neuron", *_NEURON_OPTIONS), why)
        if twin != "quantised":
            found["twin_of_timesteps"] = "it tells the bits of the twin 'quantised'"
        return found

    @model_validator(mode="after")
    def _check_twin(self) -> TwinOptions:
        if self.twin != "none" and self.timesteps != 1:
            raise ValueError(f"timesteps: a twin has 1 time step, not {self.timesteps}")
        return self


def check_heads(dim: int, heads: int, what: str = "dim") -> None:
    if dim % heads:
        raise ValueError(f"heads: {what} {dim} cannot be split into {heads} heads")


def check_image(image_size: int, stride: int) -> None:
    if image_size % stride:
        raise ValueError(
            f"image_size: {image_size} is no multiple of {stride}, by which the stages shrink it"
        )


class StagedOptions(SpikingOptions):
    """Stages of growing width: ``widths`` are their widths as fractions of ``dim``.

    ``layout`` is the published stem for a kind of data, which keeps the resolution or divides
    it by 4 (ImageNet) or 8 (events); every later stage halves it.
    """

    layout: Layout = "cifar"
    depths: tuple[Count, ...] = (1, 1, 2)
    widths: tuple[Annotated[float, Field(gt=0, le=4)], ...] = (0.25, 0.5, 1.0)

    @property
    def stage_dims(self) -> list[int]:
        return [round(self.dim * w) for w in self.widths]

    @property
    def headed_dims(self) -> list[int]:
        """Widths of the stages whose attention has heads."""
        return self.stage_dims

    @model_validator(mode="after")
    def _check_geometry(self) -> StagedOptions:
        if len(self.depths) != len(self.widths):
            raise ValueError(
                f"depths: {len(self.depths)} stages, but widths names {len(self.widths)}"
            )
        divisor = 8 if self.layout == "events" else 2
        for width, dim in zip(self.widths, self.stage_dims, strict=True):
            if dim != self.dim * width or dim % divisor:
                raise ValueError(
                    f"widths: {width} of dim {self.dim} gives {self.dim * width:g} channels, "
                    f"and a stage needs a multiple of {divisor}"
                )
        for dim in self.headed_dims:
            check_heads(dim, self.heads, "a stage of width")
        first = {"cifar": 1, "imagenet": 4, "events": 8}[self.layout]
        check_image(self.image_size, first * 2 ** (len(self.depths) - 1))
        return self


class HierarchicalOptions(StagedOptions, TwinOptions):
    """Token attention in early stages, self-attention in the last one.

    ``batch_coupled`` reproduces the released code, whose self-attention lets membrane
    potential pass from one image of the batch to the next.
    """

    batch_coupled: bool = False

    @classmethod
    def lacking(cls, values: Mapping[str, Any]) -> dict[str, str]:
        found = super().lacking(values)
        if values["twin"] != "none":
            found["batch_coupled"] = "a twin has no potential that could pass to another image"
        return found

    @model_validator(mode="after")
    def _check_coupling(self) -> HierarchicalOptions:
        if self.batch_coupled and self.neuron in PER_TIMESTEP:
            raise ValueError(
                f"batch_coupled: a {self.neuron!r} has parameters for {self.timesteps} time steps, "
                "and potential that passes through a batch takes more of them"
            )
        return self


class QKFormerOptions(HierarchicalOptions):
    pass


class MSVITOptions(HierarchicalOptions):
    """MSVIT's ablation axes; :class:`msvit.layers.attention.TokenAttention` explains them.

    ``stages`` lists the stages (from 1) that carry multi-scale attention. An early stage that
    is not listed has token attention with the first scale only, the last one self-attention.
    """

    widths: tuple[Annotated[float, Field(gt=0, le=4)], ...] = (0.5, 0.5, 1.0)
    scales: Annotated[tuple[Scale, ...], Field(min_length=1, max_length=16)] = (1, 3)
    fusion: Literal["token", "token_channel"] = "token"
    branch_kernel: Literal["1d", "2d"] = "1d"
    projections: Literal["separate", "shared"] = "separate"
    stages: tuple[Count, ...] = (1, 2)

    @classmethod
    def idle(cls, values: Mapping[str, Any]) -> dict[str, str]:
        last, stages, scales = len(values["depths"]), values["stages"], values["scales"]
        found = super().idle(values)
        if last in stages:
            found["batch_coupled"] = "there is no self-attention, whose neuron it couples"
        if not stages:
            scales = scales[:1]
        if last == 1 and not stages:
            why = "there is no token attention"
            return found | dict.fromkeys(("scales", "fusion", "branch_kernel", "projections"), why)
        if len(scales) == 1:
            found["fusion"] = "one scale is all there is, and nothing to be joined"
        if all(scale == 1 for scale in scales):
            found["branch_kernel"] = "a kernel of 1 sees the same in one dimension and in two"
        if tuple(scales) == (1,):
            found["projections"] = "there is one projection, whoever shares it"
        return found

    @field_validator("stages")
    @classmethod
    def _in_order(cls, stages: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(stages)))

    def _restated(self) -> dict[str, Any]:
        found = super()._restated()
        if not self.stages and len(self.depths) > 1:  # only the first scale is there
            usual = type(self).model_fields["scales"].default
            same = self.scales[0] == usual[0]
            found["scales"] = usual if same else self.scales[:1]
        return found

    @model_validator(mode="after")
    def _check_scales(self) -> MSVITOptions:
        even = [s for s in self.scales if s % 2 == 0]
        if even:
            near = ", ".join(str(s + 1) for s in even)
            raise ValueError(f"scales: kernel sizes are odd, not {even[0]} (nearest: {near})")
        self._check_reach()
        outside = [s for s in self.stages if s > len(self.depths)]
        if outside:
            raise ValueError(
                f"stages: there is no stage {outside[0]}, only 1 to {len(self.depths)}"
            )
        return self

    def _check_reach(self) -> None:
        """A kernel reaches at most from one end of the first stage's tokens to the other."""
        side = self.image_size // {"cifar": 1, "imagenet": 4, "events": 8}[self.layout]
        most = 2 * (side if self.branch_kernel == "2d" else side**2) - 1
        if max(self.scales) > most:
            raise ValueError(
                f"scales: a kernel of {max(self.scales)} is wider than the tokens of stage 1 "
                f"reach (at most {most} on {self.image_size} pixels)"
            )


class ColumnarOptions(SpikingOptions):
    """A stem of four units that shrinks the image, then blocks of one width.

    ``pools`` tells which of the stem's units pool (each halves the image).
    """

    pools: Annotated[tuple[bool, ...], Field(min_length=4, max_length=4)] = (
        False,
        False,
        True,
        True,
    )

    @property
    def depth(self) -> int:
        return sum(self.depths)

    @model_validator(mode="after")
    def _check_geometry(self) -> ColumnarOptions:
        if self.dim % 8:
            raise ValueError(f"dim: the stem needs a multiple of 8, not {self.dim}")
        if "heads" not in self.idle(self.__dict__):
            check_heads(self.dim, self.heads)
        check_image(self.image_size, prod(2 for pool in self.pools if pool))
        return self


class SpikformerOptions(ColumnarOptions, TwinOptions):
    """``qkv_bias`` is set in the released CIFAR code and unset in the ImageNet one."""

    heads: Count = 12
    attn_scale: Positive = 0.125
    qkv_bias: bool = True


class SpikingformerOptions(ColumnarOptions):
    """``heads`` is 12 in the released CIFAR-10 code, 8 in the CIFAR-100 and ImageNet ones."""

    heads: Count = 12
    attn_scale: Positive = 0.125


class SDTOptions(ColumnarOptions):
    """``attn_pool`` spreads the spikes of the attention, as the released code does on CIFAR10-DVS.

    The attention works channel by channel: ``heads`` matters only where spikes are spread.
    """

    dim: Count = 512
    depths: tuple[Count, ...] = (2,)
    attn_pool: bool = False

    @classmethod
    def idle(cls, values: Mapping[str, Any]) -> dict[str, str]:
        found = super().idle(values)
        if not values["attn_pool"]:
            found["heads"] = "attention works channel by channel (attn_pool false)"
        return found


class SpikingResformerOptions(SpikingOptions):
    """Three stages of widths ``first_dim``, half of ``dim``, and ``dim``.

    ``heads`` are those of the last stage; heads have the same width in every stage.
    ``group_size`` is the number of channels of a group in the group-wise feed-forward part.
    """

    layout: Literal["cifar", "imagenet"] = "cifar"
    first_dim: Count = 64
    depths: Annotated[tuple[Count, ...], Field(min_length=3, max_length=3)] = (1, 2, 3)
    heads: Count = 6
    group_size: Count = 64
    attn_threshold: Positive = 1.0
    surrogate: SurrogateName = "atan"

    @property
    def stage_dims(self) -> list[int]:
        return [self.first_dim, self.dim // 2, self.dim]

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @model_validator(mode="after")
    def _check_geometry(self) -> SpikingResformerOptions:
        check_heads(self.dim, self.heads)
        for dim in self.stage_dims:
            if dim % self.head_dim:
                raise ValueError(
                    f"heads: {self.heads} heads give them {self.head_dim} channels, "
                    f"into which a stage of width {dim} cannot be split"
                )
            inner = round(dim * self.mlp_ratio)
            if inner % self.group_size:
                raise ValueError(
                    f"group_size: {inner} channels (mlp_ratio {self.mlp_ratio:g} of width {dim}) "
                    f"cannot be split into groups of {self.group_size}"
                )
        check_image(self.image_size, 4 * (4 if self.layout == "imagenet" else 1))
        return self


class MaxFormerOptions(StagedOptions):
    """``mixers`` names what mixes the tokens of each stage.

    ``"dwc3"``, ``"dwc5"`` and ``"dwc7"`` are depthwise convolutions of that size,
    ``"identity"`` is nothing, ``"attention"`` is spiking self-attention.
    """

    mixers: tuple[Literal["identity", "dwc3", "dwc5", "dwc7", "attention"], ...] = (
        "identity",
        "dwc3",
        "attention",
    )

    @classmethod
    def idle(cls, values: Mapping[str, Any]) -> dict[str, str]:
        found = super().idle(values)
        if "attention" not in values["mixers"]:
            found |= dict.fromkeys(("heads", "attn_threshold"), "no stage has attention")
        return found

    @property
    def headed_dims(self) -> list[int]:
        # Not strict: a wrong number of mixers is reported below.
        return [
            dim
            for dim, mixer in zip(self.stage_dims, self.mixers, strict=False)
            if mixer == "attention"
        ]

    @model_validator(mode="after")
    def _check_mixers(self) -> MaxFormerOptions:
        if len(self.mixers) != len(self.depths):
            raise ValueError(
                f"mixers: {len(self.mixers)} named for {len(self.depths)} stages of depths"
            )
        return self


class MetaSpikeFormerOptions(SpikingOptions):
    """Five stages of widths dim/8, dim/4, dim/2, ``dim`` and ``last_dim`` (unset: 5/4 of dim).

    The first three are convolution blocks, the last two have attention.
    """

    depths: Annotated[tuple[Count, ...], Field(min_length=5, max_length=5)] = (1, 1, 2, 6, 2)
    last_dim: Count | None = None
    attn_scale: Positive = 0.125

    @property
    def stage_dims(self) -> list[int]:
        last = self.last_dim or self.dim * 5 // 4
        return [self.dim // 8, self.dim // 4, self.dim // 2, self.dim, last]

    def _restated(self) -> dict[str, Any]:
        usual = self.last_dim == self.dim * 5 // 4
        return {**super()._restated(), **({"last_dim": None} if usual else {})}

    @model_validator(mode="after")
    def _check_geometry(self) -> MetaSpikeFormerOptions:
        if self.dim % 8:
            raise ValueError(f"dim: the stages need a multiple of 8, not {self.dim}")
        check_heads(self.dim, self.heads)
        check_heads(self.stage_dims[-1], self.heads, "last_dim")
        check_image(self.image_size, 16)
        return self


class ViTOptions(ModelOptions):
    """``patch_size`` in pixels. Without neurons there is one time step."""

    takes_other_sizes: ClassVar[bool] = False  # its positions are learned

    timesteps: Count = 1
    patch_size: Count = 4

    @classmethod
    def idle(cls, values: Mapping[str, Any]) -> dict[str, str]:
        return {**super().idle(values), "timesteps": "a model without neurons has 1 time step"}

    @model_validator(mode="after")
    def _check_geometry(self) -> ViTOptions:
        check_heads(self.dim, self.heads)
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size: {self.image_size} cannot be cut into patches of {self.patch_size}"
            )
        return self


OPTIONS: dict[str, type[ModelOptions]] = {
    "msvit": MSVITOptions,
    "qkformer": QKFormerOptions,
    "spikformer": SpikformerOptions,
    "spikingformer": SpikingformerOptions,
    "sdt": SDTOptions,
    "metaspikeformer": MetaSpikeFormerOptions,
    "spikingresformer": SpikingResformerOptions,
    "maxformer": MaxFormerOptions,
    "vit": ViTOptions,
}
