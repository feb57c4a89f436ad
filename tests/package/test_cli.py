"""Tests of the command line: each command, its exit codes, its errors of one line, and the files that it writes."""

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from support.provenance import naming_folders
from support.results import written
from typer.testing import CliRunner

import se_fused
from se_fused import __main__, _atomic_write, backends, cli, functional
from se_fused.bench import compare
from se_fused.bench.workloads import block, network
from se_fused.bench.workloads.base import Candidate, Workload
from se_fused.bench.workloads.block import BlockWorkload

BLOCK = ["compare", "2,32,8,8", "--no-compile", "--repeats", "2"]
PNG = b"\x89PNG"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Skip large copies and repetitions, which only times need; these tests check everything except the times.

    Run on one thread: on a busy machine, two wait for each other ten times as long as they work.
    """
    monkeypatch.setattr(compare, "copy_bandwidth", lambda device: 1e10)
    monkeypatch.setattr(compare, "_ROUNDS", (1, 1))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def invoke(*arguments: str):
    return CliRunner().invoke(cli.app, list(arguments), catch_exceptions=False)


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(Path(se_fused.__file__).parent.parent), **environment}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env, check=False)


# ---- the package
@pytest.mark.quick
def test_public_names():
    for name in se_fused.__all__:
        assert hasattr(se_fused, name), name
    assert callable(se_fused.info), "the function, not the module of that name"
    assert se_fused.__version__ == se_fused.info()["se_fused"]


def test_import_is_light():
    heavy = ("matplotlib", "typer", "rich", "PIL", "timm", "torchvision", "triton")
    done = python("-c", f"import sys, torch, se_fused; print([m for m in {heavy!r} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


# ---- info
def test_info_json():
    done = python("-m", "se_fused", "info", "--json")
    assert done.returncode == 0, done.stderr
    about = json.loads(done.stdout)
    assert about["versions"]["torch"] == torch.__version__
    choice = {(c["op"], c["device"], c["dtype"]): c for c in about["choices"]}
    assert len(choice) >= 3 * 4
    assert choice["squeeze_excite", "cpu", "float64"]["auto"] == "reference"
    assert set(choice["squeeze_excite", "cpu", "float64"]["why_not"]) == set(backends.BACKENDS)
    for c in about["choices"]:
        if c["device"] == "cpu":  # the choice is the one that find() makes
            x = torch.ones(1, 2, 3, dtype=getattr(torch, c["dtype"]))
            backend, _ = backends.find("cpu", x.dtype)
            assert c["auto"] == ("reference" if backend is None else backend.name)


def test_info_table():
    shown = invoke("info")
    assert shown.exit_code == 0
    for wanted in (
        torch.__version__,
        "batch_norm_squeeze_excite",
        "float64",
        "plain PyTorch",
        "Backends that auto uses",
    ):
        assert wanted in shown.output


def test_info_keeps_a_load_error(monkeypatch):
    error = "_C_cpu.abi3.so does not load: undefined symbol: torch_call_dispatcher [x]"
    monkeypatch.setattr(backends.BACKENDS["cpu"], "load_error", error)
    about = se_fused.info()
    assert about["backends"]["cpu"]["reason"] == error
    assert {c["auto"] for c in about["choices"] if c["device"] == "cpu"} == {"reference"}
    assert about["choices"][0]["why_not"]["cpu"] == error
    assert error in re.sub(r"\s+", " ", invoke("info").output)


def test_info_tells_another_torch(monkeypatch):
    built = {"mode": "cpu", "torch": "2.11.0+cpu", "target_abi": "2.10", "compiler": "g++ 12"}
    monkeypatch.setitem(sys.modules, "se_fused._build_info", types.SimpleNamespace(BUILD=built))
    against = se_fused.info()["build"]["against"]
    assert "2.11.0+cpu" in against and torch.__version__ in against and "2.10" in against
    monkeypatch.setitem(sys.modules, "se_fused._build_info", None)  # makes the import fail
    assert "_build_info" in se_fused.info()["build"]["note"]


def test_without_cli_packages():
    start = "import sys; sys.modules['typer'] = None; from se_fused.__main__ import main; sys.exit(main({!r}))"
    done = python("-c", start.format(["info"]))
    assert done.returncode == 0 and json.loads(done.stdout)["se_fused"] == se_fused.__version__
    done = python("-c", start.format(["compare", "stages"]))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and 'pip install "se_fused[cli]"' in done.stderr


# ---- verify: the command for se_fused.testing.verify
@pytest.mark.parametrize("as_json", [False, True])
def test_verify(as_json: bool, monkeypatch):
    asked = []
    fake = types.SimpleNamespace(verify_command=lambda wanted: asked.append(wanted) or 1)
    monkeypatch.setitem(sys.modules, "se_fused.testing.verify", fake)
    assert invoke("verify", *(["--json"] if as_json else [])).exit_code == 1
    assert asked == [as_json]


# ---- invalid arguments
WRONG = [
    (["compare", "resnet51"], "TARGET", "seresnet50"),
    (["compare", "8,256,56"], "TARGET", "N,C,H,W"),
    (["compare", "8,256,0,56"], "TARGET", "at least 1"),
    (["compare"], "", "target"),
    (["compare", "stages", "--device", "tpu"], "--device", "'tpu'"),
    (["compare", "stages", "--device", "cuda:99"], "--device", "GPU"),
    (["compare", "stages", "--dtype", "float8"], "--dtype", "bfloat16"),
    (["compare", "stages", "--layout", "nhwc"], "--layout", "channels_last"),
    (["compare", "stages", "--mode", "test"], "--mode", "train"),
    (["compare", "stages", "--batch", "0"], "--batch", "at least 1"),
    (["compare", "stages", "--repeats", "-1"], "--repeats", "at least 1"),
    (["compare", "stages", "--repeats", "many"], "--repeats", ""),
    (["compare", "stages", "--size", "64"], "--size", "models"),
    (["compare", "seresnet18", "--size", "8"], "--size", "at least 32"),
    (["compare", "stages", "--json", "/nowhere/at/all.json"], "--json", "/nowhere/at"),
    (["compare", "stages", "--plot", "/nowhere/at/all.png"], "--plot", "/nowhere/at"),
    (["compare", "stages", "--plot", "picture.txt"], "--plot", ".png"),
    (["compare", "stages", "--bogus"], "--bogus", ""),
    (["report"], "", "RESULTS.json"),
    (["report", "/nowhere/results.json"], "RESULTS.json", "no such file"),
    (["report", __file__], "RESULTS.json", "not JSON"),
    (["report", "/nowhere/results.json", "--output", "/nowhere/at/all"], "--output", "no folder /nowhere/at"),
    (["report", "/nowhere/results.json", "--output", __file__], "--output", "is a file"),
    (["changes", __file__], "", "AFTER.json"),
    (["changes", "/nowhere/a.json", "/nowhere/b.json"], "BEFORE.json", "/nowhere/a.json: there is no such file"),
    (["changes", "a", "b", "--json", "/nowhere/at/all.json"], "--json", "/nowhere/at"),
    (["infos"], "infos", ""),
]


@pytest.mark.quick
@pytest.mark.parametrize(("arguments", "option", "says"), WRONG, ids=[" ".join(w[0]) for w in WRONG])
def test_wrong_usage_is_one_line(arguments: list[str], option: str, says: str, capfd):
    assert __main__.main(arguments) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.startswith("se-fused")
    assert option in captured.err and says in captured.err


def test_applications_are_imported_when_they_are_asked_for():
    """info, verify and compare import no application; the commands of an application, and help, do."""
    code = """
import sys
from importlib.metadata import entry_points
from se_fused import cli
assert cli.run({arguments!r}) == 0
names = [found.value.partition(":")[0] for found in entry_points(group="se_fused.applications")]
assert names and all((name in sys.modules) == {imported} for name in names)
assert any(name.startswith("se_fused.apps") for name in sys.modules) == {imported}
"""
    for arguments, imported in ((["info"], False), (["compare", "--help"], False), (["--help"], True)):
        done = python("-c", code.format(arguments=arguments, imported=imported))
        assert done.returncode == 0, done.stderr


def test_an_applications_command_is_named_in_errors(capfd):
    assert __main__.main(["fracture", "train", "--bogus"]) == 2
    assert capfd.readouterr().err.startswith("se-fused fracture train: ")
    assert __main__.main(["fracture"]) in (0, 2) and "train" in "".join(capfd.readouterr())


def test_help_without_a_command(capfd):
    assert __main__.main([]) == 0
    assert "compare" in capfd.readouterr().out


# ---- compare
def test_compare_a_block(tmp_path):
    plot, file = tmp_path / "speed.png", tmp_path / "all.json"
    shown = invoke(*BLOCK, "--plot", str(plot), "--json", str(file))
    assert shown.exit_code == 0, shown.output
    assert "2×32×8×8" in shown.output and "MB saved for the backward pass" in shown.output
    assert plot.read_bytes().startswith(PNG)
    told = json.loads(file.read_text())
    assert told["command"].split()[0] == "se-fused" and not naming_folders(told)
    assert told["versions"]["torch"] == torch.__version__ and told["cpu"]["threads"] == torch.get_num_threads()
    assert len(told["rows"]) == 2 * 2 * 2  # modes, dtypes, layouts
    for row in told["rows"]:
        assert row["ok"] and row["counted_bytes"] > 0 and row["over_copy"].keys() == {"same_size", "memory"}
        ours, eager = row["results"]
        assert (ours["name"], eager["name"]) == ("se_fused", "eager")
        assert ours["timing"]["n"] == 2 and ours["peak_bytes"] > 0
        assert row["speedups"]["eager"] == pytest.approx(eager["timing"]["median"] / ours["timing"]["median"])
        if row["workload"]["mode"] == "train":
            assert 0 < ours["saved_bytes"] < eager["saved_bytes"]
            assert ours["errors"].keys() >= {"y", "dx", "dresidual", "dbn_weight", "dfc1_weight", "running_var"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all.json", "speed.png"]  # no temporary file is left


def test_compare_json_on_stdout_is_json_alone(capfd):
    arguments = [*BLOCK, "--mode", "infer", "--dtype", "float32", "--layout", "contiguous", "--json", "-"]
    assert __main__.main(arguments) == 0
    captured = capfd.readouterr()
    told = json.loads(captured.out)
    assert captured.err == "", "no progress bar where stderr is no terminal"
    assert len(told["rows"]) == 1 and told["command"] == "se-fused " + " ".join(arguments)


@pytest.mark.parametrize("spoil", [lambda y: y * 1.001, lambda y: y + 1e-3, lambda y: torch.full_like(y, torch.nan)])
def test_compare_never_times_a_wrong_result(spoil, monkeypatch, tmp_path):
    right = functional.squeeze_excite
    monkeypatch.setattr(functional, "squeeze_excite", lambda *a, **k: spoil(right(*a, **k)))
    plot = tmp_path / "speed.png"
    arguments = ["--mode", "infer", "--dtype", "float32", "--layout", "contiguous", "--plot", str(plot)]
    shown = invoke(*BLOCK, *arguments, "--json", "-")
    assert shown.exit_code == 1
    (row,) = json.loads(shown.stdout)["rows"]
    assert not row["ok"] and not row["speedups"]
    assert row["results"][0]["status"] == "differs" and "allowed" in row["results"][0]["note"]
    assert all(result["timing"] is None for result in row["results"])
    assert plot.read_bytes().startswith(PNG)
    assert "differs, not timed" in invoke(*BLOCK, *arguments).output


def test_compare_finds_a_wrong_gradient(monkeypatch):
    right = functional.batch_norm_squeeze_excite

    def wrong(x, *a, **k):
        return right(x + (x * 1e-3).detach() - (x.detach() * 1e-3) + 0 * x + 0.01 * (x - x.detach()), *a, **k)

    monkeypatch.setattr(functional, "batch_norm_squeeze_excite", wrong)
    workload = BlockWorkload((2, 16, 6, 6), torch.float32, "contiguous", "train", "cpu")
    row = compare.measure(workload, compiled=False, repeats=1)
    assert not row.ok and re.fullmatch(r"differs from float64 in dx: .*", row.results[0].note)


def test_compare_says_what_a_dtype_lacks(monkeypatch):
    def missing(*_, **__):
        raise NotImplementedError("no kernel for this\nand a long trace")

    monkeypatch.setattr(functional, "squeeze_excite", missing)
    shown = invoke(*BLOCK, "--mode", "infer", "--dtype", "float32", "--layout", "contiguous")
    assert shown.exit_code == 1 and "failed, not timed: NotImplementedError: no kernel for this" in shown.output


def test_compare_goes_on_without_a_compiler(monkeypatch):
    def broken(**_):
        raise RuntimeError("InvalidCxxCompiler: no working C++ compiler\nset CXX")

    monkeypatch.setattr(block, "compiled", lambda *_, **__: broken)
    row = compare.measure(BlockWorkload((2, 8, 4, 4), torch.float32, "contiguous", "infer", "cpu"), repeats=1)
    assert row.ok and row.speedups.keys() == {"eager"}
    assert row.results[2].note == "RuntimeError: InvalidCxxCompiler: no working C++ compiler"


class Jumping(Workload):
    """A workload whose fused candidate is wrong for the first inputs only."""

    title, mode, layout, shape, dtype, device = "t", "infer", "both", (1,), torch.float32, torch.device("cpu")
    baseline, layouts, seconds, seed = "", ("contiguous",), 1.0, 0

    def __init__(self, draws: int) -> None:
        self.draws = draws

    def draw(self, seed: int) -> None:
        self.seed = seed

    def truth(self):
        return {"y": torch.ones(3, dtype=torch.float64)}

    def candidate(self, name: str, layout: str) -> Candidate:
        def results():
            return {"y": torch.ones(3) + (name == "se_fused" and self.seed < 2)}

        return Candidate(name, layout, results, results, results, ())


@pytest.mark.parametrize(("draws", "ok"), [(2, False), (3, True)])
def test_agreement_draws_again(draws: int, ok: bool):
    row = compare.measure(Jumping(draws), compiled=False, repeats=1)
    assert row.ok is ok and row.draws == draws


def test_compare_a_model_without_timm(monkeypatch):
    """Without timm, the baseline is our model with the reference backend, and the table reports it."""
    monkeypatch.setitem(sys.modules, "timm", None)
    seen = set()
    right = network.use_backend

    def spy(name):
        seen.add(name)
        return right(name)

    monkeypatch.setattr(network, "use_backend", spy)
    arguments = ["--size", "32", "--batch", "2", "--layout", "contiguous", "--mode", "infer", "--repeats", "1"]
    shown = invoke("compare", "seresnet18", "--no-compile", *arguments)
    assert shown.exit_code == 0, shown.output
    assert "our model in plain PyTorch (timm is not installed)" in shown.output
    assert seen == {"reference"} and backends.forced() == "auto"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compare_a_model_with_timm(dtype: str):
    pytest.importorskip("timm")
    arguments = ["--size", "32", "--batch", "4", "--dtype", dtype, "--repeats", "1", "--json", "-"]
    shown = invoke("compare", "seresnet18", "--no-compile", *arguments)
    assert shown.exit_code == 0, shown.output
    infer, train = json.loads(shown.stdout)["rows"]
    assert infer["workload"]["baseline"].startswith("timm ") and infer["results"][0]["errors"].keys() == {"logits"}
    assert train["results"][0]["errors"].keys() == {"loss", "d(convolutions)", "d(SE)", "d(norms)"}
    assert train["results"][0]["saved_bytes"] > 0


# ---- report and changes
def test_report(tmp_path):
    file, folder = written(tmp_path / "results.json", small=True), tmp_path / "report"
    shown = invoke("report", str(file))
    assert shown.exit_code == 0 and shown.output.startswith("# se_fused") and "2.20× timm" in shown.output
    assert list(tmp_path.iterdir()) == [file]
    assert invoke("report", str(file), "--output", str(folder)).output == shown.output
    document = (folder / "report.md").read_text()
    pictures = re.findall(r"!\[.*\]\((.*)\)", document)
    assert document.startswith(shown.output) and "roofline.png" in pictures
    assert sorted(p.name for p in folder.iterdir()) == sorted([*pictures, "report.md"])


def test_report_without_matplotlib(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    file, folder = written(tmp_path / "results.json", small=True), tmp_path / "report"
    assert __main__.main(["report", str(file), "--output", str(folder)]) == 2
    captured = capfd.readouterr()
    assert "--output" in captured.err and "pip install matplotlib" in captured.err and captured.err.count("\n") == 1
    assert captured.out == "" and not folder.exists()
    assert __main__.main(["report", str(file)]) == 0


def test_changes(tmp_path, capfd):
    before, to = written(tmp_path / "before.json"), tmp_path / "changes.json"
    same, other = written(tmp_path / "same.json", seed=1, noise=0.01), written(tmp_path / "other.json", cpu="Other CPU")
    assert __main__.main(["changes", str(before), str(same), "--json", str(to)]) == 0
    assert ": 0 slower, 0 faster, 124 within noise" in capfd.readouterr().out
    assert len(json.loads(to.read_text())["judged"]) == 124
    slow = json.loads(same.read_text())
    for entry in slow["benchmarks"]:
        if entry["extra_info"]["candidate"] == "se_fused" and entry["extra_info"]["kind"] == "block":
            entry["extra_info"]["seconds"] = {k: v * 1.5 for k, v in entry["extra_info"]["seconds"].items()}
    same.write_text(json.dumps(slow))
    assert __main__.main(["changes", str(before), str(same)]) == 1
    assert "## Slower" in capfd.readouterr().out
    assert __main__.main(["changes", str(before), str(other)]) == 2
    told = capfd.readouterr().err
    assert "AFTER.json" in told and "Other CPU" in told and told.count("\n") == 1


# ---- written files
def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    _atomic_write.write_text(file, "old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        _atomic_write.write_text(file, "new")
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
