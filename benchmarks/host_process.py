"""A process with the stand-in device, for programs that must not have the device themselves: PyTorch would take it for
the machine's accelerator."""

import subprocess
import sys
from pathlib import Path

__all__ = ["HostProcess"]


class HostProcess:
    """Runs passes of networks on request (``python -m benchmarks.host_network --serve``).

    Attributes:
        reason: why nothing can run here; None if all is well.
    """

    def __init__(self) -> None:
        command = [sys.executable, "-m", "benchmarks.host_network", "--serve"]
        self._process = subprocess.Popen(
            command, cwd=Path(__file__).resolve().parents[1], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.reason = self._answer() or None

    def run(self, network: str, kind: str, dtype: str) -> float:
        """Run a pass once; returns its seconds. A network is built in its first call."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{network} {kind} {dtype}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of the stand-in device ended with status {self._process.wait()}")
        return line.rstrip("\n")

    def close(self) -> None:
        self._process.communicate()
