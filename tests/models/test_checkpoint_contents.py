"""load_pretrained on files with other content than tensors, and on files that are not checkpoints: errors of one line.

Each error names the remedy.
"""

import argparse
import collections
import datetime
import enum
import io
import os
import pathlib
import pickle
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import made, refused
from torch import nn

from se_fused import load_pretrained
from se_fused.models import SEResNet18

pytestmark = pytest.mark.quick

NARROW: Any = dict(channels=(16, 16, 16, 16), stem_channels=16)


class Colour(enum.Enum):
    RED = 1


class Settings(dict):  # type: ignore[type-arg]
    """A subclass of dict, as in yacs, addict and EasyDict."""


class Recorder:
    """An object whose unpickling writes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return record, (self.path,)


class Slots:
    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 3


def record(path: str) -> None:
    Path(path).write_text("ran")


def extras(folder: Path) -> dict[str, Any]:
    """Objects that training scripts save beside the weights."""
    history: collections.defaultdict[str, list[Any]] = collections.defaultdict(list)
    history["loss"].append(np.float32(0.1))
    return {
        "best_acc": np.float64(0.9), "epoch": np.int64(3), "flag": np.bool_(True), "curve": np.arange(3.0),
        "names": np.array(["a", None], dtype=object), "args": argparse.Namespace(lr=0.1, path=pathlib.Path("x")),
        "path": pathlib.PurePosixPath("data"), "when": datetime.datetime(2024, 1, 2), "colour": Colour.RED,
        "keyed": {Colour.RED: 1}, "among": {pathlib.PurePosixPath("data")},
        "cfg": Settings(lr=0.1, inner=Settings(a=[1])), "history": history, "last": collections.deque([1, 2], 2),
        "slots": Slots(), "criterion": nn.BCEWithLogitsLoss(), "kind": Settings, "code": Recorder(str(folder / "ran")),
    }  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
def test_what_stands_beside_the_weights_is_not_unpickled(zipped: bool, tmp_path: Path) -> None:
    """No object beside the weights is unpickled, all together or each alone, in both formats of torch.save."""
    theirs = made(lambda: SEResNet18(5, **NARROW))
    allowed = set(torch.serialization.get_safe_globals())
    beside = extras(tmp_path)
    if not zipped:
        del beside["criterion"]  # that format stores the source of modules, by an operation of tensors
    cases = {**{key: {key: value} for key, value in beside.items()}, "all": beside}
    for name, case in cases.items():
        content = {**case, "state_dict": theirs.state_dict(), "after": case}
        torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        model = SEResNet18(5, **NARROW).double()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            report = load_pretrained(model, tmp_path / "a.pth")
        assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in model.state_dict().items()), name
        assert "not unpickled: " in str(report), name
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "a.pth", weights_only=False)
    assert (tmp_path / "ran").exists()  # shows that the file could run code
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_a_state_dict_of_a_class_of_its_own(tmp_path: Path) -> None:
    """A state_dict of another class, such as defaultdict or yacs' CfgNode, is read as a dict."""
    theirs = made(lambda: SEResNet18(5, **NARROW))
    shared = collections.defaultdict(list, theirs.state_dict())
    for content in (shared, {"model": shared}, Settings(model=Settings(theirs.state_dict()), epoch=3)):
        torch.save(content, tmp_path / "a.pth")
        model = SEResNet18(5, **NARROW).double()
        load_pretrained(model, tmp_path / "a.pth")
        assert torch.equal(model.conv1.weight, theirs.conv1.weight)


def test_weights_that_are_no_tensors_are_named(tmp_path: Path) -> None:
    state: dict[str, Any] = dict(SEResNet18(5).state_dict())
    state["fc.bias"] = np.zeros(5)
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    refused(SEResNet18(5), tmp_path / "a.pth", r"fc\.bias is a pickled numpy\.\S+, not \(5,\)")


def test_code_in_a_file_is_refused_or_passed_over(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"state_dict": SEResNet18(5).state_dict(), "x": Evil()}, tmp_path / "a.pth")
    refused(SEResNet18(5), tmp_path / "a.pth", r"a\.pth refers to posix\.system, .*no checkpoint needs.*do not load it")
    assert not (tmp_path / "ran").exists()


def saved(content: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


class Net(nn.Sequential):
    pass


def files(folder: Path) -> dict[str, tuple[bytes, str]]:
    """The bytes of files that cannot be loaded, and the expected error messages."""
    state = SEResNet18(5).state_dict()
    whole, old = saved(state), saved(state, _use_new_zipfile_serialization=False)
    save_file(state, folder / "whole")
    safe = (folder / "whole").read_bytes()
    script = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), script)
    archive, tar = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("weights/model.pth", whole[:100])
    with tarfile.open(fileobj=tar, mode="w") as packed_tar:
        packed_tar.add(folder / "whole", "model.pth")
    again = r"download or copy it again$"
    page = rb"<!DOCTYPE html>", b"\n <html><head>", rb'<?xml version="1.0"?><Error>'
    return {
        "empty.pth": (b"", rf"is empty.*{again}"),
        "empty.safetensors": (b"", rf"is empty.*{again}"),
        **{f"page{i}.pth": (text + b"x" * 400, r"is a web page, .*in a browser") for i, text in enumerate(page)},
        "pointer.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "git lfs pull"),
        "text.pth": (b"no checkpoint\nat all", r"is a text file that begins 'no checkpoint'"),
        "text.safetensors": (b"no checkpoint", r"is a text file that begins 'no checkpoint'"),
        "index.json": (b'{"weight_map": {"fc": "a.safetensors"}}', r"is a text file that begins '\{"),
        "gzip.pth": (b"\x1f\x8b\x08" + b"\0" * 99, r"is compressed with gzip: unpack it"),
        "keras.h5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 99, r"is an HDF5 file"),
        "cut.pth": (whole[: len(whole) // 2], rf"is damaged or cut off after \d+ bytes.*{again}"),
        "cut-old.pth": (old[: len(old) // 2], rf"is damaged or cut off after \d+ bytes.*{again}"),
        "cut-early.pth": (old[:300], rf"is damaged or cut off after \d+ bytes.*{again}"),
        "cut.safetensors": (safe[: len(safe) // 2], rf"is damaged or cut off after \d+ bytes.*{again}"),
        "noise.pth": (bytes(range(256)) * 20, r"is not a file of torch\.save or safetensors"),
        "zeros.pth": (b"\0" * 5000, r"is not a file of torch\.save or safetensors"),
        "script.pt": (script.getvalue(), r"is a TorchScript archive.*torch\.jit\.load\(.*\.state_dict\(\)"),
        "archive.zip": (archive.getvalue(), r"is a zip archive of weights/model\.pth: unpack it"),
        "archive.tar": (tar.getvalue(), r"is a tar archive: unpack it"),
        "plain.pkl": (pickle.dumps({"a": np.zeros(3)}), r"was written by pickle, not by torch\.save"),
        "protocol.pth": (saved(state, pickle_protocol=4), r"pickle_protocol=4, .*if you trust .*weights_only=False"),
        "module.pth": (
            saved(Net(nn.Linear(2, 2))),
            r"holds a pickled \S*Net, not a state_dict; if you trust .*\.state_dict\(\)",
        ),
        "module-old.pth": (
            saved(Net(nn.Linear(2, 2)), _use_new_zipfile_serialization=False),
            r"holds a pickled module, not a state_dict; if you trust .*\.state_dict\(\)",
        ),
        "inside.pth": (
            saved({"epoch": 3, "model": Net(nn.Linear(2, 2))}),
            r"holds no state_dict of a model, only 'epoch', 'model' \(a pickled \S*Net\); if you trust",
        ),
        "tensor.pth": (saved(torch.zeros(3, 4)), r"holds one tensor of shape \(3, 4\), not a state_dict"),
        "list.pth": (saved([1]), r"holds a list, not a state_dict"),
        "tuple.pth": (saved((state, 3)), r"holds a tuple, not a state_dict"),
        "none.pth": (saved({}), r"holds an empty dict, not a state_dict"),
        "optimizer.pth": (
            saved(torch.optim.Adam(nn.Linear(2, 2).parameters()).state_dict()),
            r"holds no state_dict of a model, only 'state', 'param_groups'",
        ),
        "training.pth": (
            saved({f"setting{i}": i for i in range(40)}),
            r"only 'setting0', 'setting1', 'setting2' and 37 more",
        ),
    }


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    model = SEResNet18(5)
    for name, (content, message) in files(tmp_path).items():
        path = tmp_path / name
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            said = refused(model, path, message)
        assert said.startswith(str(path)) and len(said) <= len(str(path)) * 2 + 400, (name, said)
        for noise in ("Traceback", "WeightsUnpickler", "report", "file an issue", "PytorchStreamReader", "(1)"):
            assert noise not in said, (name, said)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    model = SEResNet18(5)
    folder = tmp_path / "run"
    folder.mkdir()
    refused(model, folder, r"run is a folder: give the file in it$")
    for name in ("b.safetensors", "a.pth", "notes.txt"):
        (folder / name).write_text("x")
    refused(model, folder, r"run is a folder: give the file in it, such as a\.pth, b\.safetensors$")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent\.pth$"):
        load_pretrained(model, tmp_path / "absent.pth")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent\.safetensors$"):
        load_pretrained(model, tmp_path / "absent.safetensors")
    with pytest.raises(FileNotFoundError, match=r"there is no file https:.*: se_fused downloads nothing, give a file"):
        load_pretrained(model, "https://download.pytorch.org/models/resnet18.pth")
    with pytest.raises(TypeError, match=r"path must be a path of a file, got OrderedDict.*torch\.save"):
        load_pretrained(model, model.state_dict())  # type: ignore[arg-type]


def test_the_name_does_not_tell_the_format(tmp_path: Path) -> None:
    state = made(lambda: SEResNet18(5)).float().state_dict()
    save_file(state, tmp_path / "a.bin", metadata={"format": "pt", "arch": "x"})
    torch.save(state, tmp_path / "b.safetensors")
    for name in ("a.bin", "b.safetensors"):
        model = SEResNet18(5)
        load_pretrained(model, os.fsencode(tmp_path / name))  # type: ignore[arg-type]
        assert torch.equal(model.conv1.weight, state["conv1.weight"])
