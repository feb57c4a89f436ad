"""Classifier: a trained network with its classes, preprocessing and options, and its file format."""

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
    """Load a dictionary of tensors and plain values written by ``torch.save``; no code from the file is executed.

    Args:
        path: the file.
        remedy: advice for the user, appended to the error message.

    Raises:
        InputError: there is no such file, it is damaged, or it is of another kind.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; {remedy}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises any exception, e.g. RuntimeError, EOFError, UnpicklingError
        raise InputError(f"{path}: damaged, or not a file of se_fused ({type(error).__name__}); {remedy}") from None
    return content if isinstance(content, dict) else {}


@dataclass
class Classifier:
    """A trained network for one-channel radiographs, with its classes and preprocessing.

    Attributes:
        model: (N, 1, S, S) -> (N, K) logits; :meth:`load` returns it in evaluation mode.
        classes: K names, in the order of the logits.
        preprocessing: preprocessing of its input images.
        name: name of the model for :func:`se_fused.create_model`.
        options: keyword arguments of that function, without num_classes and in_chans.
        about: further information such as run, seed, epoch and digest of the manifest. Plain values only.
    """

    model: nn.Module
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities of images (N, 1, S, S) in [0, 1]: (N, K) float32 on the CPU; each row sums to 1."""
        place = next(self.model.parameters())
        x = self.preprocessing.normalize(images.to(place.device, place.dtype))
        return self.model(x.contiguous(memory_format=torch.channels_last)).float().softmax(1).cpu()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file atomically. It contains tensors and plain values only, no code."""
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
        # In memory first: on a full disk, torch.save to a file raises another error that hides the reason.
        file = io.BytesIO()
        torch.save(content, file)
        write_bytes(Path(path), file.getbuffer())

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> "Classifier":
        """Read a file written by :meth:`save`, or the ``model.pt`` of a run's folder.

        Raises:
            InputError: there is no such file, it is damaged, or it is not a classifier of se_fused.
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
            raise InputError(f"{path}: its contents are inconsistent: {reason}; {remedy}") from None
        model = model.eval().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(model, classes, preprocessing, content["name"], options, about)
