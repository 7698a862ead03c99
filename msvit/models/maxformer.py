"""Max-Former (Fang et al., NeurIPS 2025, arXiv 2505.18608).

QKFormer's stages on membrane potential, changed to keep high frequencies, which spiking
neurons filter out: max pooling, also in the shortcut of patch embeddings, and depthwise
convolutions, or nothing, in place of attention in early stages. Only the last stage attends.
Membrane potential is added at shortcuts; one more neuron stands in front of the classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from msvit.checkpoints import OfficialMap
from msvit.kernels import NeuronSpec
from msvit.layers.blocks import Block, Classifier, as_sequence, drop_rates
from msvit.layers.membrane import MembraneSelfAttention
from msvit.layers.synapses import Conv
from msvit.layers.units import ConvNorm, NeuronConvNorm, add
from msvit.models.base import Model, neuron_spec
from msvit.models.options import MaxFormerOptions


class PatchEmbedding(nn.Module):
    """(Convolution of the image →) a chain of neuron-first units with a shortcut around its end.

    The shortcut starts from the spikes of unit ``shortcut_from``, or, where it has a neuron of
    its own, from the membrane potential in front of that unit.
    """

    def __init__(
        self,
        encode: ConvNorm | None,
        units: list[NeuronConvNorm],
        shortcut: ConvNorm | NeuronConvNorm,
        shortcut_from: int = 0,
    ) -> None:
        super().__init__()
        self.encode = encode
        self.units = cast(Sequence[NeuronConvNorm], nn.ModuleList(units))
        self.shortcut = shortcut
        self.shortcut_from = shortcut_from

    def forward(self, membrane: Tensor) -> Tensor:
        if self.encode is not None:
            membrane = self.encode(membrane)
        around = None
        for index, unit in enumerate(self.units):
            spikes = unit.neuron(membrane)
            if index == self.shortcut_from:
                has_neuron = isinstance(self.shortcut, NeuronConvNorm)
                around = self.shortcut(membrane if has_neuron else spikes)
            last = index == len(self.units) - 1
            membrane = unit.synapse(spikes, around if last else None)
        return membrane


def embedding(
    layout: str, stage: int, in_channels: int, dim: int, neuron: NeuronSpec
) -> PatchEmbedding:
    """The patch embedding of a stage (from 1) in the published layout for a kind of data.

    Pooling is 3×3 max pooling with stride 2; all convolutions but the shortcuts are 3×3.
    """

    def unit(narrow: int, wide: int, stride: int = 1, pool: bool = False) -> NeuronConvNorm:
        return NeuronConvNorm(narrow, wide, neuron, 3, stride, pool="membrane" if pool else "none")

    if stage > 1:
        units = [unit(in_channels, dim, pool=True), unit(dim, dim)]
        return PatchEmbedding(None, units, ConvNorm(in_channels, dim, pool=True))
    if layout == "cifar":
        half = dim // 2
        encode = ConvNorm(in_channels, half, 3)
        return PatchEmbedding(encode, [unit(half, dim)], NeuronConvNorm(half, dim, neuron))
    if layout == "imagenet":
        half = dim // 2
        encode = ConvNorm(in_channels, half, 3, stride=2)
        units = [unit(half, dim, stride=2), unit(dim, dim)]
        return PatchEmbedding(encode, units, ConvNorm(half, dim, stride=2))
    encode = ConvNorm(in_channels, dim // 8, 3)
    widths = ((dim // 8, dim // 4), (dim // 4, dim // 2), (dim // 2, dim))
    units = [unit(narrow, wide, pool=True) for narrow, wide in widths]
    return PatchEmbedding(encode, units, ConvNorm(dim // 4, dim, stride=4), shortcut_from=1)


class MaxFormerMLP(nn.Module):
    """Two 1×1 neuron-conv-norm units (+ shortcut).

    With as many hidden channels as outer ones (the event models), each has a shortcut of its
    own, as in the released code.
    """

    def __init__(self, dim: int, hidden: int, neuron: NeuronSpec) -> None:
        super().__init__()
        self.fc1 = NeuronConvNorm(dim, hidden, neuron, bias=True)
        self.fc2 = NeuronConvNorm(hidden, dim, neuron, bias=True)
        self.residual = dim == hidden

    def forward(self, membrane: Tensor, shortcut: Tensor | None = None) -> Tensor:
        change = self.fc1(membrane)
        if not self.residual:
            return self.fc2(change, shortcut)
        return self.fc2(membrane + change, add(change, shortcut))


class MaxFormer(Model):
    options: MaxFormerOptions

    def __init__(self, options: MaxFormerOptions) -> None:
        super().__init__(options)
        neuron = neuron_spec(options)
        drops = iter(drop_rates(options.drop_path, sum(options.depths)))

        def mixer(kind: str, dim: int) -> nn.Module | None:
            if kind == "identity":
                return None
            if kind == "attention":
                return MembraneSelfAttention(dim, options.heads, neuron, options.attn_threshold)
            kernel = int(kind.removeprefix("dwc"))
            return NeuronConvNorm(dim, dim, neuron, kernel, groups=dim, bias=True)

        def block(kind: str, dim: int) -> Block:
            mlp = MaxFormerMLP(dim, round(dim * options.mlp_ratio), neuron)
            return Block(mixer(kind, dim), mlp, next(drops))

        self.embeddings = nn.ModuleList()
        self.stages = nn.ModuleList()
        previous = options.in_channels
        for stage, (dim, depth, kind) in enumerate(
            zip(options.stage_dims, options.depths, options.mixers, strict=True), start=1
        ):
            self.embeddings.append(embedding(options.layout, stage, previous, dim, neuron))
            self.stages.append(nn.Sequential(*(block(kind, dim) for _ in range(depth))))
            previous = dim
        self.head = Classifier(previous, options.num_classes, neuron)
        if options.layout == "imagenet":
            self._initialise_as_on_imagenet()

    def _initialise_as_on_imagenet(self) -> None:
        """The released code draws its 2-D convolutions here, and not its 1-D ones or its head."""
        one_dimensional = (".attention.qkv.conv", ".attention.proj.conv")
        for path, module in self.named_modules():
            if isinstance(module, Conv) and not path.endswith(one_dimensional):
                nn.init.trunc_normal_(module.weight, std=0.02)
        self.head.linear.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        x = as_sequence(x, self.options.timesteps)
        for embed, blocks in zip(self.embeddings, self.stages, strict=True):
            x = blocks(embed(x))
        return self.head(x)

    def official_map(self) -> OfficialMap:
        names = OfficialMap(layers={"head.linear": ["head"]}, neurons={"head.neuron": ["head_lif"]})
        for index, embed in enumerate(self.embeddings):
            first_of = self.options.layout if index == 0 else "later"
            encode, units, shortcut = OFFICIAL_EMBEDDINGS[first_of]
            ours, theirs = f"embeddings.{index}", f"patch_embed{index + 1}"
            if encode:
                names.units[f"{ours}.encode"] = [
                    (f"{theirs}.{encode}_conv", f"{theirs}.{encode}_bn")
                ]
            for i, unit in enumerate(units):
                _place(names, f"{ours}.units.{i}", f"{theirs}.{unit}.embed_")
            if isinstance(embed.shortcut, NeuronConvNorm):
                _place(names, f"{ours}.shortcut", f"{theirs}.{shortcut}.embed_")
            else:
                official = f"{theirs}.{shortcut}.embed"
                names.units[f"{ours}.shortcut"] = [(f"{official}_conv", f"{official}_bn")]
            kind = self.options.mixers[index]
            for b in range(self.options.depths[index]):
                _place_block(names, f"stages.{index}.{b}", f"stage{index + 1}.{b}", kind)
        return names


#: Official names of a patch embedding's parts: encoding, chain, shortcut.
OFFICIAL_EMBEDDINGS = {
    "cifar": ("proj", ["embed1"], "embed2"),
    "imagenet": ("embed1.embed", ["embed2", "embed3"], "embed4"),
    "events": ("proj", ["max_embed1", "max_embed2", "max_embed3"], "embed1"),
    "later": (None, ["max_embed1", "embed1"], "max_embed2"),
}


def _place(names: OfficialMap, unit: str, official: str, neuron: str = "lif") -> None:
    names.units[f"{unit}.synapse"] = [(f"{official}conv", f"{official}bn")]
    names.neurons[f"{unit}.neuron"] = [f"{official}{neuron}"]


def _place_block(names: OfficialMap, ours: str, theirs: str, kind: str) -> None:
    for fc in ("fc1", "fc2"):
        _place(names, f"{ours}.mlp.{fc}", f"{theirs}.mlp.{fc}_")
    if kind == "attention":
        attention, official = f"{ours}.attention", f"{theirs}.attn"
        names.neurons[f"{attention}.neuron"] = [f"{official}.x_lif"]
        names.units[f"{attention}.qkv"] = [
            (f"{official}.{x}_conv", f"{official}.{x}_bn") for x in "qkv"
        ]
        names.neurons[f"{attention}.qkv.neuron"] = [f"{official}.{x}_lif" for x in "qkv"]
        names.neurons[f"{attention}.attend.neuron"] = [f"{official}.attn_lif"]
        names.units[f"{attention}.proj"] = [(f"{official}.proj_conv", f"{official}.proj_bn")]
    elif kind != "identity":
        conv = f"{theirs}.mixer.{'conv5' if kind == 'dwc7' else 'conv'}"
        names.units[f"{ours}.attention.synapse"] = [(conv, f"{conv}_bn")]
        names.neurons[f"{ours}.attention.neuron"] = [f"{conv}_neuron"]


def build(options: MaxFormerOptions) -> MaxFormer:
    return MaxFormer(options)
