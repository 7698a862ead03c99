"""SpikingResformer (Shi, Hao & Yu, CVPR 2024, arXiv 2403.14302).

A ResNet's layout with a transformer's blocks: a convolution as prologue, three stages with
strided convolutions between them, each stage a chain of dual spike self-attention (DSSA) and
a group-wise feed-forward part (GWFFN). Membrane potential is added at shortcuts. DSSA scales
its products by running firing rates, the only state that outlives a forward.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from msvit.checkpoints import OfficialMap
from msvit.kernels import NeuronSpec
from msvit.layers.blocks import Block, Classifier, as_sequence, drop_rates
from msvit.layers.dualspike import DualSpikeAttention
from msvit.layers.synapses import Conv
from msvit.layers.units import ConvNorm, NeuronConvNorm
from msvit.models.base import Model, neuron_spec
from msvit.models.options import SpikingResformerOptions


class GroupFeedForward(nn.Module):
    """1×1 up, grouped 3×3 around a shortcut, 1×1 down (+ shortcut); neurons stand in front."""

    def __init__(self, dim: int, hidden: int, group_size: int, neuron: NeuronSpec) -> None:
        super().__init__()
        self.up = NeuronConvNorm(dim, hidden, neuron)
        self.conv = NeuronConvNorm(hidden, hidden, neuron, 3, groups=hidden // group_size)
        self.down = NeuronConvNorm(hidden, dim, neuron)

    def forward(self, membrane: Tensor, shortcut: Tensor | None = None) -> Tensor:
        hidden = self.up(membrane)
        return self.down(self.conv(hidden, shortcut=hidden), shortcut)


class SpikingResformer(Model):
    options: SpikingResformerOptions

    def __init__(self, options: SpikingResformerOptions) -> None:
        super().__init__(options)
        neuron = neuron_spec(options)
        drops = iter(drop_rates(options.drop_path, sum(options.depths)))

        def block(dim: int, patch: int) -> Block:
            heads = dim // options.head_dim
            hidden = round(dim * options.mlp_ratio)
            return Block(
                DualSpikeAttention(dim, heads, patch, neuron, options.attn_threshold),
                GroupFeedForward(dim, hidden, options.group_size, neuron),
                next(drops),
            )

        first, *_ = dims = options.stage_dims
        if options.layout == "imagenet":
            self.prologue = ConvNorm(options.in_channels, first, 7, stride=2, pool=True)
        else:
            self.prologue = ConvNorm(options.in_channels, first, 3)
        self.downsamplings = nn.ModuleList(
            NeuronConvNorm(narrow, wide, neuron, 3, stride=2) for narrow, wide in pairwise(dims)
        )
        # Patches shrink with the image: y of DSSA has as many tokens in every stage.
        self.stages = nn.ModuleList(
            nn.Sequential(*(block(dim, patch) for _ in range(depth)))
            for dim, patch, depth in zip(dims, (4, 2, 1), options.depths, strict=True)
        )
        self.head = Classifier(dims[-1], options.num_classes, bias=False)
        for module in self.modules():
            if isinstance(module, Conv):
                nn.init.trunc_normal_(module.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages[0](self.prologue(as_sequence(x, self.options.timesteps)))
        for downsample, blocks in zip(self.downsamplings, self.stages[1:], strict=True):
            x = blocks(downsample(x))
        return self.head(x)

    def official_map(self) -> OfficialMap:
        """``layers.stage.i``: a downsampling layer (but in the first stage), then DSSA, GWFFN, …"""
        names = OfficialMap(layers={"head.linear": ["classifier"]})
        names.units["prologue"] = [("prologue.0", "prologue.1.bn")]

        def place(ours: str, official: str, neuron: str, conv: str, norm: str) -> None:
            names.units[f"{ours}.synapse"] = [(f"{official}.{conv}", f"{official}.{norm}.bn")]
            names.neurons[f"{ours}.neuron"] = [f"{official}.{neuron}"]

        for s, depth in enumerate(self.options.depths):
            if s:
                place(f"downsamplings.{s - 1}", f"layers.{s}.0", "activation", "conv", "norm")
            for b in range(depth):
                index = 2 * b + (s > 0)
                ours, theirs = f"stages.{s}.{b}.attention", f"layers.{s}.{index}"
                names.units[f"{ours}.transform"] = [(f"{theirs}.W", f"{theirs}.norm.bn")]
                names.units[f"{ours}.proj"] = [(f"{theirs}.Wproj", f"{theirs}.norm_proj.bn")]
                names.tensors[f"{ours}.rate.rate"] = f"{theirs}.firing_rate_x"
                names.tensors[f"{ours}.attn_rate.rate"] = f"{theirs}.firing_rate_attn"
                for neuron, name in (
                    ("neuron", "in"),
                    ("attn_neuron", "attn"),
                    ("out_neuron", "out"),
                ):
                    names.neurons[f"{ours}.{neuron}"] = [f"{theirs}.activation_{name}"]
                ours, theirs = f"stages.{s}.{b}.mlp", f"layers.{s}.{index + 1}"
                for ours_unit, unit in (("up", "up"), ("conv", "conv.0"), ("down", "down")):
                    place(f"{ours}.{ours_unit}", f"{theirs}.{unit}", "0", "1", "2")
        return names


def build(options: SpikingResformerOptions) -> SpikingResformer:
    return SpikingResformer(options)
