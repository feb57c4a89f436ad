"""Reader of checkpoint files: .safetensors and ``torch.save``, without unpickling anything but tensors.

Training scripts save more than weights: NumPy numbers, arguments, paths, configurations. ``torch.load`` with
``weights_only=True`` raises an error for such a file. This reader replaces each class and function that the file names
by a stand-in whose instances ignore their state. The tensors can then be read, and nothing that the file names is
imported or called.
"""

import os
import pickle
import re
import warnings
import zipfile
from typing import Any

import torch

from ._listing import listed, shortened

__all__ = ["as_dict", "kind", "module_remedy", "read_file"]

_AGAIN = "download or copy it again"
_PAGE = re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE)
# First bytes of common wrong files, and the rest of the message after the path.
_SIGNATURES = {
    b"version https://git-lfs": "is a pointer of git-lfs, not the weights: run `git lfs pull` in its repository",
    b"\x1f\x8b": "is compressed with gzip: unpack it",
    b"\x89HDF": "is an HDF5 file, which torch does not read: give a checkpoint saved by PyTorch",
}
# Magic number in the pickle of files that torch.save wrote before its zip format.
_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19."
_LARGEST_HEADER = 100_000_000
"""Largest safetensors header in bytes, the limit of the safetensors library."""


class _Kind(type):
    """Metaclass of stand-ins, which compare equal to ``dict``: torch sets items only of dict and of its own classes."""

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is dict

    __hash__ = type.__hash__


class _StandIn(list[Any], metaclass=_Kind):
    """Placeholder for an object that is not unpickled. It accepts any state and stores only items, as of a dict.

    It is a subclass of list, because torch appends only to lists.
    """

    held: dict[Any, Any]

    def __new__(cls, *args: object, **options: object) -> "_StandIn":
        made = super().__new__(cls)
        made.held = {}
        return made

    def __init__(self, *args: object, **options: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: Any, value: object) -> None:
        self.held[key] = value

    def append(self, item: object) -> None:
        pass

    def extend(self, items: object) -> None:
        pass

    # Compare by identity, so that stand-ins can be elements of sets and keys of dicts.
    __eq__ = object.__eq__
    __hash__ = object.__hash__  # type: ignore[assignment]


def as_dict(value: object) -> object:
    """The items of a stand-in for a subclass of dict, as a dict; any other value unchanged."""
    return value.held if isinstance(value, _StandIn) and value.held else value


def kind(value: object) -> str:
    """Type of a value in words, such as "a dict", or "a pickled timm.models.ResNet" for a stand-in."""
    if isinstance(value, _StandIn):
        return f"a pickled {shortened(type(value).__name__)}"
    return f"a {type(value).__name__}"


def module_remedy(path: str, inside: str = "") -> str:
    """Advice how to save the weights of a pickled module; ``inside`` is the index of the module in the content."""
    return (
        "if you trust the file, install its library and save only the weights: "
        f"torch.save(torch.load({path!r}, weights_only=False){inside}.state_dict(), 'weights.pth')"
    )


def _remedy(path: str) -> str:
    return (
        "if you trust the file, save only its weights: "
        f"torch.save(torch.load({path!r}, weights_only=False)['state_dict'], 'weights.pth')"
    )


def _text(head: bytes) -> str | None:
    """The first line if the bytes are text, else None."""
    try:
        text = head[:200].decode().lstrip()
    except UnicodeDecodeError as error:
        if error.start < 196:  # an invalid byte, not a character cut off after 200 bytes
            return None
        text = head[: error.start].decode().lstrip()
    return text.splitlines()[0][:30] if text and "".join(text.split()).isprintable() else None


def _pickled(path: str, head: bytes) -> bytes | None:
    """First bytes of the pickle inside a file of ``torch.save``; None for any other file.

    Raises:
        ValueError: the file is a TorchScript archive, another zip archive, damaged or cut off.
    """
    if head.startswith(b"PK\x03\x04"):
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path} is damaged or cut off after {os.path.getsize(path)} bytes: {_AGAIN}")
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            inside = next((name for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)), None)
            if any(re.fullmatch(r"[^/]+/constants\.pkl", name) for name in names):
                raise ValueError(
                    f"{path} is a TorchScript archive, not a state_dict; if you trust it: "
                    f"torch.save(torch.jit.load({path!r}).state_dict(), 'weights.pth')"
                )
            if inside is None:
                files = listed(shortened(name) for name in names) or "nothing"
                raise ValueError(f"{path} is a zip archive of {files}: unpack it and give the checkpoint in it")
            with archive.open(inside) as file:
                return file.read(2)
    return head if _MAGIC in head[:32] else None


def _told(head: bytes) -> str:
    """Rest of the message for a file that is neither safetensors nor torch.save: its kind and the remedy."""
    for signature, what in _SIGNATURES.items():
        if head.startswith(signature):
            return what
    if _PAGE.match(head):
        return "is a web page, such as an error or login page: download the file in a browser"
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it and give the checkpoint in it"
    text = _text(head)
    if text is not None:
        return f"is a text file that begins {text!r}: give the file of the weights"
    if re.match(rb"\x80[\x02-\x05]", head):
        return (
            "was written by pickle, not by torch.save; if you trust it, load it yourself and save its tensors: "
            "torch.save(state_dict, 'weights.pth')"
        )
    return "is not a file of torch.save or safetensors: give a PyTorch checkpoint"


def _load(path: str, stand_ins: dict[str, type]) -> Any:
    """``torch.load`` with a stand-in for each class that it rejects, repeated until it rejects no other."""
    while True:
        try:
            exchanged: list[Any] = [(stand_in, name) for name, stand_in in stand_ins.items()]
            # Pass an open file: given a path, torch may choose another reader by the file name.
            with torch.serialization.safe_globals(exchanged), open(path, "rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            unknown = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
            name = unknown.group(1) if unknown else ""
            name = name if "." in name else f"builtins.{name}"  # torch's message omits the module builtins
            if unknown is None or name in stand_ins:
                raise
            stand_ins[name] = _Kind(name, (_StandIn,), {})


def _read_torch(path: str, pickled: bytes) -> tuple[Any, list[str]]:
    stand_ins: dict[str, type] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about the pickle protocol; the errors below cover that
            if zipfile.is_zipfile(path):
                # Create all stand-ins at once: each further torch.load would read the tensors again.
                for name in torch.serialization.get_unsafe_globals_in_checkpoint(path):
                    stand_ins[name] = _Kind(name, (_StandIn,), {})
            content = _load(path, stand_ins)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged file may raise any exception
        told = str(error)
        blocked = re.search(r"unsupported GLOBAL (\S+) whose module", told)
        if blocked:
            what = f"refers to {blocked.group(1)}, which no checkpoint needs and which may be harmful: do not load it"
        elif pickled[:1] == b"\x80" and pickled[1] != 2:
            what = f"was saved with pickle_protocol={pickled[1]}, which cannot be read safely; {_remedy(path)}"
        elif "Only persistent_load of storage" in told:
            what = f"holds a pickled module, not a state_dict; {module_remedy(path)}"
        elif not isinstance(error, pickle.UnpicklingError | TypeError) and (
            "Reader" in told or not zipfile.is_zipfile(path)
        ):
            what = f"is damaged or cut off after {os.path.getsize(path)} bytes: {_AGAIN}"
        else:
            reason = re.search(r"WeightsUnpickler error:\s*([^\n]*)", told)
            why = (reason.group(1) if reason else told)[:100]
            what = f"cannot be read as tensors only ({' '.join(why.split())}); {_remedy(path)}"
        raise ValueError(f"{path} {what}") from None
    return as_dict(content), [f"not unpickled: {listed(map(shortened, sorted(stand_ins)))}"] if stand_ins else []


def read_file(path: str) -> tuple[Any, list[str]]:
    """The content of a file, with stand-ins for all objects except tensors and plain values, and notes for the user.

    Raises:
        FileNotFoundError, ImportError, ValueError: as from ``load_pretrained``.
    """
    if os.path.isdir(path):
        names = [name for name in sorted(os.listdir(path)) if re.search(r"\.(pth?|ckpt|bin|safetensors|tar)$", name)]
        raise ValueError(f"{path} is a folder: give the file in it" + (f", such as {listed(names)}" if names else ""))
    if not os.path.exists(path):
        hint = ": se_fused downloads nothing, give a file" if "://" in path else ""
        raise FileNotFoundError(f"there is no file {path}{hint}")
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError(f"{path} is empty: {_AGAIN}")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LARGEST_HEADER:
        try:
            import safetensors
            from safetensors.torch import load_file
        except ImportError as error:
            raise ImportError(f"{path} needs safetensors, which is not installed: pip install safetensors") from error
        try:
            return load_file(path), []
        except safetensors.SafetensorError:
            raise ValueError(f"{path} is damaged or cut off after {os.path.getsize(path)} bytes: {_AGAIN}") from None
    pickled = _pickled(path, head)
    if pickled is None:
        raise ValueError(f"{path} {_told(head)}")
    return _read_torch(path, pickled)
