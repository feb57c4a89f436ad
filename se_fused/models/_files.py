"""Files of tensors: .safetensors, and what ``torch.save`` wrote, read without unpickling anything else."""

import argparse
import pickle
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["read_state_dict"]

_ENTRIES = (
    "state_dict", "model", "model_state_dict", "model_state", "net",
    "state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict",
)  # fmt: skip
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")


def _read(path: str) -> Any:
    if path.endswith(".safetensors"):
        try:
            import safetensors
            from safetensors.torch import load_file
        except ImportError as error:
            raise ImportError(f"{path} needs safetensors, which is not installed: pip install safetensors") from error
        try:
            return load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file: {error}") from None
    try:
        # Namespace: timm's and NVIDIA's training scripts save their arguments beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        told = re.search(r"Unsupported [^\n]*", str(error)) or re.search(r"[^\n]*$", str(error).strip())
        raise ValueError(
            f"{path} is no checkpoint of tensors alone (weights_only=True): {told.group() if told else error}; if you "
            "trust it, load it yourself and save its state_dict"
        ) from None


def _is_state_dict(value: object) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values())


def read_state_dict(path: str, entry: str | None = None) -> tuple[dict[str, Tensor], str, list[str]]:
    """The state_dict in a file, without the prefixes of wrappers.

    Args:
        path: .safetensors, or what ``torch.save`` wrote.
        entry: which entry of the file, if it holds more than one state_dict.

    Returns:
        The state_dict, the file's "arch" entry or "", and what was done to get it.

    Raises:
        FileNotFoundError, ImportError, ValueError: as from ``load_pretrained``.
    """
    content = _read(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold a state_dict, got a {type(content).__name__}")
    notes = []
    arch = content.get("arch")
    found = [key for key in _ENTRIES if _is_state_dict(content.get(key))]
    if entry is not None:
        if not _is_state_dict(content.get(entry)):
            raise ValueError(
                f"entry must name a state_dict in {path}, got {entry!r}; there are {found or list(content)}"
            )
        found = [entry]
    if len(found) > 1:
        raise ValueError(f"{path} holds more than one state_dict, {found}: say which with entry={found[0]!r}")
    if found:
        content = content[found[0]]
        notes.append(f"from its entry {found[0]!r}")
    elif not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(
            f"{path} holds no state_dict under a usual name, only {list(content)[:20]}: say which it is with entry=..."
        )
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(f"{path} holds values in its state_dict that are no tensors: {', '.join(others)}")
    state = {str(key): value for key, value in content.items()}
    stripped = ""
    while True:
        keys = [key for key in state if key != "n_averaged"]
        wrapper = next((w for w in _WRAPPERS if keys and all(key.startswith(w) for key in keys)), None)
        if wrapper is None:
            break
        stripped += wrapper
        state = {key.removeprefix(wrapper): value for key, value in state.items()}
    if stripped:
        notes.append(f"prefix {stripped!r} stripped from every key")
    return state, arch if isinstance(arch, str) else "", notes
