"""Report of the converted modules of a model, and of the others with the reason."""

from dataclasses import dataclass

from torch import fx, nn

from .class_swap import is_fused
from .decide import is_ours, refusal

__all__ = ["NOTED", "Report", "conversion_report"]

NOTED = "se_fused_left"
"""Key in the ``meta`` of an optimised model: (name, class, reason) of each convolution that keeps its batch norm."""


@dataclass(frozen=True)
class Report:
    """Modules of a model that concern this library, each list in the order of ``named_modules``.

    ``converted``: (name, original class, fused operations) of each converted module. ``left``: (name, class, reason)
    of each unconverted module whose class is supported or named like a squeeze-excite layer. ``own``: names of modules
    that this library defines, which need no conversion. ``str()`` gives the table that ``convert(..., verbose=True)``
    prints.
    """

    converted: tuple[tuple[str, str, str], ...]
    left: tuple[tuple[str, str, str], ...]
    own: tuple[str, ...]

    def __str__(self) -> str:
        rows: dict[tuple[str, str], int] = {}
        for _, cls, what in self.converted:
            rows[cls, what] = rows.get((cls, what), 0) + 1
        lines = [f"se_fused: {len(self.converted)} modules converted, {len(self.left)} left unchanged"]
        width = max((len(cls) for cls, _ in rows), default=0)
        lines += [f"{count:6} x {cls:{width}}  {what}" for (cls, what), count in rows.items()]
        if self.own:
            lines.append(f"{len(self.own):6} modules of se_fused, which need no conversion")
        if self.left:
            lines.append("left unchanged:")
            lines += [f"  {name or '(the model)'}: {cls}: {reason}" for name, cls, reason in self.left]
        return "\n".join(lines)


def _qualified(cls: type[nn.Module]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def conversion_report(model: nn.Module) -> Report:
    """Report which modules of ``model`` are converted, and why the others are not.

    Args:
        model: a converted or unconverted model, or the result of :func:`se_fused.optimize_for_inference`.

    Returns:
        A :class:`Report`. A supported module that is not converted has the reason "not converted yet". For an optimised
        model, ``left`` also lists each convolution whose batch norm could not be folded into it.
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
