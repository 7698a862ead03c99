"""QKFormer (Zhou et al., NeurIPS 2024, arXiv 2403.16552).

Three stages of growing width. Early stages attend by token Q-K attention (a score per token,
linear in their number), the last by spiking self-attention. Spikes are added at shortcuts.
MSVIT is this architecture with another attention (:mod:`msvit.models.msvit`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

from torch import Tensor, nn

from msvit.checkpoints import OfficialMap
from msvit.kernels import NeuronSpec
from msvit.layers.attention import SelfAttention, SeparateBranches, TokenAttention
from msvit.layers.blocks import MLP, Block, Classifier, PatchEmbedding, as_sequence, drop_rates
from msvit.models.base import Model, neuron_spec
from msvit.models.options import HierarchicalOptions, QKFormerOptions

MakeTokenAttention = Callable[[int, int, NeuronSpec], TokenAttention | None]


class QKFormer(Model):
    """Patch embedding and blocks per stage, then a linear classifier.

    ``token_attention(stage, dim, neuron)`` gives the attention of a block in ``stage``
    (from 1), or None for spiking self-attention.
    """

    options: HierarchicalOptions

    def __init__(
        self,
        options: HierarchicalOptions,
        token_attention: MakeTokenAttention | None = None,
    ) -> None:
        super().__init__(options)
        neuron = neuron_spec(options)
        make_attention = token_attention or self._token_qk_attention

        drops = iter(drop_rates(options.drop_path, sum(options.depths)))

        def block(stage: int, dim: int) -> Block:
            attention = make_attention(stage, dim, neuron) or SelfAttention(
                dim,
                options.heads,
                neuron,
                options.attn_threshold,
                coupled=options.batch_coupled,
            )
            mlp = MLP(dim, round(dim * options.mlp_ratio), neuron)
            return Block(attention, mlp, next(drops))

        self.embeddings = nn.ModuleList()
        self.stages = nn.ModuleList()
        previous = options.in_channels
        for stage, (dim, depth) in enumerate(
            zip(options.stage_dims, options.depths, strict=True), start=1
        ):
            self.embeddings.append(embedding(options.layout, stage, previous, dim, neuron))
            self.stages.append(nn.Sequential(*(block(stage, dim) for _ in range(depth))))
            previous = dim
        self.head = Classifier(previous, options.num_classes)

    def _token_qk_attention(
        self, stage: int, dim: int, neuron: NeuronSpec
    ) -> TokenAttention | None:
        options = self.options
        if stage == len(options.depths):
            return None
        return TokenAttention(dim, options.heads, neuron, (1,), options.attn_threshold)

    def forward(self, x: Tensor) -> Tensor:
        x = as_sequence(x, self.options.timesteps)
        for embed, blocks in zip(self.embeddings, self.stages, strict=True):
            x = blocks(embed(x))
        return self.head(x)

    def official_map(self) -> OfficialMap:
        return hierarchical_map(self)


def embedding(
    layout: str, stage: int, in_channels: int, dim: int, neuron: NeuronSpec
) -> PatchEmbedding:
    """The patch embedding of a stage (from 1) in the published layout for a kind of data.

    CIFAR keeps the resolution in stage 1, ImageNet divides it by 4, events by 8; every later
    stage halves it.
    """
    if stage == 1:
        widths, pools, shortcut_from = {
            "cifar": ((dim // 2, dim), (False, False), 1),
            "imagenet": ((dim // 2, dim, dim), (True, True, False), 1),
            "events": ((dim // 8, dim // 4, dim // 2, dim), (False, True, True, True), 2),
        }[layout]
    else:
        pools = (True, False) if layout == "imagenet" else (False, True)
        widths, shortcut_from = (dim, dim), 0
    return PatchEmbedding(in_channels, widths, pools, shortcut_from, neuron)


def hierarchical_map(model: QKFormer) -> OfficialMap:
    """Official names of QKFormer and MSVIT, which differ per data set in small ways."""
    options = model.options
    names = OfficialMap(tensors={f"head.linear.{t}": f"head.{t}" for t in ("weight", "bias")})
    events = options.layout == "events"
    fc = ("fc1", "fc2") if options.layout == "imagenet" else ("mlp1", "mlp2")
    embeddings = cast(Iterable[PatchEmbedding], model.embeddings)
    stages = cast(Iterable[Iterable[Block]], model.stages)
    for index, (embed, blocks) in enumerate(zip(embeddings, stages, strict=True)):
        official = f"patch_embed{index + 1}"
        if index == 0:
            units = ["proj", "proj1", "proj2", "proj3"][: len(embed.units)]
        else:
            units = ["proj" if events else "proj3", "proj4"]
        for i, unit in enumerate(units):
            _place(names, f"embeddings.{index}.units.{i}", [f"{official}.{unit}"])
        _place(names, f"embeddings.{index}.shortcut", [f"{official}.proj_res"])
        for b, block in enumerate(blocks):
            ours, theirs = f"stages.{index}.{b}", f"stage{index + 1}.{b}"
            attention = cast(SelfAttention | TokenAttention, block.attention)
            _place_attention(names, attention, f"{ours}.attention", theirs, options.layout)
            for i, name in enumerate(fc):
                _place(names, f"{ours}.mlp.fc{i + 1}", [f"{theirs}.mlp.{name}"])
    return names


def _place(names: OfficialMap, unit: str, official: list[str]) -> None:
    names.units[unit] = [(f"{o}_conv", f"{o}_bn") for o in official]
    names.neurons[f"{unit}.neuron"] = [f"{o}_lif" for o in official]


def _place_attention(
    names: OfficialMap,
    attention: SelfAttention | TokenAttention,
    ours: str,
    theirs: str,
    layout: str,
) -> None:
    if isinstance(attention, SelfAttention):
        theirs = f"{theirs}.{'attn' if layout == 'imagenet' else 'ssa'}"
        _place(names, f"{ours}.qkv", [f"{theirs}.{x}" for x in "qkv"])
        names.neurons[f"{ours}.attend.neuron"] = [f"{theirs}.attn_lif"]
    else:
        theirs = f"{theirs}.tssa"
        letters = dict(zip(attention.names, ("q", "p"), strict=False)) | {"k": "k"}
        # Branches beyond the published two have no official name of their own.
        official = {n: f"{theirs}.{letters.get(n, n)}" for n in (*attention.names, "k")}
        branches = attention.branches
        if isinstance(branches, SeparateBranches):
            point = branches.point.neuron.spikes.parts
            _place(names, f"{ours}.branches.point", [official[n] for n in point])
            for name in branches.wide:
                _place(names, f"{ours}.branches.wide.{name}", [official[name]])
        else:  # shared projections were never published; the keys are as ever
            _place(names, f"{ours}.branches.key", [official["k"]])
        names.neurons[f"{ours}.attn_neuron"] = [f"{theirs}.attn_lif"]
    _place(names, f"{ours}.proj", [f"{theirs}.proj"])


def build(options: QKFormerOptions) -> QKFormer:
    return QKFormer(options)
