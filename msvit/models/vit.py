"""Vision transformer without spikes (Dosovitskiy et al., ICLR 2021, arXiv 2010.11929).

The twin against which energy is compared: as wide and as deep as the spiking models, timm's
implementation, with features averaged over tokens as theirs are. It has one time step. Its
weights and products are put into the modules at which operations are counted; they compute
what timm's do, and timm's state dicts load.
"""

from __future__ import annotations

from typing import Any

from timm.layers import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from msvit.checkpoints import OfficialMap
from msvit.layers.blocks import drop_images
from msvit.layers.synapses import Conv, Linear, MatrixProduct
from msvit.models.base import Model
from msvit.models.options import ViTOptions


class ViT(Model):
    def __init__(self, options: ViTOptions) -> None:
        super().__init__(options)
        self.encoder = VisionTransformer(
            img_size=options.image_size,
            patch_size=options.patch_size,
            in_chans=options.in_channels,
            num_classes=options.num_classes,
            global_pool="avg",
            class_token=False,
            embed_dim=options.dim,
            depth=sum(options.depths),
            num_heads=options.heads,
            mlp_ratio=options.mlp_ratio,
            drop_path_rate=options.drop_path,
        )
        _count_in(self.encoder, options.heads)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` → logits of the one time step ``[1, B, K]``.

        Raises:
            ValueError: for events, which have more steps than this model.
        """
        if x.ndim != 4:
            raise ValueError(
                f"a ViT has one time step and takes images [B, C, H, W], got {tuple(x.shape)}"
            )
        return self.encoder(x).unsqueeze(0)

    def official_map(self) -> OfficialMap:
        """timm's names, without the modules for counting in between."""

        def timm_name(target: str) -> str:
            name = target.removeprefix("encoder.")
            return name.replace(".linear.", ".").replace(".conv.", ".")

        return OfficialMap(tensors={target: timm_name(target) for target in self.state_dict()})


def _count_in(encoder: Any, heads: int) -> None:
    """Replace what multiplies in timm's ``encoder``, whose types know timm's own layers only.

    And what draws for images, which several workers have to do together.
    """
    encoder.patch_embed.proj = CountedPatches(encoder.patch_embed.proj)
    for block in encoder.blocks:
        block.attn = CountedAttention(block.attn.qkv, block.attn.proj, heads)
        block.mlp.fc1 = CountedLinear(block.mlp.fc1)
        block.mlp.fc2 = CountedLinear(block.mlp.fc2)
        for name, module in block.named_children():
            if isinstance(module, DropPath):
                setattr(block, name, DropImages(module.drop_prob))
    encoder.head = CountedLinear(encoder.head)


class DropImages(nn.Module):
    """timm's DropPath on ``[B, ...]``, and its draws, for the images of all workers."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.probability):
            return x
        return drop_images(x.unsqueeze(0), self.probability).squeeze(0)


class CountedLinear(nn.Module):
    """A timm layer ``[B, ..., C]``, given the axis of time steps for which counters look."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        bias = linear.bias is not None
        self.linear = Linear(linear.in_features, linear.out_features, bias=bias)
        self.linear.weight, self.linear.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.unsqueeze(0)).squeeze(0)


class CountedPatches(nn.Module):
    """timm's projection of patches, ``[B, C, H, W]`` → ``[B, D, H/p, W/p]``."""

    def __init__(self, proj: nn.Conv2d) -> None:
        super().__init__()
        patch = proj.kernel_size[0]
        self.conv = Conv(
            proj.in_channels, proj.out_channels, patch, stride=patch, padding=0, bias=True
        )
        self.conv.weight, self.conv.bias = proj.weight, proj.bias

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.permute(0, 2, 3, 1).unsqueeze(0)) + self.conv.bias
        return y.squeeze(0).permute(0, 3, 1, 2)


class CountedAttention(nn.Module):
    """Softmax attention between tokens ``[B, N, C]``, its two products apart."""

    def __init__(self, qkv: nn.Linear, proj: nn.Linear, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = CountedLinear(qkv)
        self.first = MatrixProduct()
        self.second = MatrixProduct()
        self.proj = CountedLinear(proj)

    def forward(self, x: Tensor, **_mask: None) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # [B, N, 3, heads, d]
        q, k, v = qkv.unsqueeze(0).permute(3, 0, 1, 4, 2, 5)  # [1, B, heads, N, d] each
        scores = self.first(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
        out = self.second(scores.softmax(-1), v)
        return self.proj(out.squeeze(0).transpose(1, 2).flatten(2))


def build(options: ViTOptions) -> ViT:
    return ViT(options)
