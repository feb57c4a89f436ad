"""Instructions of a kernel, from the text of ``cuobjdump -sass``."""

import re
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Instruction", "Operand", "is_predicate", "parse"]

Kind = Literal[
    "register", "uniform", "predicate", "uniform predicate", "number", "constant", "address", "special", "barrier"
]


@dataclass(frozen=True)
class Operand:
    """One operand.

    Attributes:
        kind: what it names.
        number: of the register or predicate; the value of a number; the offset of a constant or an address.
        negative, absolute, inverted: the operand's modifiers ``-``, ``|x|`` and ``~`` or ``!``.
        bank: bank of a constant.
        base, second: registers that are added to the offset of an address, or of a constant; None without one.
        wide: the base of an address is a pair of registers.
        text: as written, for special registers, float numbers and selectors such as ``.H1_H1``.
    """

    kind: Kind
    number: int = 0
    negative: bool = False
    absolute: bool = False
    inverted: bool = False
    bank: int = 0
    base: int | None = None
    second: int | None = None
    wide: bool = False
    text: str = ""


def is_predicate(o: Operand) -> bool:
    """Whether an operand is a predicate, of the lanes or of the warp."""
    return o.kind in ("predicate", "uniform predicate")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its address, guard, name with modifiers, and operands."""

    address: int
    guard: Operand | None
    name: str
    operands: tuple[Operand, ...]
    text: str
    modifiers: frozenset[str] = field(default_factory=frozenset)

    @property
    def base(self) -> str:
        """The name without modifiers."""
        return self.name.partition(".")[0]


ZERO = {"R": 255, "UR": 63, "P": 7, "UP": 7}
"""Numbers of RZ, URZ, PT and UPT."""
_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s*/\*")
_REGISTER = re.compile(r"(UR|R)(\d+|Z)((?:\.\w+)*)$")
_PREDICATE = re.compile(r"(UP|P)(\d|T)$")
_INSIDE = re.compile(r"([+-]?)(UR\d+|URZ|R\d+|RZ|0x[0-9a-f]+)((?:\.\w+)*)")


def _number(kind: str, text: str) -> int:
    return ZERO[kind] if text in "ZT" else int(text)


def _bracketed(text: str) -> dict[str, object]:
    """Base, second register and offset of the text inside brackets: R4.64+0x8, R4+UR5, UR4, 0x210, RZ."""
    found: dict[str, object] = {"number": 0, "base": None, "second": None, "wide": False}
    for sign, part, suffix in _INSIDE.findall(text.replace(" ", "")):
        if part.startswith("0x"):
            found["number"] = int(part, 16) * (-1 if sign == "-" else 1)
        elif part.startswith("UR"):
            found["second"] = _number("UR", part[2:])
        else:
            found["base"] = _number("R", part[1:])
        found["wide"] = bool(found["wide"]) or ".64" in suffix
    return found


def operand(text: str) -> Operand:
    """Parse one operand.

    Raises:
        ValueError: its form is not known.
    """
    text = text.strip()
    plain = text.replace(".reuse", "")
    negative = plain.startswith("-") and not re.match(r"-(0x|\d|\.|INF|QNAN)", plain)
    inverted = plain[:1] in "~!"
    plain = plain[1:] if negative or inverted else plain
    absolute = plain.startswith("|")
    plain = plain.replace("|", "")
    marks = {"negative": negative, "absolute": absolute, "inverted": inverted}
    if found := _REGISTER.match(plain):
        kind, number, suffix = found.groups()
        name: Kind = "uniform" if kind == "UR" else "register"
        return Operand(name, _number(kind, number), **marks, text=suffix)
    if found := _PREDICATE.match(plain):
        kind, number = found.groups()
        where: Kind = "uniform predicate" if kind == "UP" else "predicate"
        return Operand(where, _number(kind, number), **marks)
    if found := re.match(r"c\[0x([0-9a-f]+)\]\[(.*)\]((?:\.\w+)*)$", plain):
        return Operand("constant", bank=int(found[1], 16), **marks, text=found[3], **_bracketed(found[2]))  # type: ignore[arg-type]
    if found := re.match(r"(?:desc\[UR\d+\])?\[(.*)\]$", plain):
        return Operand("address", **_bracketed(found[1]))  # type: ignore[arg-type]
    if re.match(r"B\d+$", plain):
        return Operand("barrier", int(plain[1:]))
    if re.match(r"-?0x[0-9a-f]+$", plain):
        return Operand("number", int(plain, 16) & 0xFFFFFFFF, text=plain, inverted=inverted)
    if re.match(r"[-+]?(\d|\.|INF|QNAN)", plain):
        return Operand("number", 0, text=plain, negative=negative)
    if re.match(r"SR|PR$", plain):
        return Operand("special", text=plain)
    raise ValueError(f"operand {text!r}")


def _split(text: str) -> list[str]:
    """The operands of an instruction; some are separated by a space only."""
    return [part for part in re.split(r",\s*", text) if part]


def parse(text: str) -> dict[int, Instruction]:
    """Instructions of one kernel by address.

    Args:
        text: the disassembler's text of the kernel.

    Raises:
        ValueError: an operand's form is not known.
    """
    found = {}
    for address, line in _LINE.findall(text):
        guard, rest = None, line.strip()
        if rest.startswith("@"):
            mark, _, rest = rest.partition(" ")
            guard = operand(mark[1:])
        name, _, operands = rest.strip().partition(" ")
        if name in ("RET.REL.NODEC", "BRX", "BRXU", "RET.REL.NOINC"):
            operands = operands.replace(" ", ", ", 1)
        operands = re.sub(r"`\(.*?\)", "0x0", operands)
        at = int(address, 16)
        parsed = tuple(operand(part) for part in _split(operands))
        found[at] = Instruction(at, guard, name, parsed, line.strip(), frozenset(name.split(".")[1:]))
    return found
