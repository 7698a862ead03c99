"""Spikformer (Zhou et al., ICLR 2023, arXiv 2209.15425).

A stem of four conv-norm-neuron units, pooling behind the neuron, with a convolution as
relative position embedding; then blocks of spiking self-attention and MLP at one width.
Spikes are added at shortcuts.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from msvit.checkpoints import OfficialMap
from msvit.kernels import NeuronSpec
from msvit.layers.attention import SelfAttention
from msvit.layers.blocks import MLP, Block, Classifier, as_sequence, drop_rates
from msvit.layers.synapses import Conv
from msvit.layers.units import ConvNormNeuron
from msvit.models.base import Model, neuron_spec
from msvit.models.options import SpikformerOptions

MakeAttention = Callable[[int, NeuronSpec], nn.Module]


class Spikformer(Model):
    """Stem, position embedding and blocks, then a linear classifier.

    ``attention(dim, neuron)`` gives the attention of a block, by default spiking self-attention;
    it is called as ``attention(x, shortcut)``.
    """

    options: SpikformerOptions

    def __init__(self, options: SpikformerOptions, attention: MakeAttention | None = None) -> None:
        super().__init__(options)
        neuron = neuron_spec(options)
        make_attention = attention or self._self_attention
        dim = options.dim
        widths = (options.in_channels, dim // 8, dim // 4, dim // 2, dim)
        self.stem = nn.Sequential(
            *(
                ConvNormNeuron(
                    widths[i], widths[i + 1], neuron, 3, pool="after" if pool else "none"
                )
                for i, pool in enumerate(options.pools)
            )
        )
        self.position = ConvNormNeuron(dim, dim, neuron, 3)
        self.blocks = nn.Sequential(
            *(
                Block(
                    make_attention(dim, neuron),
                    MLP(dim, round(dim * options.mlp_ratio), neuron),
                    drop,
                )
                for drop in drop_rates(options.drop_path, options.depth)
            )
        )
        self.head = Classifier(dim, options.num_classes)
        if options.qkv_bias:  # Linear layers in the released code, initialised as such
            for module in self.blocks.modules():
                if isinstance(module, Conv):
                    nn.init.trunc_normal_(module.weight, std=0.02)

    def _self_attention(self, dim: int, neuron: NeuronSpec) -> SelfAttention:
        options = self.options
        return SelfAttention(
            dim,
            options.heads,
            neuron,
            options.attn_threshold,
            options.attn_scale,
            qkv_bias=options.qkv_bias,
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(as_sequence(x, self.options.timesteps))
        x = self.position(x, shortcut=x)
        return self.head(self.blocks(x))

    def official_map(self) -> OfficialMap:
        """Linear layers in the CIFAR code, 1×1 convolutions elsewhere.

        LayerNorms, and in the event code a position embedding, are built there and never used.
        An attention other than the published one has no official names.
        """
        names = OfficialMap(
            tensors={f"head.linear.{t}": f"head.{t}" for t in ("weight", "bias")},
            ignored=["block.*.norm1.*", "block.*.norm2.*", "norm.*", "pos_embed"],
        )

        def place(ours: str, prefix: str, suffix: str = "", kind: str = "conv") -> None:
            _place(names, ours, prefix, [""], suffix, kind)

        for i in range(4):
            place(f"stem.{i}", "patch_embed.proj_", str(i or ""))
        place("position", "patch_embed.rpe_")
        kind = "linear" if self.options.qkv_bias else "conv"
        for b, block in enumerate(self.blocks):
            ours, theirs = f"blocks.{b}", f"block.{b}"
            attention = f"{theirs}.attn."
            if isinstance(block.attention, SelfAttention):
                _place(names, f"{ours}.attention.qkv", attention, ["q_", "k_", "v_"], "", kind)
                names.neurons[f"{ours}.attention.attend.neuron"] = [f"{attention}attn_lif"]
                place(f"{ours}.attention.proj", f"{attention}proj_", kind=kind)
            place(f"{ours}.mlp.fc1", f"{theirs}.mlp.fc1_", kind=kind)
            place(f"{ours}.mlp.fc2", f"{theirs}.mlp.fc2_", kind=kind)
        return names


def _place(
    names: OfficialMap, unit: str, prefix: str, parts: list[str], suffix: str, kind: str
) -> None:
    names.units[unit] = [(f"{prefix}{p}{kind}{suffix}", f"{prefix}{p}bn{suffix}") for p in parts]
    names.neurons[f"{unit}.neuron"] = [f"{prefix}{p}lif{suffix}" for p in parts]


def build(options: SpikformerOptions) -> Spikformer:
    return Spikformer(options)
