"""Spikingformer (Zhou et al., 2023, arXiv 2304.11954).

Spikformer turned inside out: every unit is neuron (→ max pool) → convolution → norm, so that
membrane potential is added at shortcuts and only spikes are multiplied. The first
convolution encodes the image, and the classifier reads the potential of the last block.
"""

from __future__ import annotations

from torch import Tensor, nn

from msvit.checkpoints import OfficialMap
from msvit.layers.blocks import Block, Classifier, as_sequence, drop_rates
from msvit.layers.membrane import MembraneMLP, MembraneSelfAttention
from msvit.layers.units import ConvNorm, NeuronConvNorm
from msvit.models.base import Model, neuron_spec
from msvit.models.options import SpikingformerOptions


class Spikingformer(Model):
    options: SpikingformerOptions

    def __init__(self, options: SpikingformerOptions) -> None:
        super().__init__(options)
        neuron = neuron_spec(options)
        dim = options.dim
        widths = (dim // 8, dim // 4, dim // 2, dim, dim)
        self.encode = ConvNorm(options.in_channels, widths[0], 3)
        self.stem = nn.Sequential(
            *(
                NeuronConvNorm(
                    widths[i], widths[i + 1], neuron, 3, pool="spikes" if pool else "none"
                )
                for i, pool in enumerate(options.pools)
            )
        )
        self.blocks = nn.Sequential(
            *(
                Block(
                    MembraneSelfAttention(
                        dim, options.heads, neuron, options.attn_threshold, options.attn_scale
                    ),
                    MembraneMLP(dim, round(dim * options.mlp_ratio), neuron),
                    drop,
                )
                for drop in drop_rates(options.drop_path, options.depth)
            )
        )
        self.head = Classifier(dim, options.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        potential = self.encode(as_sequence(x, self.options.timesteps))
        return self.head(self.blocks(self.stem(potential)))

    def official_map(self) -> OfficialMap:
        """The CIFAR code names its stem differently from the others; unused LayerNorms."""
        names = OfficialMap(
            tensors={f"head.linear.{t}": f"head.{t}" for t in ("weight", "bias")},
            ignored=["block.*.norm1.*", "block.*.norm2.*"],
        )

        def place(ours: str, official: str) -> None:
            names.units[f"{ours}.synapse"] = [(f"{official}_conv", f"{official}_bn")]
            names.neurons[f"{ours}.neuron"] = [f"{official}_lif"]

        stem = [f"patch_embed.proj{i or ''}" for i in range(5)]
        if not all(self.options.pools):
            stem = [f"patch_embed.block{i}" for i in range(5)]
        names.units["encode"] = [(f"{stem[0]}_conv", f"{stem[0]}_bn")]
        for i, official in enumerate(stem[1:]):
            place(f"stem.{i}", official)
        for b in range(self.options.depth):
            ours, theirs = f"blocks.{b}.attention", f"block.{b}.attn"
            names.neurons[f"{ours}.neuron"] = [f"{theirs}.proj_lif"]
            names.units[f"{ours}.qkv"] = [(f"{theirs}.{x}_conv", f"{theirs}.{x}_bn") for x in "qkv"]
            names.neurons[f"{ours}.qkv.neuron"] = [f"{theirs}.{x}_lif" for x in "qkv"]
            names.neurons[f"{ours}.attend.neuron"] = [f"{theirs}.attn_lif"]
            names.units[f"{ours}.proj"] = [(f"{theirs}.proj_conv", f"{theirs}.proj_bn")]
            place(f"blocks.{b}.mlp.fc1", f"block.{b}.mlp.mlp1")
            place(f"blocks.{b}.mlp.fc2", f"block.{b}.mlp.mlp2")
        return names


def build(options: SpikingformerOptions) -> Spikingformer:
    return Spikingformer(options)
