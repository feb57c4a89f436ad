"""A trained network with all that is needed to use it: classes, preprocessing, how it was built. And its file."""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..._atomic_write import write_bytes
from ..._errors import InputError
from ..._version import __version__
from ...models import create_model
from .preprocessing import Preprocessing

__all__ = ["Classifier", "read_saved"]

_FORMAT = 1


def read_saved(path: Path, remedy: str) -> dict[str, Any]:
    """A dictionary that ``torch.save`` wrote: tensors and plain values alone; no code of the file is run.

    Args:
        path: the file.
        remedy: what the user can do where it cannot be read.

    Raises:
        InputError: no such file, or damaged, or another kind of file.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; {remedy}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged zip raises RuntimeError, EOFError, UnpicklingError, anything
        raise InputError(f"{path}: damaged, or no file of ours ({type(error).__name__}); {remedy}") from None
    return content if isinstance(content, dict) else {}


@dataclass
class Classifier:
    """A network for radiographs of one channel.

    Attributes:
        model: (N, 1, S, S) -> (N, K) logits; in evaluation mode when it was loaded.
        classes: K names, in the order of the logits.
        preprocessing: what its images went through.
        name: of the model, for :func:`se_fused.create_model`.
        options: its keywords, without num_classes and in_chans.
        about: whatever else is worth keeping: run, seed, epoch, digest of the manifest, metrics. Plain values only.
    """

    model: nn.Module
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """(N, 1, S, S) in [0, 1] -> (N, K) float32 on the CPU, rows that sum to 1."""
        place = next(self.model.parameters())
        x = self.preprocessing.normalize(images.to(place.device, place.dtype))
        return self.model(x.contiguous(memory_format=torch.channels_last)).float().softmax(1).cpu()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all; tensors and plain values only, no code."""
        content = {
            "se_fused_classifier": _FORMAT,
            "se_fused": __version__,
            "name": self.name,
            "options": dict(self.options),
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.about(),
            "about": self.about,
            "state_dict": {k: v.detach().cpu() for k, v in self.model.state_dict().items()},
        }
        # In memory first: torch.save into a file on a full disk raises an error of its own that hides the reason.
        file = io.BytesIO()
        torch.save(content, file)
        write_bytes(Path(path), file.getbuffer())

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> "Classifier":
        """Read a file of :meth:`save`, or the ``model.pt`` of a run's folder.

        Raises:
            InputError: no such file, damaged, or no classifier of ours.
        """
        path = Path(path)
        path = path / "model.pt" if path.is_dir() else path
        remedy = "give the folder of a finished se-fused fracture train run, or its model.pt"
        content = read_saved(path, remedy)
        if content.get("se_fused_classifier") != _FORMAT:
            raise InputError(f"{path}: not a classifier of se_fused; {remedy}")
        try:
            classes, options = tuple(content["classes"]), dict(content["options"])
            model = create_model(content["name"], num_classes=len(classes), in_chans=1, **options)
            model.load_state_dict(content["state_dict"])
            preprocessing, about = Preprocessing(**content["preprocessing"]), dict(content["about"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path}: does not hold what it says: {reason}; {remedy}") from None
        model = model.eval().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(model, classes, preprocessing, content["name"], options, about)
