"""What token attention decides: the votes of every scale branch, their sum, the mask."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from msvit.layers.attention import TokenAttention
from msvit.neurons import Neuron


@dataclass(frozen=True)
class Votes:
    """One token attention on one batch; ``S`` branches.

    ``d`` is 1 where every branch is summed over the channels of a head, and the channels of a head
    where some vote channel by channel (``fusion="token_channel"``).

    Attributes:
        branches: names, such as ``("scale1", "scale3")``.
        scores: float32 ``[S, T, B, H, W, heads, d]``, what each adds to the score: spikes.
        mask: ``[T, B, H, W, heads, d]``, what the attention neuron has made of their sum.
    """

    branches: tuple[str, ...]
    scores: Tensor
    mask: Tensor
    neuron: Neuron

    @property
    def total(self) -> Tensor:
        """The score that the attention neuron is given, ``[T, B, H, W, heads, d]``."""
        return self.scores.sum(0)

    @cached_property
    def kept(self) -> Tensor:
        """Where the mask lets keys through, bool as ``mask``."""
        return self.mask > 0

    @cached_property
    def alone(self) -> Tensor:
        """What the mask would let through if one branch alone voted, bool as ``scores``."""
        return torch.stack([self._mask_of(score) for score in self.scores])

    @cached_property
    def without(self) -> Tensor:
        """What it would let through if all voted but one, bool as ``scores``."""
        return torch.stack([self._mask_of(self.total - score) for score in self.scores])

    def _mask_of(self, score: Tensor) -> Tensor:
        return self.neuron(score.flatten(-2)).view(score.shape) > 0


def voting_layers(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Paths of the attentions whose branches vote for tokens, in network order; their branches."""
    return {path: attention.names for path, attention in _attentions(model)}


def _attentions(model: nn.Module) -> list[tuple[str, TokenAttention]]:
    return [(path, m) for path, m in model.named_modules() if isinstance(m, TokenAttention)]


class VoteWatch:
    """While the context is open, ``seen`` holds the votes of the last batch by layer.

    Layers are called by the paths of their attention, in network order. Works by forward hooks on
    the spikes that the network computes, whichever code computes them; nothing is computed twice.
    """

    def __init__(self, model: nn.Module) -> None:
        self.seen: dict[str, Votes] = {}
        self._model = model
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        for path, attention in _attentions(self._model):
            spikes: list[tuple[Tensor, list[Tensor]]] = []
            neuron = copy.deepcopy(attention.attn_neuron)  # without the hooks of anybody

            def remember(
                module: nn.Module, inputs: Any, outputs: Any, spikes: list[Any] = spikes
            ) -> None:
                spikes[:] = [outputs]

            self._handles += [
                attention.branches.register_forward_hook(remember),
                attention.attn_neuron.spikes.register_forward_hook(
                    self._decide(path, attention, neuron, spikes)
                ),
            ]
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _decide(
        self,
        path: str,
        attention: TokenAttention,
        neuron: Neuron,
        spikes: list[tuple[Tensor, list[Tensor]]],
    ) -> Callable:
        def decide(module: nn.Module, inputs: Any, mask: Tensor) -> None:
            joined, wide = spikes.pop()
            # float32: bf16 counts to 256 only.
            votes = attention.votes(joined.float(), [w.float() for w in wide])
            scores = torch.stack(torch.broadcast_tensors(*votes)).detach()
            shaped = mask.detach().float().reshape(scores.shape[1:])
            self.seen[path] = Votes(attention.names, scores, shaped, neuron)

        return decide
