"""A study harness for spiking vision transformers. Importing it does not import torch."""

from __future__ import annotations

from typing import Any

from msvit.models import create_model, list_models

__all__ = ["create_model", "list_models", "load_official", "load_trained"]


def __getattr__(name: str) -> Any:
    if name == "load_official":  # needs torch, as does the other
        from msvit.checkpoints import load_official

        return load_official
    if name == "load_trained":
        from msvit.training.trained import load_trained

        return load_trained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
