"""MSVIT (Hua et al., IJCAI 2025, arXiv 2505.14719).

QKFormer's hierarchy with multi-scale attention in the early stages: parallel query branches
of several kernel sizes vote for tokens, and wider early stages. Everything that differs from
QKFormer is an option, so that an ablation can walk from one to the other:

    scales, fusion, branch_kernel, projections   the branches of the attention
    attn_threshold                               1.0 in the released code, 0.5 in QKFormer
    widths                                       (1/2, 1/2, 1) against (1/4, 1/2, 1)
    stages                                       which stages carry multi-scale attention
"""

from __future__ import annotations

from msvit.kernels import NeuronSpec
from msvit.layers.attention import TokenAttention
from msvit.models.options import MSVITOptions
from msvit.models.qkformer import QKFormer


def build(options: MSVITOptions) -> QKFormer:
    return MSVIT(options)


class MSVIT(QKFormer):
    def __init__(self, options: MSVITOptions) -> None:
        def attention(stage: int, dim: int, neuron: NeuronSpec) -> TokenAttention | None:
            multi_scale = stage in options.stages
            if stage == len(options.depths) and not multi_scale:
                return None
            return TokenAttention(
                dim,
                options.heads,
                neuron,
                options.scales if multi_scale else options.scales[:1],
                options.attn_threshold,
                options.fusion,
                options.branch_kernel,
                options.projections,
            )

        super().__init__(options, attention)
