"""Meta-SpikeFormer, Spike-driven Transformer V2 (Yao et al., ICLR 2024, arXiv 2404.03663).

Convolution blocks (an inverted separable convolution, then two 3×3 ones) down to 1/8 of the
image, then blocks of spiking self-attention whose q, k, v and projection are
re-parameterisable convolutions. Membrane potential is added at shortcuts; one more neuron
stands in front of the classifier.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn

from msvit.checkpoints import OfficialMap
from msvit.kernels import NeuronSpec
from msvit.layers.attention import AttentionCore
from msvit.layers.blocks import Block, Classifier, as_sequence, drop_rates
from msvit.layers.membrane import MembraneMLP
from msvit.layers.norm import BatchNorm
from msvit.layers.repconv import RepConv
from msvit.layers.synapses import Conv
from msvit.layers.units import ConvNorm, NeuronConvNorm, fire
from msvit.models.base import Model, neuron_spec
from msvit.models.options import MetaSpikeFormerOptions
from msvit.neurons import Neuron


class SeparableConv(nn.Module):
    """Neuron → 1×1 to twice the channels → neuron → depthwise 7×7 → 1×1 back (+ shortcut)."""

    def __init__(self, dim: int, neuron: NeuronSpec) -> None:
        super().__init__()
        self.expand = NeuronConvNorm(dim, 2 * dim, neuron)
        self.neuron = Neuron(neuron)
        self.depthwise = Conv(2 * dim, 2 * dim, 7, groups=2 * dim)
        self.reduce = ConvNorm(2 * dim, dim)

    def forward(self, membrane: Tensor, shortcut: Tensor | None = None) -> Tensor:
        spikes = self.neuron(self.expand(membrane))
        return self.reduce(self.depthwise(spikes), shortcut)


class RepAttention(nn.Module):
    """Spiking self-attention with re-parameterisable convolutions, neuron first (+ shortcut)."""

    def __init__(
        self, dim: int, heads: int, neuron: NeuronSpec, attn_threshold: float, scale: float
    ) -> None:
        super().__init__()
        self.neuron = Neuron(neuron)
        self.qkv = RepConv(dim, parts=3)
        self.qkv_norm = BatchNorm(3 * dim)
        self.qkv_neuron = Neuron(neuron, parts=("q", "k", "v"))
        self.attend = AttentionCore(heads, neuron.with_(threshold=attn_threshold), scale)
        self.proj = RepConv(dim)
        self.proj_norm = BatchNorm(dim)

    def forward(self, membrane: Tensor, shortcut: Tensor | None = None) -> Tensor:
        current = self.qkv(self.neuron(membrane))
        q, k, v = fire(self.qkv_norm, self.qkv_neuron, current).chunk(3, dim=-1)
        return self.proj_norm(self.proj(self.attend(q, k, v)), shortcut=shortcut)


class MetaSpikeFormer(Model):
    def __init__(self, options: MetaSpikeFormerOptions) -> None:
        super().__init__(options)
        neuron = neuron_spec(options)
        drops = iter(drop_rates(options.drop_path, sum(options.depths)))
        attention_from = len(options.depths) - 2

        def block(stage: int, dim: int) -> Block:
            hidden = round(dim * options.mlp_ratio)
            if stage < attention_from:
                mlp = MembraneMLP(dim, hidden, neuron, bias=False, kernel=3)
                return Block(SeparableConv(dim, neuron), mlp, next(drops))
            attention = RepAttention(
                dim, options.heads, neuron, options.attn_threshold, options.attn_scale
            )
            return Block(attention, MembraneMLP(dim, hidden, neuron), next(drops))

        dims = options.stage_dims
        first = ConvNorm(options.in_channels, dims[0], 7, stride=2, bias=True)
        self.downsamplings = nn.ModuleList(
            [
                first,
                *(
                    NeuronConvNorm(dims[i - 1], dims[i], neuron, 3, stride, bias=True)
                    for i, stride in enumerate((2, 2, 2, 1), start=1)
                ),
            ]
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(block(stage, dim) for _ in range(depth)))
            for stage, (dim, depth) in enumerate(zip(dims, options.depths, strict=True))
        )
        self.head = Classifier(dims[-1], options.num_classes, neuron)

    def forward(self, x: Tensor) -> Tensor:
        x = as_sequence(x, self.options.timesteps)
        for downsample, blocks in zip(self.downsamplings, self.stages, strict=True):
            x = blocks(downsample(x))
        return self.head(x)

    def official_map(self) -> OfficialMap:
        """Stages are called 1_1, 1_2, 2, 3, 4; every block of stage 2 has a list of its own."""
        names = OfficialMap(layers={"head.linear": ["head"]}, neurons={"head.neuron": ["lif"]})
        for i, stage in enumerate(("1_1", "1_2", "2", "3", "4")):
            official = f"downsample{stage}.encode"
            unit = f"downsamplings.{i}" + (".synapse" if i else "")
            names.units[unit] = [(f"{official}_conv", f"{official}_bn")]
            if i:
                names.neurons[f"downsamplings.{i}.neuron"] = [f"{official}_lif"]
            for b, block in enumerate(cast(Iterable[Block], self.stages[i])):
                if isinstance(block.attention, RepAttention):
                    _place_attention_block(names, f"stages.{i}.{b}", f"block{stage}.{b}")
                elif stage == "2":
                    _place_conv_block(names, f"stages.{i}.{b}", f"ConvBlock2_{b + 1}.0")
                else:
                    _place_conv_block(names, f"stages.{i}.{b}", f"ConvBlock{stage}.{b}")
        return names


def _place_conv_block(names: OfficialMap, ours: str, theirs: str) -> None:
    separable, official = f"{ours}.attention", f"{theirs}.Conv"
    names.neurons[f"{separable}.expand.neuron"] = [f"{official}.lif1"]
    names.units[f"{separable}.expand.synapse"] = [(f"{official}.pwconv1", f"{official}.bn1")]
    names.neurons[f"{separable}.neuron"] = [f"{official}.lif2"]
    names.layers[f"{separable}.depthwise"] = [f"{official}.dwconv"]
    names.units[f"{separable}.reduce"] = [(f"{official}.pwconv2", f"{official}.bn2")]
    for i in (1, 2):
        names.neurons[f"{ours}.mlp.fc{i}.neuron"] = [f"{theirs}.lif{i}"]
        names.units[f"{ours}.mlp.fc{i}.synapse"] = [(f"{theirs}.conv{i}", f"{theirs}.bn{i}")]


def _place_attention_block(names: OfficialMap, ours: str, theirs: str) -> None:
    attention, official = f"{ours}.attention", f"{theirs}.attn"
    names.neurons[f"{attention}.neuron"] = [f"{official}.head_lif"]
    _place_repconv(names, f"{attention}.qkv", [f"{official}.{x}_conv" for x in "qkv"])
    names.neurons[f"{attention}.qkv_neuron"] = [f"{official}.{x}_lif" for x in "qkv"]
    names.neurons[f"{attention}.attend.neuron"] = [f"{official}.attn_lif"]
    _place_repconv(names, f"{attention}.proj", [f"{official}.proj_conv"])
    for fc in ("fc1", "fc2"):
        names.neurons[f"{ours}.mlp.{fc}.neuron"] = [f"{theirs}.mlp.{fc}_lif"]
        names.units[f"{ours}.mlp.{fc}.synapse"] = [
            (f"{theirs}.mlp.{fc}_conv", f"{theirs}.mlp.{fc}_bn")
        ]


def _place_repconv(names: OfficialMap, ours: str, official: list[str]) -> None:
    bodies = [f"{o}.0.body" for o in official]
    names.units[f"{ours}.point"] = [(f"{b}.0", f"{b}.1.bn") for b in bodies]
    names.layers[f"{ours}.depthwise"] = [f"{b}.2.0" for b in bodies]
    names.units[f"{ours}.mix"] = [(f"{b}.2.1", f"{b}.2.2") for b in bodies]
    names.layers[f"{ours}_norm"] = [f"{o}.1" for o in official]


def build(options: MetaSpikeFormerOptions) -> MetaSpikeFormer:
    return MetaSpikeFormer(options)
