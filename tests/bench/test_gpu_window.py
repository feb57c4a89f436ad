"""Tests of benchmarks/gpu on the CPU: a rehearsal with the runner, steps and programs that a GPU would use.

At tiny sizes, the CUDA kernels' source runs in cuda_shim and Triton's kernels in its interpreter; ncu and
compute-sanitizer are scripts in gpu_tools that run their program and print what the real tools print. Some steps fail
on purpose.
"""

import errno
import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import shim_library
from support.paths import ROOT

from se_fused import backends

sys.path.insert(0, str(ROOT))  # this checkout's benchmarks are a package there

from benchmarks.gpu import keep, pack, steps, tables
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.read import READERS
from benchmarks.gpu.runner import Done, Step, run
from benchmarks.gpu.store import Store, load
from benchmarks.gpu.target import kernel_of, launches_in

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a rehearsal runs only on machines without a GPU")


def window(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "SE_FUSED_BACKEND")}
    return subprocess.run(
        command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False, timeout=timeout
    )


def read(folder: Path, command: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """(environment, steps by name, rows)"""
    environment, ended, rows = load((folder / f"{command}.jsonl").read_text())
    return environment, {step["step"]: step for step in ended}, rows


# ---- the rehearsal
@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder and the output of a rehearsal of all three commands, within a budget."""
    if torch.cuda.is_available():
        pytest.skip("a rehearsal runs only on machines without a GPU")
    if (reason := shim_library.why_not()) is not None:
        pytest.skip(reason)
    shim_library.library()  # compiled before the time of the budget starts
    folder = tmp_path_factory.mktemp("window")
    return folder, window("all", "--rehearse", "--budget", "600", "--output", str(folder), timeout=900)


DRILLS = {"drill hang": "killed", "drill fail": "failed", "drill wrong": "wrong", "drill nonsense": "no result",
          "drill too long": "left out"}  # fmt: skip


@pytest.mark.nightly
@pytest.mark.parametrize("command", steps.COMMANDS)
def test_rehearsal(rehearsed: tuple[Path, subprocess.CompletedProcess[str]], command: str) -> None:
    folder, said = rehearsed
    environment, ended, rows = read(folder, command)
    expected = {step.name: "ok" for step in steps.steps(command, rehearse=True, variants=[("", ""), ("before", "")])}
    drills = DRILLS if command == "right" else {}
    told = said.stdout[-3000:]
    assert {name: step["verdict"] for name, step in ended.items()} == expected | drills, told
    assert said.returncode == 1, "steps went wrong"
    assert environment["rehearsal"] and environment["command"].startswith(f"python3 -m benchmarks.gpu {command}")
    for name in set(expected) - set(drills) - {"ahead"}:
        assert any(row["step"] == name for row in rows), name
    with tarfile.open(folder / f"{command}.tar.gz") as tar:
        names = tar.getnames()
        packed = tar.extractfile(f"{command}.txt")
        assert packed is not None
        table = packed.read().decode()
    assert table in said.stdout and len(table.splitlines()) <= 100 and len(table) <= 12_000
    logs = [name for name in names if name.startswith(f"{command}-logs/")]
    assert len(logs) == len([v for v in (expected | drills).values() if v != "left out"])
    assert not re.search(r"(?<![\w.])/(?:work|tmp|root|home|usr)/", (folder / f"{command}.jsonl").read_text())


@pytest.mark.nightly
def test_rehearsal_leaves_few_files(rehearsed: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """A rehearsal leaves at most eight files to copy back."""
    names = {path.name for path in rehearsed[0].iterdir()}
    assert names == {f"{command}.{kind}" for command in steps.COMMANDS for kind in ("jsonl", "tar.gz")}


@pytest.mark.nightly
def test_rehearsal_finds_what_a_window_is_for(rehearsed: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    right, where, claims = (read(rehearsed[0], command)[2] for command in steps.COMMANDS)
    checked = {(row["what"], row.get("backend")) for row in right if row.get("ok") and "share" in row}
    assert {
        ("excitation", "cuda"),
        ("l2_grouped", "cuda"),
        ("cluster_fused", "cuda"),
        ("excitation", "triton"),
    } <= checked
    assert all(0 <= row["share"] <= 1 for row in right if row.get("ok") and "share" in row)
    kernels = {row["what"] for row in where if row.get("backend") == "cuda" and row["mode"] == "train"}
    assert {
        "moments",
        "excitation",
        "scale_shift_act",
        "moments_backward",
        "excitation_backward",
        "scale_shift_act_backward",
    } <= kernels
    assert {row["plan"] for row in where if row.get("mode") == "infer" and row.get("backend") == "cuda"} >= {
        "",
        "separate",
    }
    assert {row["variant"] for row in where if "variant" in row} == {"", "before"}
    assert any(row.get("ncu") and row["what"] == "cluster_fused" and row["us"] == 1260.5 for row in where)
    blocks = {row["what"]: row for row in claims if row["step"] == "blocks" and row.get("ok")}
    assert {"se_fused", "eager"} <= blocks.keys() and blocks["eager"]["over_ours"]["n"] > 1
    networks = {(row["network"], row["what"]) for row in claims if "network" in row and row.get("ok")}
    for name in ("seresnet18", "resnet18"):
        assert {(name, what) for what in ("se_fused", "eager", "se_fused compile", "compile")} <= networks
    skipped = [row for row in claims if row["what"] == "se_fused compile reduce-overhead"]
    assert skipped and all("needs a GPU" in row["skipped"] for row in skipped)


@pytest.mark.nightly
def test_what_came_back_is_kept(rehearsed: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    shutil.copy(ROOT / "benchmarks" / "results" / keep.TABLE, tmp_path)
    told = keep.keep([rehearsed[0]], tmp_path)
    place = tmp_path / "the-cpu-a-rehearsal"
    assert {"report.md", "kernels.png", "blocks.png", "networks.png", "right.jsonl", "where.txt"} <= {
        path.name for path in place.iterdir()
    }
    report = (place / "report.md").read_text()
    assert "| seresnet18 | train | 2 | se_fused compile |" in report and "![" in report
    table = (tmp_path / keep.TABLE).read_text()
    assert "| ~~CUDA: the excitation's forward launch" in table and "the CPU (a rehearsal)" in table
    assert sum("measured now" in line for line in told) == table.count("| ~~")
    with pytest.raises(ValueError, match="from a rehearsal on a CPU, which measures nothing"):
        keep.keep([rehearsed[0]], ROOT / "benchmarks" / "results")


# ---- the runner
def python(code: str, name: str = "step", **options: Any) -> Step:
    return Step(name, ("-c", code), **{"seconds": 0.1, "limit": 30.0, **options})


ROW = 'print(\'@row {"what": "x", "ok": true}\', flush=True)'


def finish(given: list[Step], folder: Path, budget: float = 60.0, jobs: int = 2) -> tuple[dict[str, Done], list[str]]:
    """(Done by step, events in their order)."""
    events: list[str] = []
    done = run(
        given, budget=budget, jobs=jobs, root=ROOT, logs=folder, environment={},
        on_row=lambda step, row: events.append(f"row {step}"), on_done=lambda d: events.append(f"done {d.step}"),
        on_start=lambda step: events.append(f"start {step}"),
    )  # fmt: skip
    return {d.step: d for d in done}, events


def test_a_step_that_hangs_costs_itself_alone(tmp_path: Path) -> None:
    """A step that ignores SIGTERM is killed, with its child process, and the next step runs."""
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']); "
        'print(\'@row {"what": "pid", "pid": %d}\' % p.pid, flush=True); print(\'@at the ticket\', flush=True); '
        "time.sleep(99)"
    )
    start = time.monotonic()
    rows: list[dict[str, Any]] = []
    (hung, after) = run(
        [python(code, "hangs", limit=1.0), python(ROW, "after")], budget=60, jobs=1, root=ROOT, logs=tmp_path,
        environment={}, on_row=lambda _, row: rows.append(row), on_done=lambda _: None,
    )  # fmt: skip
    assert (hung.verdict, after.verdict) == ("killed", "ok")
    assert "at the ticket" in hung.figure and time.monotonic() - start < 20
    (child,) = (row["pid"] for row in rows if row["what"] == "pid")
    for _ in range(50):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            break
        state = Path(f"/proc/{child}/stat")
        if state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z":
            break  # a zombie: dead, but its parent has not read its status
        time.sleep(0.1)
    else:
        pytest.fail("the child outlives its step")


def test_verdicts(tmp_path: Path) -> None:
    wrong = ROW.replace("true", "false")
    done, _ = finish(
        [
            python(ROW, "good"), python("pass", "silent"), python("raise SystemExit(3)", "fails"),
            python(wrong, "wrong"), python(f"{wrong}; raise SystemExit(1)", "wrong and says so"),
            python(f"{ROW}; import os; os.abort()", "dies"), python("print('@row {'); print('@row 7')", "nonsense"),
            Step("no tool", ("x",), 0.1, 1.0, tool="no-such-program"),
        ],
        tmp_path,
    )  # fmt: skip
    assert {name: d.verdict for name, d in done.items()} == {
        "good": "ok", "silent": "no result", "fails": "failed", "wrong": "wrong", "wrong and says so": "wrong",
        "dies": "failed", "nonsense": "no result", "no tool": "left out",
    }  # fmt: skip
    assert done["no tool"].figure == "no-such-program is not here"


def test_a_budget_that_ends_in_the_middle(tmp_path: Path) -> None:
    """At the end of the budget the running step is killed, the remaining steps are listed, and results are saved."""
    given = [
        python(ROW, "first"),
        python(f"{ROW}; import time; time.sleep(60)", "second"),
        python(ROW, "third", seconds=5),
    ]
    done, events = finish(given, tmp_path, budget=4.0, jobs=1)
    assert [done[name].verdict for name in ("first", "second", "third")] == ["ok", "killed", "left out"]
    assert "the end of the budget" in done["second"].figure and "row second" in events
    assert re.fullmatch(r"needs about 5 s, \d s are left of 4", done["third"].figure)


def test_what_measures_time_runs_alone(tmp_path: Path) -> None:
    slow = f"import time; time.sleep(0.5); {ROW}"
    _, events = finish(
        [python(slow, "a"), python(slow, "b"), python(slow, "c", alone=True), python(slow, "d")], tmp_path
    )
    at = {event: i for i, event in enumerate(events)}
    assert at["start b"] < min(at["done a"], at["done b"]), "others run beside each other"
    assert at["start c"] > max(at["done a"], at["done b"]) and at["start d"] > at["done c"]


@no_gpu
@pytest.mark.parametrize(
    "sign",
    [pytest.param(signal.SIGKILL, marks=pytest.mark.nightly), signal.SIGTERM],
    ids=["kill", "term"],
)
def test_a_window_that_is_cut_off_leaves_what_it_found(tmp_path: Path, sign: signal.Signals) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "right",
        "--rehearse",
        "--only",
        "drill",
        "--output",
        str(tmp_path),
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("== drill wrong"):
                break
        process.send_signal(sign)
        rest = process.stdout.read()
    _, ended, rows = read(tmp_path, "right")
    assert ended["drill wrong"]["verdict"] == "wrong" and any(row["what"] == "a kernel" for row in rows)
    with tarfile.open(tmp_path / "right.tar.gz") as tar:
        assert tar.extractfile("right.jsonl") is not None
        assert any("drill-wrong" in name for name in tar.getnames())
    if sign == signal.SIGTERM:
        assert "drill wrong" in rest, "the table is printed"
    subprocess.run(["pkill", "-f", "benchmarks.gpu.work.drill"], check=False)  # after SIGKILL it cannot end steps


def test_ratios_to_ours_are_told_only_where_ours_is_right(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.gpu.target import _CPU
    from benchmarks.gpu.work import networks
    from se_fused.bench.accuracy import AccuracyCheck

    pytest.importorskip("timm")

    def check(self: AccuracyCheck, candidate: Any, result: Any) -> None:
        result.status, result.note = ("differs", "wrong") if candidate.name == "se_fused" else ("ok", "")

    monkeypatch.setattr(AccuracyCheck, "check", check)
    monkeypatch.setattr(networks, "CANDIDATES", ("se_fused", "eager"))
    speeds = networks._network("seresnet18", "infer", 2, _CPU, False)
    lines = [line.removeprefix("@row ") for line in capsys.readouterr().out.splitlines() if line.startswith("@row ")]
    rows = {row["what"]: row for row in map(json.loads, lines)}
    assert rows["se_fused"]["ok"] is False and rows["eager"]["ok"] and speeds.keys() == {"eager"}
    assert "over_ours" not in rows["eager"]
    (line,) = (line for line in tables.render("claims", {}, [], [{"step": "x", **rows["eager"]}]) if "eager" in line)
    assert "x" not in line.split("eager")[1]


def test_the_build_that_is_noted_is_that_of_the_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.gpu import __main__ as command

    (tmp_path / "_build_info.py").write_text("BUILD = {'mode': 'of the pack'}\n")
    monkeypatch.setenv("SE_FUSED_LIBRARIES", "")
    monkeypatch.delitem(sys.modules, "se_fused._build_info", raising=False)
    monkeypatch.setattr(command, "_machine", lambda rehearse: (None, [("", str(tmp_path))]))
    main(["right", "--rehearse", "--only", "drill nonsense", "--output", str(tmp_path)])
    sys.modules.pop("se_fused._build_info", None)
    assert read(tmp_path, "right")[0]["build"] == {"mode": "of the pack"}


# ---- readers of the programs' output
def test_reads_pytest() -> None:
    broken = "FAILED tests/backends/cuda/test_contract.py::test_shapes[odd] - AssertionError: error 2"
    text = f"..F\n{broken}\n1 failed, 7 passed, 2 skipped in 3.2s"
    figure, rows = READERS["pytest"](text, [])
    assert figure == "1 failed, 7 passed, 2 skipped; test_shapes[odd]: AssertionError: error 2"
    assert [row["ok"] for row in rows] == [False, False] and rows[-1]["passed"] == 7
    assert READERS["pytest"]("12 passed in 1.0s", []) == ("12 passed", [{"what": "tests", "ok": True, "passed": 12}])
    assert READERS["pytest"]("Killed", []) == ("pytest printed no summary", [])
    errors = "ERROR tests/test_x.py\n2 errors in 0.5s"
    assert [row["ok"] for row in READERS["pytest"](errors, [])[1]] == [False, False]


def test_reads_the_sanitizer() -> None:
    clean = "3 passed in 9.0s\n========= ERROR SUMMARY: 0 errors"
    assert READERS["sanitizer"](clean, [])[1][-1] == {"what": "sanitizer", "ok": True, "errors": 0, "note": ""}
    text = "========= Invalid __global__ read of size 4 bytes\n3 passed in 9.0s\n========= ERROR SUMMARY: 5 errors"
    figure, rows = READERS["sanitizer"](text, [])
    assert figure == "5 errors; 3 passed" and rows[-1]["ok"] is False and "Invalid __global__ read" in rows[-1]["note"]
    assert READERS["sanitizer"]("3 passed in 9.0s", [])[1] == [], "no summary, no verdict"


def test_knows_kernels_by_the_names_of_a_profile() -> None:
    cuda = "void se_fused::cuda::(anonymous namespace)::moments_backward_kernel<__half, (se_fused::cuda::Mode)3>(Args)"
    assert kernel_of(cuda) == "moments_backward"
    assert (
        kernel_of("scale_shift_act_unaligned_kernel") == "scale_shift_act"
        and kernel_of("cluster_fused_kernel") == "cluster_fused"
    )
    assert kernel_of("void at::native::vectorized_elementwise_kernel<4>(int)") is None
    assert kernel_of("ampere_bf16_s16816gemm") is None


def test_every_kernel_of_the_backends_is_known() -> None:
    names = set()
    for file in [*(ROOT / "csrc/cuda").glob("*.cu"), *(ROOT / "se_fused/backends/triton").glob("*.py")]:
        names |= set(re.findall(r"(?:\bdef |^)(\w+_kernel)\((?:SE_CONSTANT|$|\n)", file.read_text(), re.MULTILINE))
    unknown = {name for name in names if kernel_of(name) is None}
    assert unknown <= {"conv1x1_kernel"}, "benchmarks/gpu/target.py lists them"
    assert len(names) > 10


def test_a_profile_has_what_is_read_of_it() -> None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as recorded:
        torch.ones(8).relu()
    found = launches_in(recorded, torch.autograd.DeviceType.CPU)
    assert found["other"] and all(us >= 0 for us in found["other"])
    assert launches_in(recorded, torch.autograd.DeviceType.CUDA) == {}


# ---- refusals: one line that names the remedy
def refusal(*arguments: str) -> str:
    said = window(*arguments, timeout=120)
    assert said.returncode not in (0, None)
    (line,) = [line for line in said.stderr.splitlines() if line.strip() and not line.startswith("usage:")][-1:]
    assert "Traceback" not in said.stderr
    return line


@no_gpu
def test_no_gpu() -> None:
    assert refusal("right") == (
        "benchmarks.gpu: torch finds no GPU here; --rehearse runs everything on the CPU with tiny sizes"
    )


def test_unknown_words(tmp_path: Path) -> None:
    assert "invalid choice: 'rihgt'" in refusal("rihgt")
    assert "must be a number of seconds above 0" in refusal("right", "--budget", "none")
    line = refusal("right", "--rehearse", "--only", "no such step", "--output", str(tmp_path))
    assert "matches no step of right; --list prints the steps" in line
    assert "does not exist: give the returned archive" in refusal("keep", str(tmp_path / "right.tar.gz"))


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(self: Store, done: Done) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Store, "done", full)
    with pytest.raises(SystemExit) as refused:
        main(["right", "--rehearse", "--only", "drill fail", "--output", str(tmp_path)])
    assert re.search(r"cannot write to .*: No space left on device; give another --output", str(refused.value))
    occupied = tmp_path / "file"
    occupied.write_text("")
    with pytest.raises(SystemExit, match="cannot write to"):
        main(["right", "--rehearse", "--only", "drill fail", "--output", str(occupied)])


# ---- the pack
@pytest.fixture
def packed(tmp_path: Path) -> Iterator[Path]:
    """A pack with stand-ins for the libraries, as ``pack.build`` creates it."""
    folder = tmp_path / "gpu-pack"
    folder.mkdir()
    (folder / "_C_cuda.abi3.so").write_bytes(b"machine code")
    manifest = {
        "commit": "0" * 40, "sources": pack._sources(), "torch": "2.14.1", "cuda": "13.0", "architecture": "9.0",
        "machine": os.uname().machine, "python": list(sys.version_info[:2]),
        "files": {"_C_cuda.abi3.so": pack._sha256(folder / "_C_cuda.abi3.so")},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    yield folder


def changed(folder: Path, **more: Any) -> Path:
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    return folder


def test_a_pack_that_fits(packed: Path) -> None:
    manifest, note = pack.check(packed, cuda="13.1", capability=(9, 0))
    assert manifest["architecture"] == "9.0" and note == ""
    assert "`info` lists no registers" in pack.check(changed(packed, python=[3, 99]), cuda="13.0")[1]
    assert pack.libraries(packed) == [("", str(packed))]
    variant = packed / "variants" / "before"
    shutil.copytree(packed, variant, ignore=shutil.ignore_patterns("variants"))
    assert pack.libraries(packed)[1] == ("before", f"{variant}{os.pathsep}{packed}")


@pytest.mark.parametrize(
    ("more", "options", "told"),
    [
        ({"sources": "0"}, {}, "built from other sources than this checkout: run `make gpu-pack` again"),
        ({"cuda": "12.8"}, {}, "the pack is for CUDA 12.8"),
        ({}, {"cuda": None}, "here for None"),
        ({}, {"capability": (8, 0)}, "this GPU has 8.0: make gpu-pack ARCH=8.0"),
        ({"machine": "riscv64"}, {}, "the pack is for riscv64"),
        ({"files": {"_C_cuda.abi3.so": "0"}}, {}, "copy the whole folder again"),
        ({"files": None}, {}, "manifest.json cannot be read"),
    ],
)
def test_a_pack_for_another_machine(packed: Path, more: Any, options: Any, told: str) -> None:
    with pytest.raises(pack.PackError, match=re.escape(told)) as refused:
        pack.check(changed(packed, **more), **{"cuda": "13.0", **options})
    assert "\n" not in str(refused.value)


def test_no_pack(tmp_path: Path) -> None:
    with pytest.raises(pack.PackError, match="run `make gpu-pack` on a machine with nvcc"):
        pack.check(tmp_path)
    with pytest.raises(pack.PackError, match="VARIANT must be a name"):
        pack.build("../x")
    with pytest.raises(pack.PackError, match="run `make gpu-pack` without VARIANT first"):
        pack.build("before", folder=tmp_path)
    with pytest.raises(pack.PackError, match="add VARIANT=name"):
        pack.build(folder=tmp_path, revision="HEAD")


def test_a_variant_of_an_earlier_version(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sources are those of the commit, and its manifest names it; an unknown commit is refused."""
    seen = []

    def compiled(architecture: str, sources: Path) -> Path:
        seen.append((architecture, (sources / "setup.py").exists(), sources == pack.ROOT))
        return packed

    monkeypatch.setattr(pack, "_compiled", compiled)
    pack.build("before", folder=packed, revision="HEAD")
    manifest = json.loads((packed / "variants" / "before" / "manifest.json").read_text())
    assert seen == [("9.0", True, False)]
    assert manifest["commit"] == "HEAD" and manifest["predicted"] == []
    with pytest.raises(pack.PackError, match="FROM=nothing is no commit"):
        pack.build("before", folder=packed, revision="nothing")


def test_libraries_come_from_the_folders_that_are_named(tmp_path: Path) -> None:
    """A process loads libraries from the folders in SE_FUSED_LIBRARIES, and the others from the package."""
    built = Path(backends.BACKENDS["cpu"].library)  # type: ignore[attr-defined]
    if not built.exists():
        pytest.skip("the C++ library is not built")
    shutil.copy(built, tmp_path)
    code = "from se_fused import backends as b; print(b.BACKENDS['cpu'].library); print(b.BACKENDS['cuda'].library)"
    environment = {**os.environ, "SE_FUSED_LIBRARIES": f"{tmp_path / 'none'}{os.pathsep}{tmp_path}"}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, text=True, capture_output=True, check=True
    )
    cpu, cuda = said.stdout.split()
    assert Path(cpu) == (tmp_path / built.name).resolve() and Path(cuda).parent.name == "se_fused"


# ---- saving results
def claims_of_the_table() -> list[str]:
    text = (ROOT / "benchmarks" / "results" / keep.TABLE).read_text()
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")][1:]
    assert all(len(row) == 4 for row in rows)
    return [name for row in rows for name in re.findall(r"`((?:right|where|claims): [^`]+)`", row[1])]


def test_the_table_names_steps_that_there_are() -> None:
    """Each step in the table exists, and each step that measures or checks something settles a claim."""
    there = [f"{command}: {step.name}" for command in steps.COMMANDS for step in steps.steps(command, rehearse=False)]
    named = claims_of_the_table()
    assert [name for name in named if not fnmatch.filter(there, name)] == []
    settled = {step for name in named for step in fnmatch.filter(there, name)}
    assert {step for step in there if not step.endswith("ahead")} == settled


def test_strikes_what_all_named_steps_settled() -> None:
    text = (
        "| claim | step | expected | measured |\n"
        "| A | `right: excitation *` | ok | |\n"
        "| B | `where: excitation cuda` | 5 | |\n"
    )
    ended = [
        {"step": f"excitation {name}", "verdict": "ok", "figure": f"{name} | 3 cases"} for name in ("cuda", "triton")
    ]
    told, struck = keep.strike(text, "right", "H100", "abcdef", ended)
    settled = "| ~~A~~ | `right: excitation *` | ok | cuda / 3 cases; triton / 3 cases (H100, abcdef) |"
    assert struck == ["A"] and settled in told
    assert "| B | `where: excitation cuda` | 5 | |" in told
    again, _ = keep.strike(told, "right", "H200", "123456", ended)
    assert "| ~~A~~ |" in again and "(H200, 123456)" in again
    ended[1]["verdict"] = "wrong"
    assert keep.strike(text, "right", "H100", "abcdef", ended) == (text, [])


def test_a_damaged_archive(tmp_path: Path) -> None:
    bad = tmp_path / "right.tar.gz"
    bad.write_bytes(b"\x1f\x8b nothing")
    with pytest.raises(ValueError, match=r"right.tar.gz cannot be read as right's archive"):
        keep.keep([bad], tmp_path)
    (tmp_path / "other.zip").write_text("")
    with pytest.raises(
        ValueError, match=re.escape("is not, and does not contain, one of right.tar.gz, where.tar.gz, claims.tar.gz")
    ):
        keep.keep([tmp_path / "other.zip"], tmp_path)
    with pytest.raises(ValueError, match="the first line is not an environment"):
        load('{"kind": "row"}\n')
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        load("{\n{}\n")


def test_tables_fit_into_what_is_kept() -> None:
    ended = [{"step": f"step {i}", "verdict": "ok", "seconds": 1.0, "figure": "x" * 300} for i in range(40)]
    rows = [{"step": "s", "what": "k", "ok": False, "case": str(i), "note": "n"} for i in range(200)]
    lines = tables.render("right", {"gpu": "H100", "commit": None}, ended, rows)
    assert len(lines) <= 100 and sum(map(len, lines)) + len(lines) <= 12_000
    assert any(re.fullmatch(r"\.\.\. \d+ more lines in right\.tar\.gz", line) for line in lines)
    assert lines[-1].startswith("step 39")
