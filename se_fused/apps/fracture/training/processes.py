"""Which processor, and which of several processes this is."""

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
    """Where a run computes.

    Attributes:
        accelerator: "cpu" or "gpu".
        devices: how many on this machine, or the index of the only one.
        nodes: machines.
        rank: of this process; 0 does what is to be done once.
        torchrun: whether torchrun started the processes, and not Lightning.
        precision: of Lightning's Trainer.
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
    """What the recipe's device, devices, nodes and precision come to here.

    Raises:
        InputError: a GPU is asked for that is not there, or several machines without torchrun.
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
                f"training.nodes={nodes}: several machines are started with torchrun --nnodes {nodes} --nproc-per-node "
                f"{devices} --rdzv-backend c10d --rdzv-endpoint HOST:PORT -m se_fused fracture train ..., on each "
                "of them"
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
        raise InputError("training.precision=fp16 needs a GPU; on a CPU set 32 or bf16")
    names = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
    place = Place("gpu" if kind == "cuda" else "cpu", devices, nodes, rank, torchrun, names[precision])
    return replace(place, devices=[int(index)]) if index and place.world == 1 else place


def first_alone(place: Place, work: Callable[[], T], rest: Callable[[], T]) -> T:
    """`work` in the first process; then, in the others, `rest`.

    What goes wrong in the first is reported there, and ends the others without a word of theirs.
    """
    if not (place.torchrun and place.world > 1):  # Lightning starts its processes when all this is done
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
