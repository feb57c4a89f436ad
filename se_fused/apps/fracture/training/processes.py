"""Devices and processes of a training run."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ...._errors import InputError
from .config import TrainingConfig

__all__ = ["Place", "find_place", "first_alone"]

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Devices and processes on which a run trains.

    Attributes:
        accelerator: "cpu" or "gpu".
        devices: number of devices of this machine, or a list with the index of the only device.
        nodes: number of machines.
        rank: number of this process; process 0 writes the files.
        torchrun: whether torchrun, and not Lightning, started the processes.
        precision: precision argument of Lightning's Trainer.
    """

    accelerator: str
    devices: int | list[int]
    nodes: int
    rank: int
    torchrun: bool
    precision: Any

    @property
    def world(self) -> int:
        return self.nodes * (self.devices if isinstance(self.devices, int) else len(self.devices))

    @property
    def device(self) -> torch.device:
        if self.accelerator == "cpu":
            return torch.device("cpu")
        return torch.device("cuda", self.devices[0] if isinstance(self.devices, list) else 0)

    def __str__(self) -> str:
        if self.accelerator == "cpu":
            name = f"CPU, {torch.get_num_threads()} threads"
        else:
            name = torch.cuda.get_device_name(self.device)
        if self.world == 1:
            return name
        return f"{self.world} processes" + (f" on {self.nodes} machines" if self.nodes > 1 else "") + f", each: {name}"


def find_place(config: TrainingConfig) -> Place:
    """Resolve the settings device, devices, nodes and precision on this machine.

    Raises:
        InputError: a requested GPU does not exist, fp16 is requested on a CPU, or several machines are requested
            without torchrun.
    """
    kind, _, index = config.device.partition(":")
    count = torch.cuda.device_count()
    if kind == "auto":
        kind = "cuda" if count else "cpu"
    devices, nodes = config.devices, config.nodes
    torchrun = dist.is_torchelastic_launched()
    if torchrun:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
        rank = int(os.environ["RANK"])
    else:
        if nodes > 1:
            raise InputError(
                f"training.nodes={nodes}: several machines need torchrun; on each, run torchrun --nnodes {nodes} "
                f"--nproc-per-node {devices} --rdzv-backend c10d --rdzv-endpoint HOST:PORT -m se_fused fracture train "
                "..."
            )
        rank = int(os.environ.get("LOCAL_RANK", "0"))  # set by Lightning in the processes that it starts
    if kind == "cuda":
        wanted = max(devices, int(index or 0) + 1)
        if wanted > count:
            raise InputError(
                f"training.device={config.device}, devices={devices}: torch sees {count or 'no'} "
                f"GPU{'' if count == 1 else 's'} here; set device=cpu, or fewer devices"
            )
    precision = config.precision
    if precision == "auto":
        precision = "32" if kind == "cpu" else "bf16" if torch.cuda.is_bf16_supported(False) else "fp16"
    if precision == "fp16" and kind == "cpu":
        raise InputError("training.precision=fp16 requires a GPU; on a CPU set 32 or bf16")
    names = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
    place = Place("gpu" if kind == "cuda" else "cpu", devices, nodes, rank, torchrun, names[precision])
    return replace(place, devices=[int(index)]) if index and place.world == 1 else place


def first_alone(place: Place, work: Callable[[], T], rest: Callable[[], T]) -> T:
    """Run `work` in process 0 and afterwards `rest` in the other processes.

    An error in process 0 is reported there; the other processes exit without a message.
    """
    if not (place.torchrun and place.world > 1):  # without torchrun, Lightning starts the other processes later
        return work() if place.rank == 0 else rest()
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if place.accelerator == "gpu" else "gloo")
    outcome: list[Any] = [False]
    try:
        if place.rank == 0:
            done = work()
            outcome = [True]
            return done
    finally:
        dist.broadcast_object_list(outcome, src=0)
        if not outcome[0] and place.rank != 0:
            raise SystemExit(2)
    return rest()
