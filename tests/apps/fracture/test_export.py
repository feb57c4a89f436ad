"""Tests of exported classifiers: the same probabilities without se_fused, and the information stored in the files."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.modules import randomise
from torch import Tensor, nn

pytest.importorskip("PIL")
pytest.importorskip("typer")

from support.classifier import CLASSES, OPTIONS, classifier

import se_fused
from se_fused import cli
from se_fused._errors import InputError
from se_fused.apps.fracture.classifier import Classifier
from se_fused.apps.fracture.deploy import export as exporting
from se_fused.apps.fracture.deploy.export import export, read_about
from se_fused.apps.fracture.preprocessing import Preprocessing

SIZE = 32
PLAIN = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("se_fused", "torchvision", "timm"):
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
import torch
torch.set_num_threads(1)
images, expected = torch.load(sys.argv[2])
"""
RUN = {
    "onnx": """
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
about = session.get_modelmeta().custom_metadata_map["se_fused"]
""",
    "program": """
extra = {"se_fused.json": ""}
found = torch.export.load(sys.argv[1], extra_files=extra).module()(images)
about = extra["se_fused.json"]
""",
    "aoti": """
model = torch._inductor.aoti_load_package(sys.argv[1])
found = model(images)
about = model.get_metadata()["se_fused"]
""",
}
SAY = """
import json
assert found.shape == expected.shape and found.dtype == torch.float32
assert not any(name.startswith("se_fused") for name in sys.modules)
print(json.dumps({"error": (found.double() - expected).abs().max().item(), "classes": json.loads(about)["classes"]}))
"""


def small(name: str) -> Classifier:
    options = {"seresnet18": OPTIONS, "resnet50": OPTIONS, "seresnet50": OPTIONS, "unet": {"width": 4},
               "densenet121": {"growth_rate": 4, "num_init_features": 8}}[name]  # fmt: skip
    torch.manual_seed(0)
    model = se_fused.create_model(name, num_classes=3, in_chans=1, **options)
    randomise(model)
    return Classifier(model.eval(), CLASSES, Preprocessing(SIZE, 0.4, 0.2), name, options)


def tiny(**about: object) -> Classifier:
    """A model that a classifier's file cannot store: one convolution."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    return Classifier(model, CLASSES, Preprocessing(SIZE, 0.4, 0.2), "tiny", {"stem_channels": 8}, dict(about))


def truth(ours: Classifier, images: Tensor) -> Tensor:
    with torch.no_grad():
        model = copy.deepcopy(ours.model).double()
        return torch.softmax(model((images.double() - 0.4) / 0.2), 1)


def elsewhere(kind: str, path: Path, ours: Classifier) -> None:
    """Check the file and its information in a process that cannot import se_fused, with another batch size."""
    images = torch.rand(5, 1, SIZE, SIZE)
    expected = truth(ours, images)
    with torch.no_grad():
        own = (ours.probabilities(images).double() - expected).abs().max().item()
    torch.save((images, expected), path.with_suffix(".pt"))
    command = [sys.executable, "-c", PLAIN + RUN[kind] + SAY, str(path), str(path.with_suffix(".pt"))]
    env = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=path.parent, env=env)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["error"] <= 2 * own + 16 * torch.finfo(torch.float32).eps and said["classes"] == list(CLASSES)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("seresnet18", "program"),
        ("unet", "onnx"),
        *(pytest.param(name, "onnx", marks=pytest.mark.nightly) for name in ("seresnet50", "resnet50", "densenet121")),
    ],
)
def test_the_file_gives_the_same_probabilities_without_us(name: str, kind: str, tmp_path: Path) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    ours = small(name)
    path = tmp_path / f"model{exporting.FORMATS[kind]}"
    before = {key: value.clone() for key, value in ours.model.state_dict().items()}
    assert export(ours, kind, path) == []
    assert all(torch.equal(before[key], value) for key, value in ours.model.state_dict().items())
    assert all(p.requires_grad for p in ours.model.parameters()), "the model itself is left alone"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    elsewhere(kind, path, ours)


@pytest.mark.nightly
def test_aot_inductor(tmp_path: Path) -> None:
    ours = small("seresnet18")
    ours.about["source"] = "synthetic"
    path = tmp_path / "model.pt2"
    assert export(ours, "aoti", path) == []
    about = read_about(path)
    assert about["format"] == "aoti" and "no clinical meaning" in about["warning"]
    elsewhere("aoti", path, ours)


def test_the_file_says_what_it_is_and_how_it_wants_to_be_fed(tmp_path: Path) -> None:
    ours = tiny(source="synthetic", seed=7, epoch=3)
    export(ours, "program", tmp_path / "model.pt2")
    about = read_about(tmp_path / "model.pt2")
    assert about == json.loads(json.dumps(exporting.about_of(ours, "program")))
    assert about["notice"] == "Research use only. Not a medical device." and "synthetic" in about["warning"]
    assert Preprocessing(**about["preprocessing"]) == ours.preprocessing and tuple(about["classes"]) == CLASSES
    assert about["input"]["shape"] == ["N", 1, SIZE, SIZE] and about["training"]["epoch"] == 3
    assert ours.name == about["model"] and about["options"]["stem_channels"] == 8


def test_an_onnx_file_has_named_ends_and_any_batch(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    export(tiny(), "onnx", tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    (given,), (result,) = graph.input, graph.output
    shape = [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim]
    assert given.name == "images" and isinstance(shape[0], str) and shape[1:] == [1, SIZE, SIZE]
    assert result.name == "probabilities" and {node.domain for node in graph.node} <= {"", "ai.onnx"}
    assert read_about(tmp_path / "model.onnx")["format"] == "onnx"


def test_a_file_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Spoilt(nn.Module):
        def __init__(self, inner: nn.Module, wrong: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.inner, self.wrong = inner, wrong

        def forward(self, images: Tensor) -> Tensor:
            return self.wrong(self.inner(images))

    path = tmp_path / "model.pt2"
    path.write_bytes(b"what was there")
    program = exporting._write_program
    wrongs = (lambda x: x * (1 + 1e-4), lambda x: x.flip(1), lambda x: x * float("nan"))
    for wrong in wrongs:
        spoil = lambda module, *rest, wrong=wrong: program(Spoilt(module, wrong).eval(), *rest)  # noqa: E731
        with monkeypatch.context() as patch:
            patch.setitem(exporting._WRITE, "program", spoil)
            with pytest.raises(RuntimeError, match="away from the float64 probabilities"):
                export(tiny(), "program", path)
        assert path.read_bytes() == b"what was there" and [p.name for p in tmp_path.iterdir()] == ["model.pt2"]


def test_an_unchecked_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (note,) = export(tiny(), "onnx", tmp_path / "model.onnx")
    assert "not compared" in note and "pip install onnxruntime" in note


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = tiny()
    with pytest.raises(ValueError, match="kind must be one of onnx, aoti, program, got 'torchscript'"):
        export(ours, "torchscript", tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"path must end in \.onnx"):
        export(ours, "onnx", tmp_path / "x.pt2")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"no such compiler.*--format program"):
        export(ours, "aoti", tmp_path / "x.pt2")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"onnx(script)? is missing"):
        export(ours, "onnx", tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_about(tmp_path / "none.onnx")
    plain = torch.export.export(torch.nn.ReLU(), (torch.ones(2),))
    torch.export.save(plain, tmp_path / "theirs.pt2")
    with pytest.raises(InputError, match="was not written by se-fused fracture export"):
        read_about(tmp_path / "theirs.pt2")
    pytest.importorskip("onnx")
    (tmp_path / "bad.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match="damaged"):
        read_about(tmp_path / "bad.onnx")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = replace(classifier(size=SIZE), about={"source": "synthetic"})
    ours.save(tmp_path / "model.pt")
    path = tmp_path / "out.pt2"
    assert (
        cli.run(["fracture", "export", str(tmp_path / "model.pt"), "--format", "program", "--output", str(path)]) == 0
    )
    said = capsys.readouterr().out
    assert "(N, 1, 32, 32)" in said and "none, oblique, spiral" in said and "no clinical meaning" in said
    assert read_about(path)["classes"] == list(CLASSES)
    for arguments, wanted in (
        (["--format", "onnx", "--output", str(path)], "must end in .onnx"),
        (["--format", "tflite", "--output", str(path)], "must be one of onnx, aoti, program"),
        (["--output", str(tmp_path / "no" / "x.onnx")], "there is no folder"),
    ):
        assert cli.run(["fracture", "export", str(tmp_path / "model.pt"), *arguments]) == 2
        error = capsys.readouterr().err
        assert wanted in error and error.count("\n") == 1
