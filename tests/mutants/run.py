#!/usr/bin/env python3
"""Mutation testing: puts deliberate faults (mutants.toml) into copies of the sources and reports which test fails.

    python tests/mutants/run.py --tier test                  all mutants against `make test`
    python tests/mutants/run.py --tier quick --family cuda   some of them against `make quick`
    python tests/mutants/run.py --only cpu-k3-sign --likely  one mutant, only its likely tests

Each mutant is applied to a copy of the checkout in a temporary folder. Its C++ is compiled there; unchanged objects
come from the tests' cache (tests/support/compiled.py). The tier runs in the mutant's likely tests first, up to the
first failure, then in their files, and as a whole if those pass. Before that the same tests must pass without a fault.
Results go to results.json and results.md in the output folder after each mutant; a mutant with a result for the same
sources is not run again.

Not in the list, because only a GPU can show it: l2_grouped's second pass that does not wait for the excitation. The
shim's fair schedule always has the excitation done by then.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from threading import Lock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from mutants.catalogue import FAMILIES, Mutant, load
from support import compiled
from support.paths import ROOT
from support.references import tracked
from support.tiers import TIERS
from torch.utils.cpp_extension import include_paths

# Arguments of pytest for a whole tier.
WHOLE = ["-n", "2", "--dist", "loadfile"]
# Copies have no repository, and the list of mutants does not fit a mutated file.
PYTEST = ["-q", "-x", "-rfE", "--tb=no", "--no-header", "-p", "no:cacheprovider", "--ignore=tests/mutants"]
SECONDS = {"likely": 900, "whole": 3600}  # a mutant that hangs counts as found
SOURCES = ("se_fused", "csrc", "tests", "benchmarks", "pyproject.toml", "setup.py", "build_cuda.py")
# -O1: a file of kernels compiles in a third of the time that setup.py's -O3 takes.
CPU_FLAGS = "-std=c++20 -O1 -g0 -fPIC -fvisibility=hidden -ffp-contract=fast -fno-math-errno -fno-trapping-math".split()


def sources_key() -> str:
    """Hash of everything that affects a result, except the list of mutants and this file."""
    key = hashlib.sha256()
    for name in sorted(tracked()):
        if name.startswith(SOURCES) and not name.startswith("tests/mutants/"):
            key.update(name.encode() + b"\0" + (ROOT / name).read_bytes())
    return key.hexdigest()


def copy_checkout(to: Path) -> None:
    """Copy the checkout and its compiled libraries."""
    names = [name for name in tracked() if not name.startswith("benchmarks/results/cpu-")]
    names += [str(path.relative_to(ROOT)) for path in (ROOT / "se_fused").glob("*.so")]
    names += ["se_fused/_build_info.py"] * (ROOT / "se_fused" / "_build_info.py").is_file()
    for name in names:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, to / name)


def fastest_kernels() -> str:
    """The instruction set that the CPU library uses here, as in the name of its file of kernels."""
    found = torch.backends.cpu.get_cpu_capability().lower()
    return found if found in ("avx2", "avx512") else "baseline"


def build_cpu_library(root: Path, kernels: str) -> None:
    """Compile csrc/cpu of the copy at ``root`` into its package.

    Kernels carry the fault for one instruction set alone; the others, a minute and more each, are the unchanged ones.
    """
    folders = [f"-I{folder}" for folder in include_paths()]
    flags = [*CPU_FLAGS, "-DTORCH_TARGET_VERSION=0x020a000000000000", *folders]
    files = [*(ROOT / "csrc" / "cpu").glob("*.cpp"), ROOT / "csrc" / "register.cpp"]
    unchanged = [f for f in files if f.stem.startswith("kernels_") and f.stem != f"kernels_{kernels}"]
    changed = [root / f.relative_to(ROOT) for f in files if f not in unchanged]
    found = [*compiled.objects(changed, flags, root), *compiled.objects(unchanged, flags)]
    torch_libraries = [f"-L{Path(torch.__file__).parent}/lib", "-ltorch", "-ltorch_cpu", "-lc10"]
    library = root / "se_fused" / "_C_cpu.abi3.so"
    shutil.copy(compiled.link(found, ["-shared", *torch_libraries]), library)


def environment(root: Path) -> dict[str, str]:
    more = {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONFAULTHANDLER": "1", "OMP_NUM_THREADS": "1"}
    return os.environ | more


def run(command: list[str], root: Path, seconds: float) -> tuple[int | None, str]:
    """(exit status or None after ``seconds``, output) of a command in the copy; its children end with it."""
    with subprocess.Popen(
        command, cwd=root, env=environment(root), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=seconds)
            return process.returncode, output
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            return None, output


def judge(status: int | None, output: str) -> str | None:
    """The first failed test, or how else the run ended; None if all tests passed or none was selected."""
    if status in (0, 5):
        return None
    if status is None:
        return "time limit"
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.M)
    if failed:
        return failed[1]
    crash = re.search(r"Fatal Python error: (.+)", output)
    if crash or status < 0:
        where = re.search(r'File ".*?(tests/\S+?\.py)", line \d+ in (test_\w+)', output)
        return f"crash: {crash[1] if crash else signal.Signals(-status).name}" + (
            f" in {where[1]}::{where[2]}" if where else ""
        )
    raise RuntimeError(f"pytest ended with {status}:\n{output[-3000:]}")


def run_tests(root: Path, tier: str, files: tuple[str, ...]) -> str | None:
    """The first failure of a tier in ``files``, or in all tests if there are none."""
    where, seconds = (["-n0", *files], SECONDS["likely"]) if files else (WHOLE, SECONDS["whole"])
    return judge(*run([sys.executable, "-m", "pytest", *PYTEST, "--tier", tier, *where], root, seconds))


def prepare(mutant: Mutant | None, root: Path) -> str | None:
    """Copy, change and compile; returns why that failed, or None."""
    copy_checkout(root)
    if mutant is None:
        return None
    mutant.apply(root)
    if not mutant.file.startswith("csrc/"):
        return None
    try:
        if not mutant.file.startswith("csrc/cuda/"):
            build_cpu_library(root, mutant.kernels or fastest_kernels())
    except subprocess.CalledProcessError as error:
        return str(error.stderr)[-2000:]
    if mutant.file.startswith("csrc/cuda/"):
        build = "import sys; sys.path.insert(0, 'tests'); from support import shim_library; shim_library.library()"
        status, output = run([sys.executable, "-c", build], root, SECONDS["likely"])
        return output[-2000:] if status else None
    return None


def examine(mutant: Mutant | None, tier: str, files: tuple[str, ...], whole: bool) -> dict[str, object]:
    """The result for one mutant, or for the unchanged sources."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="se-fused-mutant-") as folder:
        root = Path(folder)
        failure = prepare(mutant, root)
        if failure is not None:
            return {"verdict": "does not compile", "by": failure, "seconds": round(time.monotonic() - started, 1)}
        built = time.monotonic()
        by = run_tests(root, tier, files) if files else None
        scope = "likely tests"
        likely_files = tuple(dict.fromkeys(name.partition("::")[0] for name in files))
        if by is None and files and likely_files != files:
            by = run_tests(root, tier, likely_files)
        if by is None and whole:
            by, scope = run_tests(root, tier, ()), "whole tier"
    return {
        "verdict": "found" if by else "not found", "by": by or "", "scope": scope,
        "build_seconds": round(built - started, 1), "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


class Results:
    """The results by tier and mutant, written after each one."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.lock = folder, Lock()
        path = folder / "results.json"
        self.found = json.loads(path.read_text()) if path.exists() else {}

    def has(self, name: str, key: str, whole: bool) -> bool:
        """Whether a result is there that another run would repeat."""
        result = self.found.get(name)
        if not result or result["key"] != key:
            return False
        return result["verdict"] == "found" or not whole or result.get("scope") == "whole tier"

    def put(self, name: str, key: str, result: dict[str, object]) -> None:
        with self.lock:
            self.found[name] = {"key": key, **result}
            text = json.dumps(self.found, indent=1, sort_keys=True)
            (self.folder / "results.json").write_text(text + "\n")
            (self.folder / "results.md").write_text(self.table())

    def table(self) -> str:
        """Markdown: a summary and a row for each mutant of each tier."""
        lines = []
        for tier in TIERS:
            rows = {m: r for m in load() if (r := self.found.get(f"{tier}/{m.id}"))}
            if not rows:
                continue
            count = sum(result["verdict"] == "found" for result in rows.values())
            lines += [f"## {tier}: {count} of {len(rows)} mutants found", ""]
            lines += ["| mutant | what breaks | verdict | first failure | s |", "|---|---|---|---|---|"]
            for m, r in rows.items():
                by = str(r["by"]).splitlines()[-1] if r["by"] else ""
                lines.append(f"| {m.id} | {m.breaks} | {r['verdict']} | {by} | {r['seconds']:.0f} |")
            lines.append("")
        return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=TIERS, default="test", help="which tests run (default: test)")
    parser.add_argument("--family", choices=FAMILIES, action="append", help="only mutants of this family; repeatable")
    parser.add_argument("--only", action="append", metavar="ID", help="only this mutant; repeatable")
    parser.add_argument("--likely", action="store_true", help="run the likely tests alone, never the whole tier")
    parser.add_argument("--trust", action="store_true", help="do not run the tests without a fault first")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="mutants at a time (default: 1)")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "mutants", help="default: build/mutants")
    parser.add_argument("--list", action="store_true", help="print the mutants and end")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    chosen = [m for m in load() if not options.family or m.family in options.family]
    if options.only:
        unknown = set(options.only) - {m.id for m in chosen}
        if unknown:
            sys.exit(f"--only: there is no mutant {', '.join(sorted(unknown))}; --list prints them")
        chosen = [m for m in chosen if m.id in options.only]
    if options.list:
        for m in chosen:
            print(f"{m.id:32} {m.file}\n{'':32} {m.breaks} [{m.source}]")
        return 0
    results, tier, whole = Results(options.output), options.tier, not options.likely
    sources = sources_key()

    def key_of(mutant: Mutant | None) -> str:
        given = json.dumps([sources, tier, asdict(mutant) if mutant else None], sort_keys=True)
        return hashlib.sha256(given.encode()).hexdigest()[:16]

    def unchanged(name: str, files: tuple[str, ...]) -> None:
        name, key = f"{tier}/unchanged {name}", key_of(None)
        if not results.has(name, key, False):
            results.put(name, key, examine(None, tier, files, not files))
        if results.found[name]["verdict"] != "not found":
            sys.exit(f"Without any fault, this test fails in a copy of the checkout: {results.found[name]['by']}")

    waiting = [m for m in chosen if not results.has(f"{tier}/{m.id}", key_of(m), whole)]
    print(f"{len(chosen)} mutants, {len(chosen) - len(waiting)} of them have a result for these sources", flush=True)
    if not options.trust:
        for file in dict.fromkeys(name for m in waiting for name in m.tests):
            unchanged(file, (file,))
        if whole and waiting:
            unchanged("whole", ())

    def one(mutant: Mutant) -> None:
        result = examine(mutant, tier, mutant.tests, whole)
        results.put(f"{tier}/{mutant.id}", key_of(mutant), result)
        print(
            f"{mutant.id:32} {result['verdict']:10} {result['seconds']:6.0f} s  {str(result['by'])[-150:]}", flush=True
        )

    with ThreadPoolExecutor(max_workers=options.jobs) as pool:
        list(pool.map(one, waiting))
    verdicts = [results.found[f"{tier}/{m.id}"]["verdict"] for m in chosen]
    print(f"{verdicts.count('found')} of {len(chosen)} found; see {options.output / 'results.md'}")
    return 0 if verdicts.count("found") == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
