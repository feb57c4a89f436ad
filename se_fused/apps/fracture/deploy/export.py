"""Export of a trained classifier to one file for other programs, including normalisation, softmax and metadata.

The exported graphs contain only standard operators of PyTorch or ONNX; loading and running them do not require
se_fused.
"""

import copy
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...._atomic_write import write_whole
from ...._errors import InputError
from ...._version import __version__
from ....backends import use_backend
from ..classifier import Classifier
from . import RESEARCH_USE_ONLY, warning_of

__all__ = ["FORMATS", "ImageProbabilities", "about_of", "export", "read_about"]

FORMATS = {"onnx": ".onnx", "aoti": ".pt2", "program": ".pt2"}
"""{format: file suffix}: ONNX, AOTInductor (machine code for this type of machine), torch.export program."""

_KEY = "se_fused"
_EXTRA = f"{_KEY}.json"
_OPSET = 18
_EPS = torch.finfo(torch.float32).eps
_BATCHES = (1, 2, 3)


class ImageProbabilities(nn.Module):
    """Normalisation, network and softmax in one module: (N, 1, S, S) in [0, 1] -> (N, K) probabilities."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        # Classifiers are loaded in channels_last, in which torch.export.save treats weights as views of larger tensors.
        self.model = copy.deepcopy(classifier.model).float().to(memory_format=torch.contiguous_format)
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        self.mean, self.std = classifier.preprocessing.mean, classifier.preprocessing.std
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model((images - self.mean) / self.std)
        return logits.softmax(1)


def about_of(classifier: Classifier, kind: str) -> dict[str, Any]:
    """Metadata of an exported file: everything needed to prepare its input and to interpret its output."""
    size = classifier.preprocessing.size
    return {
        "notice": RESEARCH_USE_ONLY,
        "warning": warning_of([classifier]),
        "format": kind,
        "model": classifier.name,
        "options": dict(classifier.options),
        "classes": list(classifier.classes),
        "input": {
            "name": "images",
            "shape": ["N", 1, size, size],
            "dtype": "float32",
            "range": [0.0, 1.0],
            "preparation": f"one channel, white bone on black; the longer side is scaled to {size} pixels (bilinear, "
            "antialiased), black fills the rest of the square on both sides; mean and std are inside the graph",
        },
        "output": {"name": "probabilities", "shape": ["N", len(classifier.classes)], "dtype": "float32"},
        "preprocessing": classifier.preprocessing.about(),
        "training": dict(classifier.about),
        "versions": {"se_fused": __version__, "torch": str(torch.__version__)},
    }


def _needed(*modules: str) -> None:
    for module in modules:
        try:
            __import__(module)
        except ImportError:
            raise InputError(f"{module} is missing; --format onnx requires it: pip install onnx onnxscript") from None


def _program(module: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("n")},), strict=False)


def _write_onnx(module: nn.Module, example: Tensor, about: str, part: Path) -> None:
    program = torch.onnx.export(
        module, (example,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("n")},), input_names=["images"],
        output_names=["probabilities"], opset_version=_OPSET, verbose=False,
    )  # fmt: skip
    assert program is not None, "torch.onnx.export returns a program with dynamo=True"
    program.model.metadata_props[_KEY] = about
    program.save(part, external_data=False)


def _write_aoti(module: nn.Module, example: Tensor, about: str, part: Path) -> None:
    from torch._inductor.exc import InductorError

    settings = {"aot_inductor.metadata": {_KEY: about}}
    try:
        torch._inductor.aoti_compile_and_package(
            _program(module, example), package_path=str(part), inductor_configs=settings
        )
    except InductorError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"AOTInductor could not compile the model: {reason}; try --format program") from error


def _write_program(module: nn.Module, example: Tensor, about: str, part: Path) -> None:
    torch.export.save(_program(module, example), part, extra_files={_EXTRA: about})


_WRITE = {"onnx": _write_onnx, "aoti": _write_aoti, "program": _write_program}


def _open_onnx(path: Path) -> Callable[[Tensor], Tensor] | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.cpu().numpy()})[0])


_OPEN: dict[str, Callable[[Path], Callable[[Tensor], Tensor] | None]] = {
    "onnx": _open_onnx,
    "aoti": lambda path: torch._inductor.aoti_load_package(str(path)),
    "program": lambda path: torch.export.load(path).module(),
}


def _check(run: Callable[[Tensor], Tensor], module: ImageProbabilities, size: int, place: torch.device) -> None:
    """Compare the exported file with float64 for several batch sizes.

    The allowed error is twice the error of the float32 model plus 8 rounding errors.
    """
    plain, exact = module, copy.deepcopy(module).double()
    noise = torch.rand(max(_BATCHES), 1, size, size, generator=torch.Generator().manual_seed(0)).to(place)
    with torch.no_grad(), use_backend("reference"):
        truth = exact(noise.double())
        theirs = (plain(noise).double() - truth).norm().item()
        for count in _BATCHES:
            own = (run(noise[:count]).to(place).double() - truth[:count]).norm().item()
            bound = 2 * theirs + 8 * _EPS * truth.norm().item()
            if not own <= bound:
                raise RuntimeError(
                    f"the exported file is {own:.2e} away from the float64 probabilities of {count} images; "
                    f"{bound:.2e} is allowed. Nothing was written; please report the model"
                )


def export(classifier: Classifier, kind: str, path: str | os.PathLike[str]) -> list[str]:
    """Export a classifier to a file for other programs, after comparing its outputs with the classifier's.

    The input is (N, 1, S, S) float32 in [0, 1] for any N: radiographs as loaded by
    :func:`se_fused.apps.fracture.load_radiograph`. Normalisation and softmax are part of the graph.
    :func:`read_about` reads the metadata. ONNX Runtime has it in
    ``session.get_modelmeta().custom_metadata_map["se_fused"]``, AOTInductor in ``model.get_metadata()["se_fused"]``,
    and ``torch.export.load`` in ``extra_files={"se_fused.json": ""}``.

    Args:
        classifier: the classifier; "aoti" compiles for its device.
        kind: one of `FORMATS`.
        path: output file, written atomically.

    Returns:
        Notes for the user, e.g. that the file could not be compared with the model.

    Raises:
        ValueError: there is no such format, or `path` does not have its suffix.
        InputError: a requirement of the format is not installed: onnx and onnxscript, or a C++ compiler.
        RuntimeError: the outputs of the file differ from the model's.
    """
    if kind not in FORMATS:
        raise ValueError(f"kind must be one of {', '.join(FORMATS)}, got {kind!r}")
    path = Path(path)
    if path.suffix != FORMATS[kind]:
        raise ValueError(f"path must end in {FORMATS[kind]} for {kind}, got {path.name}")
    place = next(classifier.model.parameters()).device
    if kind == "onnx":
        _needed("onnx", "onnxscript")
    if kind == "aoti":
        _check_compiler(place)
    size = classifier.preprocessing.size
    module = ImageProbabilities(classifier)
    about = json.dumps(about_of(classifier, kind), sort_keys=True)
    notes: list[str] = []

    def write(part: Path) -> None:
        example = torch.rand(2, 1, size, size, device=place)
        with use_backend("reference"), torch.no_grad():
            _WRITE[kind](module, example, about, part)
        run = _OPEN[kind](part)
        if run is None:
            notes.append("not compared with the model, because onnxruntime is not installed: pip install onnxruntime")
        else:
            _check(run, module, size, place)

    write_whole(path, write)
    return notes


def _check_compiler(place: torch.device) -> None:
    """Check that a C++ compiler exists. Inductor uses CXX or g++ for GPUs too, because the package's wrapper is C++."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None and shutil.which("clang++") is None:
        raise InputError(
            f"{compiler}: no such compiler, but --format aoti needs one: install g++, set CXX, or use --format program"
        )


def read_about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the metadata of a file written by :func:`export`. No code from the file is executed.

    Raises:
        InputError: there is no such file, it was not written by :func:`export`, or onnx (for an ONNX file) is not
            installed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; write one with se-fused fracture export")
    text: str | None = None
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.endswith(f"/{_EXTRA}"):
                        text = archive.read(name).decode()
                    elif name.endswith("_metadata.json"):
                        text = json.loads(archive.read(name)).get(_KEY, text)
        else:
            _needed("onnx")
            import onnx

            properties = onnx.load(path, load_external_data=False).metadata_props
            text = next((entry.value for entry in properties if entry.key == _KEY), None)
        about = None if text is None else json.loads(text)
    except InputError:
        raise
    except Exception as error:  # a damaged archive or protobuf can raise any exception
        raise InputError(
            f"{path}: damaged ({type(error).__name__}); write it again with se-fused fracture export"
        ) from None
    if not isinstance(about, dict):
        raise InputError(f"{path}: was not written by se-fused fracture export: it has no se_fused metadata")
    return about
