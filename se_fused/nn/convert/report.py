"""The table of what is converted in a model, and of what is not and why."""

from dataclasses import dataclass

from torch import fx, nn

from .class_swap import is_fused
from .decide import is_ours, refusal

__all__ = ["NOTED", "Report", "conversion_report"]

NOTED = "se_fused_left"
"""Where in an optimised model's ``meta`` stands what was left: (name, class, reason) of each module."""


@dataclass(frozen=True)
class Report:
    """The modules of a model that this library knows, in the order of ``named_modules``.

    ``converted``: (name, class before, what is one call now). ``left``: (name, class, reason), for every module that
    is known or has the name of a squeeze-excite layer and stays as it was. ``own``: names of the library's own
    modules, which need nothing. ``str()`` is the table that ``convert(..., verbose=True)`` prints.
    """

    converted: tuple[tuple[str, str, str], ...]
    left: tuple[tuple[str, str, str], ...]
    own: tuple[str, ...]

    def __str__(self) -> str:
        rows: dict[tuple[str, str], int] = {}
        for _, cls, what in self.converted:
            rows[cls, what] = rows.get((cls, what), 0) + 1
        lines = [f"se_fused: {len(self.converted)} modules converted, {len(self.left)} left as they were"]
        width = max((len(cls) for cls, _ in rows), default=0)
        lines += [f"{count:6} x {cls:{width}}  {what}" for (cls, what), count in rows.items()]
        if self.own:
            lines.append(f"{len(self.own):6} of se_fused itself, which need no conversion")
        if self.left:
            lines.append("left:")
            lines += [f"  {name or '(the model)'}: {cls}: {reason}" for name, cls, reason in self.left]
        return "\n".join(lines)


def _qualified(cls: type[nn.Module]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def conversion_report(model: nn.Module) -> Report:
    """What of ``model`` is converted at present, and of what is not, why not.

    Args:
        model: converted or not.

    Returns:
        A :class:`Report`; a module that could be converted and has not been is left "not converted yet", a convolution
        of an optimised model is left where a batch norm stays behind it.
    """
    converted, left, own = [], [], []
    for name, module in model.named_modules():
        if is_fused(module):
            converted.append((name, _qualified(type(module).original), type(module).handler.describe(module)))
        elif is_ours(module):
            own.append(name)
        elif (reason := refusal(module)) != "":
            cls = getattr(module, "original_name", None) or _qualified(type(module))
            left.append((name, str(cls), reason or "not converted yet"))
    left += getattr(model, "meta", {}).get(NOTED, ()) if isinstance(model, fx.GraphModule) else ()
    return Report(tuple(converted), tuple(left), tuple(own))
