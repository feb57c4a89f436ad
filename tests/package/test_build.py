"""Tests of setup.py: each SE_FUSED_BUILD builds what it should or reports what is missing; contents of wheels."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
from support.paths import ROOT

import se_fused
from se_fused.backends import BACKENDS

SCRIPTS = ["setup.py", "build_backend.py", "build_cuda.py"]
NEEDED = [*SCRIPTS, "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "se_fused"]
COMPILER = shutil.which("c++") or shutil.which("g++")
# The real kernels take minutes to compile, and are compiled to run this suite. A small library replaces them here.
REGISTER_CPP = """
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
torch::stable::Tensor twice(const torch::stable::Tensor& x);
STABLE_TORCH_LIBRARY(se_fused_test, m) { m.def("twice(Tensor x) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(se_fused_test, CPU, m) { m.impl("twice", TORCH_BOX(&twice)); }
"""
TWICE_CPP = """
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
torch::stable::Tensor twice(const torch::stable::Tensor& x) {
  STD_TORCH_CHECK(x.is_contiguous(), "x is not contiguous");
  auto y = torch::stable::empty_like(x);
  for (int64_t i = 0; i < x.numel(); ++i) y.mutable_data_ptr<float>()[i] = 2 * x.const_data_ptr<float>()[i];
  return y;
}
"""
TWICE_CU = """
__global__ void twice(const float* x, float* y) { y[threadIdx.x] = 2 * x[threadIdx.x]; }
void launch(const float* x, float* y, int n) { twice<<<1, n>>>(x, y); }
"""
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="runs from a source tree")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the package, without libraries built in place, with small C++ sources."""
    return copy_sources(tmp_path / "tree")


def copy_sources(to: Path) -> Path:
    to.mkdir(parents=True)
    ignore = shutil.ignore_patterns("*.so", "_build_info.py", "__pycache__")
    for name in NEEDED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=ignore)
        else:
            shutil.copy(source, to / name)
    (to / "csrc/cpu").mkdir(parents=True)
    (to / "csrc/register.cpp").write_text(REGISTER_CPP)
    (to / "csrc/cpu/twice.cpp").write_text(TWICE_CPP)
    return to


def hide_torch(folder: Path) -> dict[str, str]:
    """Environment variables with which torch is not installed."""
    (folder / "torch").mkdir(parents=True)
    (folder / "torch/__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")\n")
    return {"PYTHONPATH": str(folder)}


def hide_compiler(folder: Path) -> dict[str, str]:
    """Environment variables with which no compiler is found."""
    folder.mkdir()
    return {"PATH": str(folder), "CXX": ""}


def run(command: list[str], cwd: Path, mode: str | None = None, **env: str) -> tuple[int, str]:
    """(exit status, all output) of a command with SE_FUSED_BUILD=mode."""
    ours = ("SE_FUSED_BUILD", "CXX", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST")
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    environment |= {"SE_FUSED_BUILD": mode} if mode else {}
    result = subprocess.run(
        command,
        cwd=cwd,
        env=environment | env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return result.returncode, result.stdout


def wheel(tree: Path, mode: str | None = None, **env: str) -> tuple[int, str]:
    pip = [sys.executable, "-m", "pip", "wheel", "-v", "--no-index", "--no-build-isolation", "--no-deps"]
    return run([*pip, "-w", "out", "."], tree, mode, **env)


def only_wheel(tree: Path) -> zipfile.ZipFile:
    [path] = (tree / "out").glob("*.whl")
    return zipfile.ZipFile(path)


def build_info(text: str) -> dict[str, object]:
    return ast.literal_eval(text.partition("BUILD = ")[2])


def test_unknown_mode_names_the_known_ones(tree: Path) -> None:
    status, said = wheel(tree, "banana")
    assert status != 0
    assert "SE_FUSED_BUILD=banana is unknown; it is one of auto, cpu, cuda, none" in said
    assert "Traceback" not in said


def test_none_needs_neither_compiler_nor_torch(tree: Path, tmp_path: Path) -> None:
    # Files of earlier builds and of an installation in place must not enter the wheel.
    (tree / "build/lib/se_fused").mkdir(parents=True)
    (tree / "build/lib/se_fused/removed_long_ago.py").touch()
    (tree / "se_fused/_C_cpu.abi3.so").touch()
    status, said = wheel(tree, "none", **hide_torch(tmp_path / "torchless"), **hide_compiler(tmp_path / "empty"))
    assert status == 0, said
    archive = only_wheel(tree)
    assert archive.filename.endswith("-py3-none-any.whl")
    names = archive.namelist()
    assert {"se_fused/py.typed", "se_fused/functional/__init__.py", "se_fused/ops/__init__.py"} <= set(names)
    assert not [
        name for name in names if name.endswith(".so") or "removed" in name or name.startswith(("tests", "csrc"))
    ]
    built = build_info(archive.read("se_fused/_build_info.py").decode())
    assert (built["mode"], built["requested"], built["torch"]) == ("none", "none", None)


def test_editable_none_removes_the_kernels_of_an_earlier_build(tree: Path) -> None:
    leftover = tree / "se_fused/_C_cpu.abi3.so"
    leftover.touch()
    hook = "import build_backend; build_backend.build_editable('out')"
    (tree / "out").mkdir()
    status, said = run([sys.executable, "-c", hook], tree, "none")
    assert status == 0, said
    assert not leftover.exists()
    assert build_info((tree / "se_fused/_build_info.py").read_text())["mode"] == "none"


@pytest.mark.parametrize("mode", ["cpu", "cuda"])
def test_a_requested_build_without_compiler_fails(tree: Path, tmp_path: Path, mode: str) -> None:
    status, said = wheel(tree, mode, **hide_compiler(tmp_path / "empty"))
    assert status != 0
    assert f"SE_FUSED_BUILD={mode}: no C++ compiler" in said
    assert "apt-get install g++" in said
    assert "Traceback" not in said


def test_auto_without_compiler_warns_and_installs_python(tree: Path, tmp_path: Path) -> None:
    status, said = wheel(tree, **hide_compiler(tmp_path / "empty"))
    assert status == 0, said
    [warning] = [line.strip() for line in said.splitlines() if "WARNING: se_fused" in line]
    assert "apt-get install g++" in warning
    assert "without compiled kernels" in warning
    archive = only_wheel(tree)
    assert archive.filename.endswith("-py3-none-any.whl")
    # pip hides the warning without -v, so the reason is saved for `se-fused info`.
    assert "apt-get install g++" in str(build_info(archive.read("se_fused/_build_info.py").decode())["note"])


def test_a_named_compiler_that_is_not_there_is_named(tree: Path) -> None:
    status, said = wheel(tree, "cpu", CXX="/nowhere/g++")
    assert status != 0
    assert "/nowhere/g++ was not found" in said


@pytest.mark.skipif(not COMPILER, reason="needs a C++ compiler")
@pytest.mark.parametrize("mode", ["auto", "cpu"])
def test_missing_torch_is_said_without_a_traceback(tree: Path, tmp_path: Path, mode: str) -> None:
    status, said = wheel(tree, mode, **hide_torch(tmp_path / "torchless"))
    assert status != 0
    assert "torch>=2.11" in said
    assert "pip install torch setuptools ninja" in said
    assert "Traceback" not in said


@pytest.mark.skipif(not COMPILER, reason="needs a C++ compiler")
def test_cuda_says_why_it_cannot_be_built(tree: Path, tmp_path: Path) -> None:
    status, said = wheel(tree, "cuda")
    assert status != 0
    assert "SE_FUSED_BUILD=cuda: this version has no CUDA sources yet" in said

    (tree / "csrc/cuda").mkdir()
    (tree / "csrc/cuda/twice.cu").write_text(TWICE_CU)
    status, said = wheel(tree, "cuda", CUDA_HOME=str(tmp_path / "nowhere"))
    assert status != 0
    assert re.search(r"SE_FUSED_BUILD=cuda: (no CUDA [\d.]+ toolkit|torch \S+ is a build without CUDA)", said)
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("mode", "gpus", "asked", "toolkit", "chosen"),
    [
        ("auto", [], "", (13, 0), ""),
        ("auto", [(9, 0)], "", (13, 0), "9.0"),
        ("auto", [(9, 0), (8, 0), (9, 0)], "", (13, 0), "8.0;9.0"),
        ("auto", [(7, 5)], "", (13, 0), ""),
        ("auto", [(7, 5), (8, 6)], "", (13, 0), "8.6"),
        ("auto", [(8, 7), (10, 3)], "", (13, 0), "8.6;10.0"),  # they run machine code of these
        ("auto", [(9, 0), (10, 0)], "", (12, 6), "8.0;8.6;8.9;9.0+PTX"),  # the toolkit is older than the GPU
        ("auto", [], "9.0", (13, 0), "9.0"),
        ("auto", [(8, 0)], "9.0;12.0+PTX", (13, 0), "9.0;12.0+PTX"),
        ("cuda", [], "", (13, 0), "8.0;8.6;8.9;9.0;10.0;12.0+PTX"),
        ("cuda", [(9, 0)], "", (12, 6), "8.0;8.6;8.9;9.0+PTX"),  # a wheel is for other machines too
        ("cuda", [(9, 0)], "8.6", (13, 0), "8.6"),
    ],
)
def test_architectures_are_those_in_sight_or_asked_for(
    monkeypatch: pytest.MonkeyPatch, mode: str, gpus: list[tuple], asked: str, toolkit: tuple, chosen: str
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from build_cuda import choose_architectures

    found, reason = choose_architectures(mode, gpus, asked, toolkit)
    assert found == chosen
    assert bool(reason) != bool(chosen)
    if reason:
        assert reason.startswith("the GPU is older than sm_80; " if gpus else "no GPU was found; ")
        assert "SE_FUSED_BUILD=cuda or TORCH_CUDA_ARCH_LIST=9.0 compiles CUDA kernels" in reason and "\n" not in reason


needs_nvcc = pytest.mark.skipif(
    not torch.version.cuda or not shutil.which("nvcc"), reason="needs a torch with CUDA, and nvcc"
)


@pytest.mark.nightly
@needs_nvcc
def test_auto_without_a_gpu_compiles_no_cuda_kernels_and_says_so(tree: Path) -> None:
    (tree / "csrc/cuda").mkdir()
    (tree / "csrc/cuda/twice.cu").write_text(TWICE_CU)
    status, said = wheel(tree, CUDA_VISIBLE_DEVICES="")
    assert status == 0, said
    archive = only_wheel(tree)
    assert [name for name in archive.namelist() if name.endswith(".so")] == ["se_fused/_C_cpu.abi3.so"]
    built = build_info(archive.read("se_fused/_build_info.py").decode())
    assert (built["mode"], built["requested"], built["arch_list"]) == ("cpu", "auto", None)
    assert str(built["note"]).startswith("no GPU was found; SE_FUSED_BUILD=cuda or TORCH_CUDA_ARCH_LIST")
    assert f"se_fused: CPU kernels; no CUDA kernels: {built['note']}\n" in said


@pytest.mark.nightly
@needs_nvcc
def test_cuda_kernels_are_built_without_a_gpu(tree: Path) -> None:
    (tree / "csrc/cuda").mkdir()
    (tree / "csrc/cuda/twice.cu").write_text(TWICE_CU)
    status, said = wheel(tree, "cuda", TORCH_CUDA_ARCH_LIST="9.0;12.0+PTX")
    assert status == 0, said
    archive = only_wheel(tree)
    libraries = [name for name in archive.namelist() if name.endswith(".so")]
    assert libraries == ["se_fused/_C_cpu.abi3.so", "se_fused/_C_cuda.abi3.so"]
    assert set(re.findall(r",code=(\w+)", said)) == {"sm_90", "sm_120", "compute_120"}
    assert "se_fused: CPU kernels; CUDA kernels for 9.0;12.0+PTX\n" in said
    built = build_info(archive.read("se_fused/_build_info.py").decode())
    assert (built["mode"], built["cuda"], built["arch_list"]) == ("cuda", torch.version.cuda, "9.0;12.0+PTX")


def cpu_wheel_built_in(folder: Path) -> zipfile.ZipFile:
    tree = copy_sources(folder)
    status, said = wheel(tree, "cpu", SOURCE_DATE_EPOCH="1700000000")
    assert status == 0, said
    return only_wheel(tree)


@pytest.fixture(scope="module")
def cpu_wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel with a CPU library."""
    return cpu_wheel_built_in(tmp_path_factory.mktemp("wheel") / "one")


@pytest.mark.skipif(not COMPILER, reason="needs a C++ compiler")
class TestCpuWheel:
    def test_one_wheel_for_every_python(self, cpu_wheel: zipfile.ZipFile) -> None:
        archive = cpu_wheel
        assert re.search(r"-cp311-abi3-linux_\w+\.whl$", archive.filename or "")
        assert [name for name in archive.namelist() if name.endswith(".so")] == ["se_fused/_C_cpu.abi3.so"]
        built = build_info(archive.read("se_fused/_build_info.py").decode())
        assert (built["mode"], built["torch"], built["target_abi"]) == ("cpu", torch.__version__, "2.10")

    @pytest.mark.nightly
    def test_the_same_bytes_wherever_it_is_built(self, cpu_wheel: zipfile.ZipFile, tmp_path: Path) -> None:
        elsewhere = cpu_wheel_built_in(tmp_path / "a/longer/path with blanks")
        one, other = ({name: archive.read(name) for name in archive.namelist()} for archive in (cpu_wheel, elsewhere))
        assert one.keys() == other.keys()
        assert [name for name in one if one[name] != other[name]] == []

    def test_library_stands_on_the_stable_abi_alone(self, cpu_wheel: zipfile.ZipFile, tmp_path: Path) -> None:
        check_stable(cpu_wheel.extract("se_fused/_C_cpu.abi3.so", tmp_path))

    def test_library_works_and_names_its_sources_shortly(self, cpu_wheel: zipfile.ZipFile, tmp_path: Path) -> None:
        library = cpu_wheel.extract("se_fused/_C_cpu.abi3.so", tmp_path)
        code = f"""if True:
            import torch
            torch.ops.load_library({library!r})
            assert torch.ops.se_fused_test.twice(torch.ones(3)).tolist() == [2, 2, 2]
            torch.ops.se_fused_test.twice(torch.ones(2, 3).t())
        """
        status, said = run([sys.executable, "-c", code], tmp_path)
        assert status != 0
        assert re.search(r"RuntimeError: twice, csrc/cpu/twice\.cpp:\d+, x is not contiguous", said), said


@pytest.mark.nightly
@pytest.mark.skipif(not COMPILER, reason="needs a C++ compiler")
def test_introspection_rides_in_the_wheel_for_every_python(tree: Path, tmp_path: Path) -> None:
    pytest.importorskip("pybind11")
    for name in ("introspect.cpp", "introspection.h"):
        shutil.copy(ROOT / "csrc" / name, tree / "csrc")
    status, said = wheel(tree, "cpu")
    assert status == 0, said
    archive = only_wheel(tree)
    assert re.search(r"-cp311-abi3-linux_\w+\.whl$", archive.filename or "")
    ours = f"se_fused/_introspect{sysconfig.get_config_var('EXT_SUFFIX')}"  # Python of another version does not find it
    assert sorted(name for name in archive.namelist() if name.endswith(".so")) == ["se_fused/_C_cpu.abi3.so", ours]
    library = Path(archive.extract(ours, tmp_path))
    assert str(tree).encode() not in library.read_bytes()
    if shutil.which("readelf"):
        _, dynamic = run(["readelf", "-d", str(library)], ROOT)
        assert not re.search(r"torch|libc10|cuda|RPATH|RUNPATH", dynamic)

    shutil.rmtree(tree / "out")
    (tmp_path / "none").mkdir()
    (tmp_path / "none/sitecustomize.py").write_text(
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'pybind11' else find(name, package)\n"
    )
    status, said = wheel(tree, "cpu", PYTHONPATH=str(tmp_path / "none"))
    assert status == 0, said
    assert [name for name in only_wheel(tree).namelist() if name.endswith(".so")] == ["se_fused/_C_cpu.abi3.so"]


def check_stable(library: str) -> None:
    """Check that the library uses libtorch's stable C functions, and nothing that changes with torch or Python."""
    if not shutil.which("readelf"):
        pytest.skip("needs binutils")
    _, symbols = run(["readelf", "-W", "--dyn-syms", library], ROOT)
    undefined = re.findall(r" UND (\S+)", symbols)
    assert [name for name in undefined if name.startswith(("aoti_torch_", "torch_"))] != []
    assert [name for name in undefined if re.match(r"_?Py|_ZNK?2at|_ZNK?3c10|_ZNK?5torch", name)] == []
    _, dynamic = run(["readelf", "-d", library], ROOT)
    assert "gomp" not in dynamic, "a second OpenMP runtime beside torch's"
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_the_installed_kernels_stand_on_the_stable_abi_alone(name: str) -> None:
    library = Path(se_fused.__file__).parent / f"_C_{name}.abi3.so"
    if not library.exists():
        pytest.skip(BACKENDS[name].describe()["reason"])
    check_stable(str(library))
    assert str(ROOT).encode() not in library.read_bytes()


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_compiles_again_where_something_else_is_asked_for(tmp_path: Path) -> None:
    for stamp in (".installed", ".asked", ".built"):
        (tmp_path / stamp).touch()

    def compiles(**asked: str) -> bool:
        status, said = run(["make", "-s", "venv", f"VENV={tmp_path}", "PY=echo"], ROOT, **asked)
        assert status == 0, said
        return "pip install" in said

    assert not compiles()
    assert compiles(TORCH_CUDA_ARCH_LIST="9.0")
    assert not compiles(TORCH_CUDA_ARCH_LIST="9.0")
    assert not compiles()
    assert compiles(SE_FUSED_BUILD="cuda")


@needs_nvcc
def test_make_wheel_asks_for_cuda_where_a_toolkit_is(tmp_path: Path) -> None:
    command = [sys.executable, "build_cuda.py"]
    assert run(command, ROOT) == (0, "cuda\n")
    assert run(command, ROOT, CUDA_HOME=str(tmp_path / "nowhere")) == (0, "auto\n")


def test_setup_py_stays_readable() -> None:
    assert len((ROOT / "setup.py").read_text().splitlines()) <= 150


def test_setup_py_opens_no_connection() -> None:
    text = "".join((ROOT / name).read_text() for name in SCRIPTS)
    assert not re.search(r"https?://|urllib|requests|socket|git clone|curl|wget", text)


def test_tools_are_pinned_alike() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    dev = dict(pin.split("==") for pin in extras["dev"] if "==" in pin)
    assert dev.keys() >= {"ruff", "mypy", "clang-format"}
    hooks = re.findall(r'"([\w-]+)==([\w.]+)"', (ROOT / ".pre-commit-config.yaml").read_text())
    assert {name for name, _ in hooks} == {"ruff", "clang-format"}
    assert [(name, version) for name, version in hooks if dev[name] != version] == []


def test_scripts_parse() -> None:
    assert subprocess.run(["bash", "-n", ROOT / ".ci/run"], check=False).returncode == 0
    assert os.access(ROOT / ".ci/run", os.X_OK)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_gpu_without_a_gpu_says_so_in_one_line() -> None:
    status, said = run(["make", "-s", "gpu", f"PYTHON={sys.executable}"], ROOT)
    assert status != 0
    assert len([line for line in said.splitlines() if not line.startswith("make")]) <= 1
    assert "torch finds no GPU here" in said
