"""A training run, from its configuration to its output folder."""

import json
import logging
import platform
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import nn

from ...._atomic_write import write_text
from ...._errors import InputError
from ....backends import use_backend
from ....info.provenance import environment, portable, this_command
from ..data import RadiographData, worker_count
from ..manifest import SPLITS, Manifest
from .callbacks import History, Patience, averaging
from .checkpoints import WholeFiles, keepers, read_checkpoint
from .config import Config
from .module import FractureModule, build_model
from .outcome import write_outcome
from .processes import Place, find_place, first_alone
from .sources import Progress, Sources, check_splits, read_manifest, read_sources

__all__ = ["Run", "prepare_run", "train"]

Say = Callable[[str], None]


def _nothing(*_: Any) -> None:
    pass


@dataclass
class Run:
    """A prepared training run: the data are read, the network is built and the folder exists.

    Attributes:
        config: its configuration.
        folder: its output folder.
        sources: its data.
        model: its network with the initial weights.
        loaded: description of the initial weights.
        place: devices and processes of the training.
        checkpoint: checkpoint from which the run continues; None starts from the beginning.
        dry: whether this is a dry run: one batch of each split, in a temporary folder.
    """

    config: Config
    folder: Path
    sources: Sources
    model: nn.Module
    loaded: str
    place: Place
    checkpoint: Path | None = None
    dry: bool = False

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @property
    def workers(self) -> int:
        """Number of loader workers of each training process."""
        if self.config.data.workers >= 0:
            return self.config.data.workers
        if self.place.accelerator == "cpu":
            return 0  # workers would compete with the training for the CPU cores
        return max(1, worker_count() * self.place.nodes // self.place.world)

    def fit(self, progress: Progress = _nothing, say: Say = _nothing) -> Path:
        """Train the network and write the results.

        Args:
            progress: called with a description of the current step and the completed share, 0 to 1.
            say: called with a line after each epoch.

        Returns:
            The folder of the run. The folder of a dry run no longer exists.

        Raises:
            InputError: the disk is full, the checkpoint is damaged, or the loss is not finite.
        """
        try:
            with _plain(self.config.model.fused), _quiet():
                begin = time.perf_counter()
                self._train(progress, say)
                if dist.is_initialized():
                    dist.destroy_process_group()
                if self.place.rank == 0:
                    rest = {"seconds": round(time.perf_counter() - begin, 1), "parameters": self.parameters}
                    write_outcome(self.folder, self.config, self.sources, self.place.device, rest, self.dry, progress)
        finally:
            if self.dry:
                shutil.rmtree(self.folder, ignore_errors=True)
        return self.folder

    def _train(self, progress: Progress, say: Say) -> None:
        c, folder, place = self.config.training, self.folder, self.place
        sources = self.sources
        module = FractureModule(
            self.model, c, sources.preprocessing, sources.counts("train"), self.config.seed, self._identity()
        )
        if self.checkpoint is not None:
            self._check_checkpoint(self.checkpoint)
        data = RadiographData(
            sources.sets["train"], sources.sets["valid"], sources.sets["test"], batch=c.batch,
            sampling=self.config.data.sampling, seed=self.config.seed, workers=self.workers,
            pin=place.accelerator == "gpu",
        )  # fmt: skip
        if self.config.model.compile:
            module.model.compile()
        module = module.to(memory_format=torch.channels_last)
        callbacks: list[pl.Callback] = [averaging(c.ema)] if c.ema else []
        callbacks.append(History(folder / "logs" / "metrics.csv", progress, say))
        if c.patience:
            mode = "min" if c.monitor == "loss" else "max"
            callbacks.append(Patience(f"valid/{c.monitor}", patience=c.patience, mode=mode, check_finite=False))
        callbacks += keepers(folder / "checkpoints", c.monitor)
        logger: Any = False
        if c.tensorboard and not self.dry:
            from lightning.pytorch.loggers import TensorBoardLogger

            logger = TensorBoardLogger(folder, name="logs", version="")
        trainer = pl.Trainer(
            accelerator=place.accelerator, devices=place.devices, num_nodes=place.nodes,
            strategy="ddp" if place.world > 1 else "auto", precision=place.precision, max_epochs=c.epochs,
            accumulate_grad_batches=c.accumulate, gradient_clip_val=c.clip or None, sync_batchnorm=c.sync_batchnorm,
            deterministic=c.deterministic, benchmark=place.accelerator == "gpu" and not c.deterministic,
            callbacks=callbacks, logger=logger, plugins=[WholeFiles()], default_root_dir=folder, log_every_n_steps=10,
            num_sanity_val_steps=0, use_distributed_sampler=False, enable_progress_bar=False,
            enable_model_summary=False, limit_train_batches=1 if self.dry else None,
        )  # fmt: skip
        handler = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(module, datamodule=data, ckpt_path=self.checkpoint)
        except SystemExit:  # Lightning converts Ctrl-C to SystemExit
            if trainer.interrupted:
                raise KeyboardInterrupt from None
            raise
        finally:
            signal.signal(signal.SIGINT, handler)

    def _identity(self) -> dict[str, Any]:
        """Properties other than the configuration that must not change when a run is resumed."""
        return {
            "classes": list(self.sources.classes),
            "manifest": self.sources.manifest.digest(),
            "preprocessing": self.sources.preprocessing.about(),
            "world": self.place.world,
        }

    def _check_checkpoint(self, path: Path) -> None:
        kept, mine = read_checkpoint(path).get("run"), self._identity()
        if kept == mine:
            return
        if not isinstance(kept, dict):
            raise InputError(f"{path}: not a checkpoint of se-fused fracture train; give another --output")
        if kept.get("world") != mine["world"]:
            raise InputError(
                f"{path}: the run began with {kept.get('world')} process(es) and would continue with {mine['world']}, "
                "which changes the batches; use the same number, or give another --output"
            )
        raise InputError(
            f"{path}: the run's images have changed since it began (files, labels or splits); restore them, or give "
            "another --output"
        )


@contextmanager
def _plain(fused: bool) -> Iterator[None]:
    """Use plain PyTorch if `fused` is False; otherwise leave the selected backend unchanged."""
    with nullcontext() if fused else use_backend("reference"):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress Lightning's messages on hardware and loaders; this application prints the relevant information."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            # DDP copies a gradient whose strides differ from the parameter's, as for every channels_last 1x1 weight.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _open_folder(config: Config, resume: bool) -> tuple[Path, Path | None, bool]:
    """The run's folder, the checkpoint from which to continue, and whether the run is finished.

    Raises:
        InputError: the folder contains other files, another configuration, or a run that may not be overwritten.
    """
    folder = Path(config.output)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return folder, None, False
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file; --output must be a folder for the run")
    kept = folder / "config.yaml"
    if not kept.is_file():
        raise InputError(f"{folder}: contains files, but no run of se-fused fracture train; give another --output")
    last, finished = folder / "checkpoints" / "last.ckpt", (folder / "metrics.json").is_file()
    if not resume:
        if finished:
            raise InputError(f"{folder}: contains a finished run; give another --output, or remove the folder")
        if last.exists():
            raise InputError(f"{folder}: contains an unfinished run; continue with --resume, or give another --output")
        return folder, None, False
    differing = config.differences(Config.load(kept))
    if differing:
        raise InputError(
            f"{kept}: the run began with a different {', '.join(differing)}; resume it with --config {kept}, or give "
            "another --output"
        )
    return folder, last if last.exists() else None, finished


def _make_folder(config: Config, folder: Path, manifest: Manifest) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    manifest.save(folder / "manifest.csv")
    about = environment()
    told = {
        "command": this_command(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "lightning": metadata.version("lightning"),
        "data": portable(manifest.notes),
        **{
            key: about[key]
            for key in ("se_fused", "commit", "versions", "platform", "cpu", "gpus", "build", "asked_for")
        },
    }
    write_text(folder / "environment.json", json.dumps(told, indent=1, default=str) + "\n")
    config.save(folder / "config.yaml")


def _few(manifest: Manifest, batch: int) -> Manifest:
    """About one batch of each split, with images of all classes in turn."""
    kept = []
    for split in SPLITS:
        groups: dict[str, list[Any]] = {}
        for record in manifest.where(split).records:
            groups.setdefault(record.label, []).append(record)
        turns = sorted((turn, label) for label, group in groups.items() for turn in range(len(group)))
        kept += [groups[label][turn] for turn, label in turns[: max(batch, len(groups))]]
    return Manifest(tuple(kept), manifest.notes)


def prepare_run(
    config: Config, *, resume: bool = False, dry_run: bool = False, progress: Progress = _nothing
) -> Run | None:
    """Check the configuration, read the data, build the network and create the run's folder.

    Args:
        config: configuration of the run.
        resume: whether to continue from ``checkpoints/last.ckpt``; the result equals that of an uninterrupted run.
            Without a checkpoint, the run starts from the beginning.
        dry_run: whether to run a single step on about one batch of each split and to save nothing.
        progress: called with a description of the current step and the completed share, 0 to 1.

    Returns:
        The run; None if it should be resumed but is already finished.

    Raises:
        InputError: the configuration, the data or the folder is invalid.
    """
    config.check()
    place = find_place(config.training)
    if dry_run:
        data, training = replace(config.data, cache="memory"), replace(config.training, epochs=1, patience=0)
        config = replace(config, data=data, training=training)

    def sources_of(folder: Path, manifest: Manifest) -> tuple[nn.Module, str, Sources]:
        # The network first: its errors are reported before thousands of images are decoded.
        torch.manual_seed(config.seed)
        model, loaded = build_model(config.model, len(check_splits(manifest)))
        cache = Path(config.data.cache_folder) if config.data.cache_folder else folder.parent / "cache"
        return model, loaded, read_sources(manifest, config.data, config.seed, cache, progress)

    def first() -> Run | None:
        folder, checkpoint, finished = (Path(config.output), None, False) if dry_run else _open_folder(config, resume)
        if finished:
            return None
        again = checkpoint is not None
        manifest = Manifest.load(folder / "manifest.csv") if again else read_manifest(config.data, progress)
        if dry_run:
            manifest = _few(manifest, config.training.batch)
        model, loaded, sources = sources_of(folder, manifest)
        if dry_run:
            folder = Path(tempfile.mkdtemp(prefix="se-fused-dry-run-"))
        elif not again:
            _make_folder(config, folder, manifest)
        if sources.damaged:
            write_text(folder / "damaged.csv", sources.damaged_table())
        return Run(config, folder, sources, model, loaded, place, checkpoint, dry_run)

    def rest() -> Run | None:  # process 0 has created the folder, or has stopped because the run is finished
        folder = Path(config.output)
        last = folder / "checkpoints" / "last.ckpt"
        if (folder / "metrics.json").is_file():
            return None
        manifest = Manifest.load(folder / "manifest.csv")
        model, loaded, sources = sources_of(folder, manifest)
        checkpoint = last if resume and last.exists() else None
        return Run(config, folder, sources, model, loaded, place, checkpoint, dry_run)

    if dry_run and place.world > 1:
        raise InputError("--dry-run supports one process only; set training.devices=1 and start it without torchrun")
    return first_alone(place, first, rest)


def train(config: Config, *, resume: bool = False, progress: Progress = _nothing, say: Say = _nothing) -> Path:
    """Prepare and train a run (:func:`prepare_run`, :meth:`Run.fit`); returns the run's folder."""
    run = prepare_run(config, resume=resume, progress=progress)
    return Path(config.output) if run is None else run.fit(progress, say)
