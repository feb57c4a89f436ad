"""Programs, libraries and kernels that tests compile, in one cache for all checkouts and processes.

An object is stored under the hash of its preprocessed source, the flags and the compiler. A changed header recompiles
the files that see the change; a comment that moves no line, or another checkout, recompiles nothing.
``SE_FUSED_TEST_CACHE`` names the folder (default: ``~/.cache/se_fused-tests``). Files unused for a month are deleted.
"""

import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.paths import ROOT

COMPILER = next(iter(shlex.split(os.environ.get("CXX", ""))), None) or shutil.which("g++") or shutil.which("c++")
_MONTH = 30 * 24 * 3600


def cache(part: str) -> Path:
    """A folder of the cache: "objects", "linked", "cubins" or "triton"."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("SE_FUSED_TEST_CACHE") or home / "se_fused-tests") / part
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def find(path: Path) -> bool:
    """Whether a file is in the cache. If it is, set its modification time to now, because unused files are removed."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def stored(target: Path, write: Callable[[Path], object]) -> Path:
    """Create the file ``target`` of the cache by calling ``write``, if it is missing.

    ``write`` gets a temporary path, which is then renamed, so that other processes never see an incomplete file.
    """
    if not find(target):
        handle, partial = tempfile.mkstemp(dir=target.parent)
        os.close(handle)
        try:
            write(Path(partial))
            Path(partial).chmod(0o755)
            Path(partial).rename(target)
        finally:
            Path(partial).unlink(missing_ok=True)
    return target


def build(sources: Sequence[Path], flags: Sequence[str] = (), link_flags: Sequence[str] = ()) -> Path:
    """Compile C++ sources and link them to a program, or to a library with ``-shared`` among ``link_flags``.

    Args:
        sources: files of any suffix, read as C++.
        flags: compiler flags; paths in them are relative to the checkout's root.
        link_flags: linker flags, placed after the objects.
    Raises:
        subprocess.CalledProcessError: if the compiler fails; ``stderr`` has its messages.
    """
    return link(objects(sources, flags), link_flags)


def objects(sources: Sequence[Path], flags: Sequence[str] = (), root: Path = ROOT) -> list[Path]:
    """The object of each source. Sources below ``root`` are named relative to it, and the compiler runs there."""
    with ThreadPoolExecutor(max_workers=int(os.environ.get("MAX_JOBS", "2"))) as pool:
        return list(pool.map(lambda source: _compile(source, flags, root), sources))


def link(found: Sequence[Path], link_flags: Sequence[str] = ()) -> Path:
    """The program or library that consists of these objects."""
    target = cache("linked") / _key(*(o.name for o in found), *link_flags)
    if not target.exists():
        _delete_unused()
    return stored(target, lambda path: _run([*map(str, found), *link_flags, "-o", str(path)]))


def _compile(source: Path, flags: Sequence[str], root: Path) -> Path:
    name = str(source.relative_to(root) if source.is_relative_to(root) else source)
    # Without -g: with it, the preprocessor writes down the working directory, which differs between checkouts.
    bare = [flag for flag in flags if not flag.startswith("-g")]
    text = _run([*bare, "-E", "-x", "c++", name], root=root)
    target = cache("objects") / (_key(text, *flags) + ".o")
    # Compile the text that was hashed, because the file may have changed since.
    arguments = [*flags, f"-fdebug-prefix-map={root}=.", "-x", "c++-cpp-output", "-c", "-"]
    return stored(target, lambda path: _run([*arguments, "-o", str(path)], text, root))


def _run(arguments: Sequence[str], text: str = "", root: Path = ROOT) -> str:
    command = [str(COMPILER), *arguments]
    run = subprocess.run(command, cwd=root, input=text, capture_output=True, text=True, check=False)
    if run.returncode:
        print(run.stderr[-10000:])  # pytest shows it with the failure
        run.check_returncode()
    return run.stdout


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join([_compiler_version(), *parts]).encode()).hexdigest()[:24]


@functools.cache
def _compiler_version() -> str:
    return _run(["--version"])


def _delete_unused() -> None:
    for part in ("objects", "linked", "cubins", "triton"):
        for entry in cache(part).iterdir():
            try:
                if time.time() - entry.stat().st_mtime > _MONTH:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            except FileNotFoundError:  # another process removed it first
                pass
