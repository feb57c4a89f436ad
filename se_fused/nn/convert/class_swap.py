"""How a module is exchanged without being replaced: its class becomes a subclass of the one it had.

The object stays what it was: parameters, buffers, hooks, training flag, its place in the parent, in an optimiser, in a
DDP wrapper. Only ``forward`` is another, and ``isinstance`` still holds. :data:`HANDLERS` says which classes are known,
by qualified name: their libraries need not be installed.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeGuard

from torch import Tensor, nn

__all__ = [
    "HANDLERS",
    "Fused",
    "Handler",
    "block_forward",
    "fused_class",
    "is_fused",
    "known",
    "rebuild",
    "register",
]


@dataclass(frozen=True)
class Handler:
    """What is known about a class.

    ``forward`` stands in for the class's own, whose other ``methods`` it relies on (a subclass that overrides one of
    them is another class). ``refusal`` says of an instance why it is left alone, or None. ``describe`` says what a
    converted instance computes in one go, for the report.

    A layer that rescales channels has two more, by which a block takes it into the call that ends it: ``arguments``
    gives what :func:`se_fused.functional.squeeze_excite` needs by name, or None; ``excitation`` the gate as a
    function of the means for :func:`se_fused.functional.channel_gate` and a map of x's kind, or None where the layer
    has to be called.
    """

    forward: Callable[..., Tensor]
    refusal: Callable[[Any], str | None]
    describe: Callable[[Any], str]
    methods: tuple[str, ...] = ("forward",)
    arguments: Callable[[Any], dict[str, Any] | None] | None = None
    excitation: Callable[[Any, Tensor], Callable[[Tensor], Tensor] | None] | None = None


HANDLERS: dict[str, Handler] = {}
"""By "module.Class"; filled by the files beside this one."""


def register(handler: Handler, *names: str) -> None:
    """Make classes known by their qualified names; their subclasses are known too while they keep its methods."""
    for name in names:
        HANDLERS[name] = handler


class Fused(nn.Module):
    """The base of every converted module.

    A tracer of torch.fx that has it among its leaf modules records a call of the whole module, which runs the kernels;
    otherwise it records the layers inside, which are plain PyTorch.
    """

    original: ClassVar[type[nn.Module]]
    handler: ClassVar[Handler]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickled and copied by the original class: one made at run time has no name to be imported by."""
        reduced = super().__reduce_ex__(protocol)
        assert isinstance(reduced, tuple), "a string is what globals give"
        _, _, *state = reduced
        return (rebuild, (type(self).original,), *state)

    def __prepare_scriptable__(self) -> nn.Module:
        raise RuntimeError(
            f"torch.jit.script cannot compile {type(self).__name__}: give the plain modules back first, "
            "se_fused.revert(model)"
        )


def block_forward(forward: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Decorator of a block's forward: a proxy of torch.fx traces the layers that the plain block has."""

    @functools.wraps(forward)
    def run(self: Any, x: Tensor) -> Tensor:
        y: Tensor = forward(self, x) if isinstance(x, Tensor) else self.original.forward(self, x)
        return y

    return run


def is_fused(module: nn.Module) -> TypeGuard[Fused]:
    """Whether the module is converted, and nothing (a parametrization, FSDP) has changed its class again since."""
    return "original" in type(module).__dict__ and isinstance(module, Fused)


def known(cls: type[nn.Module]) -> Handler | str | None:
    """The handler of a class or of the base whose methods it has; a reason if it overrides one of them; else None."""
    for base in cls.__mro__:
        handler = HANDLERS.get(f"{base.__module__}.{base.__qualname__}")
        if handler is not None:
            changed = [m for m in (*handler.methods, "__call__") if getattr(cls, m) is not getattr(base, m)]
            return f"overrides {' and '.join(changed)} of {base.__qualname__}" if changed else handler
    return None


_classes: dict[type[nn.Module], type[Fused]] = {}


def fused_class(original: type[nn.Module]) -> type[Fused] | None:
    """The subclass of ``original`` with a fused forward, always the same one; None for a class that is not known."""
    cls = _classes.get(original)
    if cls is None:
        handler = known(original)
        if not isinstance(handler, Handler):
            return None
        body = {"original": original, "handler": handler, "forward": handler.forward, "__module__": __name__}
        cls = type(original)(  # type: ignore[misc]
            f"Fused{original.__name__}", (Fused, original), body
        )
        _classes[original] = cls
    return cls


def rebuild(original: type[nn.Module]) -> nn.Module:
    """An empty converted module, for pickle to fill; a plain one if its class is no longer known."""
    cls = fused_class(original) or original
    module: nn.Module = cls.__new__(cls)
    return module
