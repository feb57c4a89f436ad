"""Steps of a rehearsal that hang, fail, or print wrong results or nonsense on purpose, to test the runner."""

import signal
import subprocess
import sys
import time

from . import at, emit

__all__ = ["main"]


def main(how: str) -> int:
    if how == "hang":  # ignores SIGTERM and has a child, like a kernel in an endless loop and a worker of a test runner
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
