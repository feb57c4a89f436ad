"""The list of mutants: deliberate faults in the sources that the tests must find."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FAMILIES", "Mutant", "load"]

FAMILIES = ("cpu", "cuda", "triton", "python")


@dataclass(frozen=True)
class Mutant:
    """One fault: ``old`` occurs exactly once in ``file`` and is replaced by ``new``."""

    id: str
    file: str  # relative to the checkout's root
    old: str
    new: str
    breaks: str  # one sentence: what is wrong then
    source: str  # "new", or where the history describes it
    tests: tuple[str, ...]  # files, or file::function, that are likely to find it, the likeliest first
    kernels: str = ""  # the instruction set whose kernels are compiled with the fault; "": the fastest one here

    @property
    def family(self) -> str:
        """The id's first word, one of :data:`FAMILIES`."""
        return self.id.partition("-")[0]

    def apply(self, root: Path) -> None:
        """Write the fault into the checkout at ``root``.

        Raises:
            ValueError: ``old`` does not occur exactly once.
        """
        path = root / self.file
        text = path.read_text()
        if text.count(self.old) != 1:
            raise ValueError(f"{self.id}: {self.old!r} occurs {text.count(self.old)} times in {self.file}, not once")
        path.write_text(text.replace(self.old, self.new))


def load() -> list[Mutant]:
    """All mutants of mutants.toml, in its order."""
    entries = tomllib.loads((Path(__file__).parent / "mutants.toml").read_text())["mutant"]
    return [Mutant(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]
