"""What goes wrong in a window, on purpose: the rehearsal's steps that hang, fail and print nonsense."""

import signal
import subprocess
import sys
import time

from . import at, emit

__all__ = ["main"]


def main(how: str) -> int:
    if how == "hang":  # deaf to a polite end, with a child: a kernel that spins, and a test runner's worker
        emit("before it hangs", ok=True)
        at("a kernel that never ends")
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    if how == "fail":
        at("an access that is not allowed")
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if how == "wrong":
        emit("a kernel", case="2x8x4x4", ok=False, note="error is 2.5 times its bound")
        return 1
    if how == "nonsense":
        print("@row {not json", "@row [1, 2]", "\x00\xff", "Segmentation fault (core dumped)", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
