"""Environment of the results: machine, versions, build, commit and command, without paths of the machine."""

import platform
import subprocess
from typing import Any

import torch

from se_fused._build import recorded
from se_fused.info.environment import commit, versions

from .target import ROOT

__all__ = ["environment", "uncommitted"]

_QUERY = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit,ecc.mode.current"


def _says(*command: str) -> str | None:
    try:
        return subprocess.run(command, text=True, capture_output=True, check=True, cwd=ROOT, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def uncommitted() -> str | None:
    """Output of ``git status --porcelain``: the files that differ from the commit; None outside of a repository."""
    return _says("git", "status", "--porcelain")


def environment(command: str, pack: dict[str, Any] | None, rehearse: bool) -> dict[str, Any]:
    """The environment as a dict for JSON.

    Args:
        command: the command line without paths.
        pack: manifest of the libraries that were built in advance; None if the libraries of the checkout are used.
        rehearse: whether this is a rehearsal on the CPU.
    """
    gpu = "the CPU (a rehearsal)" if rehearse else torch.cuda.get_device_name(0)
    # With a copy of the working tree but no repository, the commit is only in the manifest of the pack.
    return {
        "command": command,
        "gpu": gpu,
        "compute_capability": None if rehearse else list(torch.cuda.get_device_capability(0)),
        "commit": commit() or (pack or {}).get("commit"),
        "uncommitted": uncommitted(),
        "nvidia_smi": None if rehearse else _says("nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv"),
        "platform": platform.platform(),
        "versions": versions(),
        "cudnn": torch.backends.cudnn.version(),
        "build": recorded(),
        "pack": pack,
        "rehearsal": rehearse,
    }
