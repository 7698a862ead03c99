"""Spike-driven Transformer, SDT (Yao et al., NeurIPS 2023, arXiv 2307.01694).

A stem of conv-norm-neuron units whose last one leaves its neuron to the relative position
convolution, so that membrane potential is added there and at every later shortcut. Attention
is a mask per channel, ``q ⊙ LIF(Σ_N k ⊙ v)``: no product of activations. One more neuron
stands in front of the classifier.
"""

from __future__ import annotations

from torch import Tensor, nn

from msvit.checkpoints import OfficialMap
from msvit.layers.blocks import Block, Classifier, as_sequence, drop_rates
from msvit.layers.membrane import MembraneMLP, SpikeDrivenAttention
from msvit.layers.synapses import Conv
from msvit.layers.units import ConvNorm, ConvNormNeuron, NeuronConvNorm
from msvit.models.base import Model, neuron_spec
from msvit.models.options import SDTOptions


class SpikeDrivenTransformer(Model):
    options: SDTOptions

    def __init__(self, options: SDTOptions) -> None:
        super().__init__(options)
        neuron = neuron_spec(options)
        dim = options.dim
        widths = (options.in_channels, dim // 8, dim // 4, dim // 2)
        *pools, last_pool = options.pools
        self.stem = nn.Sequential(
            *(
                ConvNormNeuron(
                    widths[i], widths[i + 1], neuron, 3, pool="after" if pool else "none"
                )
                for i, pool in enumerate(pools)
            ),
            ConvNorm(dim // 2, dim, 3, pool=last_pool),
        )
        self.position = NeuronConvNorm(dim, dim, neuron, 3)
        self.blocks = nn.Sequential(
            *(
                Block(
                    SpikeDrivenAttention(
                        dim, options.heads, neuron, options.attn_threshold, options.attn_pool
                    ),
                    MembraneMLP(dim, round(dim * options.mlp_ratio), neuron),
                    drop,
                )
                for drop in drop_rates(options.drop_path, options.depth)
            )
        )
        self.head = Classifier(dim, options.num_classes, neuron)
        for module in self.modules():
            if isinstance(module, Conv):
                nn.init.trunc_normal_(module.weight, std=0.02)
        self.head.linear.reset_parameters()  # the released code leaves torch's default here

    def forward(self, x: Tensor) -> Tensor:
        potential = self.stem(as_sequence(x, self.options.timesteps))
        potential = self.position(potential, shortcut=potential)
        return self.head(self.blocks(potential))

    def official_map(self) -> OfficialMap:
        """Neurons are named after the convolution behind which, or before which, they stand."""
        names = OfficialMap(
            tensors={f"head.linear.{t}": f"head.{t}" for t in ("weight", "bias")},
            ignored=["block.*.attn.talking_heads.weight"],
            neurons={"head.neuron": ["head_lif"]},
        )
        embed = "patch_embed"
        for i, suffix in enumerate(("", "1", "2", "3")):
            names.units[f"stem.{i}"] = [(f"{embed}.proj_conv{suffix}", f"{embed}.proj_bn{suffix}")]
            neuron = f"stem.{i}.neuron" if i < 3 else "position.neuron"
            names.neurons[neuron] = [f"{embed}.proj_lif{suffix}"]
        names.units["position.synapse"] = [(f"{embed}.rpe_conv", f"{embed}.rpe_bn")]
        for b in range(self.options.depth):
            ours, theirs = f"blocks.{b}.attention", f"block.{b}.attn"
            names.neurons[f"{ours}.neuron"] = [f"{theirs}.shortcut_lif"]
            names.units[f"{ours}.qkv"] = [(f"{theirs}.{x}_conv", f"{theirs}.{x}_bn") for x in "qkv"]
            names.neurons[f"{ours}.qkv.neuron"] = [f"{theirs}.{x}_lif" for x in "qkv"]
            names.neurons[f"{ours}.attn_neuron"] = [f"{theirs}.talking_heads_lif"]
            names.units[f"{ours}.proj"] = [(f"{theirs}.proj_conv", f"{theirs}.proj_bn")]
            for fc in ("fc1", "fc2"):
                ours, theirs = f"blocks.{b}.mlp.{fc}", f"block.{b}.mlp.{fc}"
                names.units[f"{ours}.synapse"] = [(f"{theirs}_conv", f"{theirs}_bn")]
                names.neurons[f"{ours}.neuron"] = [f"{theirs}_lif"]
        return names


def build(options: SDTOptions) -> SpikeDrivenTransformer:
    return SpikeDrivenTransformer(options)
