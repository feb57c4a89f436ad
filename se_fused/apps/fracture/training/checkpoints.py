"""Checkpoint files: atomic writing, and error messages for damaged files."""

import errno
import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ...._atomic_write import write_bytes
from ...._errors import InputError
from ..classifier import read_saved

__all__ = ["WholeFiles", "keepers", "read_checkpoint"]

FULL = (errno.ENOSPC, errno.EDQUOT)


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints atomically: to a temporary file that is synced to disk and then renamed.

    The previous checkpoint remains until the new one is complete.

    Raises:
        InputError: the disk is full; the existing file is unchanged.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)

        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, content.getbuffer())
        except OSError as error:
            if error.errno not in FULL:
                raise
            last = path.with_name("last.ckpt").exists()
            after = "continue with --resume from the previous epoch's checkpoint" if last else "start it again"
            raise InputError(
                f"{path}: the disk is full; free {content.getbuffer().nbytes / 1e6:.0f} MB and {after}"
            ) from None

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(Path(path))


def keepers(folder: Path, monitor: str) -> list[ModelCheckpoint]:
    """Callbacks that save best.ckpt (the best epoch) and last.ckpt (the last epoch) at the end of each epoch."""
    mode = "min" if monitor == "loss" else "max"
    shared: dict[str, Any] = {"dirpath": folder, "save_on_train_epoch_end": True, "enable_version_counter": False}
    return [
        ModelCheckpoint(filename="best", monitor=f"valid/{monitor}", mode=mode, save_top_k=1, **shared),
        ModelCheckpoint(filename="last", monitor=None, save_top_k=1, every_n_epochs=1, **shared),
    ]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint written by se-fused fracture train; tensors and plain values only.

    Raises:
        InputError: the file is missing, damaged or not such a checkpoint.
    """
    best = path.with_name("best.ckpt")
    remedy = "give another --output to train from the start" + (
        f", or replace it by a copy of {best.name} to continue from the best epoch"
        if path.name == "last.ckpt" and best.is_file()
        else ""
    )
    content = read_saved(path, remedy)
    if "state_dict" not in content or "epoch" not in content:
        raise InputError(f"{path}: not a checkpoint of se-fused fracture train; {remedy}")
    return content
