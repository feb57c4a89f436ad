"""Conversion of a module by changing its class to a subclass with a fused ``forward``.

The object stays the same: its parameters, buffers, hooks and training flag, and the references to it in the parent
module, an optimiser or a DDP wrapper. ``isinstance`` checks for the original class still hold. :data:`HANDLERS` lists
the supported classes by qualified name, because their libraries may not be installed.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeGuard

from torch import Tensor, nn

from ..block_plan import BlockModules
from ..whole_block import whole_block

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
    """Conversion rules for a supported class.

    ``forward`` replaces the forward of the class. ``methods`` are the methods of the class that this relies on: a
    subclass that overrides one of them is not converted. ``refusal`` returns the reason why an instance cannot be
    converted, or None. ``describe`` returns the report's description of what a converted instance fuses.

    A layer that rescales channels has two more functions, with which a block includes the layer in its own kernel call.
    ``arguments`` returns the keyword arguments of :func:`se_fused.functional.squeeze_excite`, or None. ``excitation``
    takes the layer and a map x and returns the gate as a function of the means, for
    :func:`se_fused.functional.channel_gate`, or None if the layer must be called as a module.
    """

    forward: Callable[..., Tensor]
    refusal: Callable[[Any], str | None]
    describe: Callable[[Any], str]
    methods: tuple[str, ...] = ("forward",)
    arguments: Callable[[Any], dict[str, Any] | None] | None = None
    excitation: Callable[[Any, Tensor], Callable[[Tensor], Tensor] | None] | None = None


HANDLERS: dict[str, Handler] = {}
"""Handlers by qualified class name "module.Class", registered by the other files of this folder."""


def register(handler: Handler, *names: str) -> None:
    """Register a handler for classes by qualified name, and for their subclasses that keep the handler's methods."""
    for name in names:
        HANDLERS[name] = handler


class Fused(nn.Module):
    """Base class of all converted modules.

    A torch.fx tracer with this class among its leaf modules records one call of the converted module, which runs the
    kernels. Any other tracer records the plain PyTorch layers inside.
    """

    original: ClassVar[type[nn.Module]]
    handler: ClassVar[Handler]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle and copy by the original class, because a class created at run time cannot be imported by name."""
        reduced = super().__reduce_ex__(protocol)
        assert isinstance(reduced, tuple), "__reduce_ex__ returns a string only for global objects"
        _, _, *state = reduced
        return (rebuild, (type(self).original,), *state)

    def __prepare_scriptable__(self) -> nn.Module:
        raise RuntimeError(
            f"torch.jit.script cannot compile {type(self).__name__}: restore the original modules first, with "
            "se_fused.revert(model)"
        )


BlockForward = Callable[[Any, Tensor], Tensor]


def block_forward(
    modules: Callable[[Any], BlockModules | None] | None = None,
) -> Callable[[BlockForward], BlockForward]:
    """Decorator of a block's forward: computes the whole block in one call where possible, and runs the original
    forward for a torch.fx proxy.

    Args:
        modules: returns the block's modules for :func:`.whole_block`; None for a class of blocks that no call has.
    """

    def decorate(forward: BlockForward) -> BlockForward:
        @functools.wraps(forward)
        def run(self: Any, x: Tensor) -> Tensor:
            if not isinstance(x, Tensor):
                original: Tensor = self.original.forward(self, x)
                return original
            y = None if modules is None else whole_block(self, x, modules)
            return forward(self, x) if y is None else y

        return run

    return decorate


def is_fused(module: nn.Module) -> TypeGuard[Fused]:
    """Whether the module is converted and its class was not changed again since, by a parametrization or FSDP."""
    return "original" in type(module).__dict__ and isinstance(module, Fused)


def known(cls: type[nn.Module]) -> Handler | str | None:
    """The handler of a class or of its nearest registered base class; None if there is none.

    If the class overrides a method that the handler relies on, the reason is returned as a string.
    """
    for base in cls.__mro__:
        handler = HANDLERS.get(f"{base.__module__}.{base.__qualname__}")
        if handler is not None:
            changed = [m for m in (*handler.methods, "__call__") if getattr(cls, m) is not getattr(base, m)]
            return f"overrides {' and '.join(changed)} of {base.__qualname__}" if changed else handler
    return None


_classes: dict[type[nn.Module], type[Fused]] = {}


def fused_class(original: type[nn.Module]) -> type[Fused] | None:
    """The subclass of ``original`` with a fused forward (created once), or None if the class is not supported."""
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
    """An uninitialised converted module, whose state pickle sets; an unconverted one if the class has no handler."""
    cls = fused_class(original) or original
    module: nn.Module = cls.__new__(cls)
    return module
