"""Print, as JSON, what the stand-in device of benchmarks/standin does (tests/bench/test_standin.py).

It is a separate process, because PyTorch takes the device for the machine's accelerator. With the argument "read", it
reads the memory of a tensor instead, which ends it.
"""

import ctypes
import json
import sys
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import host_network, standin
from se_fused import backends, functional

MODEL, SAMPLES, SIDE = "seresnet18", 2, 64


def form(t: Tensor) -> list[Any]:
    """Shape, strides and dtype. The stride of a dimension of size 1 is free."""
    strides = [stride if size > 1 else None for size, stride in zip(t.shape, t.stride(), strict=True)]
    return [list(t.shape), strides, str(t.dtype)]


def forms(name: str, device: str) -> dict[str, list[Any]]:
    """The forms of the results of all modules in training, of their gradients, and of the parameters' gradients."""
    model = host_network.network(name, device, MODEL).train()
    found: dict[str, list[Any]] = {}

    def keep(path: str):
        def hook(module: nn.Module, given: Any, result: Any) -> None:
            if isinstance(result, Tensor):
                found[path] = form(result)
                result.register_hook(lambda grad: found.update({f"gradient of the result of {path}": form(grad)}))

        return hook

    for path, module in model.named_modules():
        module.register_forward_hook(keep(path))
    x = host_network.batch_of(SAMPLES, device, SIDE).requires_grad_()
    y = model(x)
    y.backward(torch.empty_like(y))
    gradients = {path: p.grad for path, p in [*model.named_parameters(), ("x", x)]}
    return found | {f"gradient of {path}": form(grad) for path, grad in gradients.items()}


def launches(name: str) -> dict[str, Any]:
    """Launches and allocations of a network's forward pass in training, and its numbers of layers."""
    model, x = host_network.network(name, model=MODEL).train(), host_network.batch_of(SAMPLES, side=SIDE)
    standin.launched()
    standin.allocations()
    model(x)
    kinds = [type(module) for module in model.modules()]
    layers = {"Conv2d": kinds.count(nn.Conv2d), "norms": sum("BatchNorm" in kind.__name__ for kind in kinds)}
    return {"launched": standin.launched(), "allocations": standin.allocations(), "layers": layers}


def launches_of_block() -> dict[str, int]:
    x = torch.empty(2, 16, 8, 8, device=standin.DEVICE, requires_grad=True)
    statistics = [torch.empty(16, device=standin.DEVICE) for _ in range(4)]
    fc = [torch.empty(*shape, device=standin.DEVICE) for shape in ((4, 16), (4,), (16, 4), (16,))]
    standin.launched()
    y = functional.batch_norm_squeeze_excite(x, *statistics, *fc, training=True, out_act="relu")
    y.backward(torch.empty_like(y))
    return standin.launched()


def error(call: Any) -> str:
    """The class of the error that a call raises, and its message."""
    try:
        call()
    except Exception as found:
        return f"{type(found).__name__}: {found}"
    return "no error"


def main() -> None:
    with standin.backend():
        x = torch.empty(2, 3, device=standin.DEVICE)
        if sys.argv[1:] == ["read"]:
            print(ctypes.c_float.from_address(x.data_ptr()).value)
            return
        found = {
            "forms": {n: {d: forms(n, d) for d in (standin.DEVICE, "cpu")} for n in host_network.NETWORKS},
            "launches": {name: launches(name) for name in host_network.NETWORKS},
            "block": launches_of_block(),
            "aligned": all(torch.empty(n, device=standin.DEVICE).data_ptr() % 512 == 0 for n in (1, 7, 1000)),
            "errors": {
                "copy": error(x.cpu),
                "item": error(x.sum((0, 1)).item),
                "print": error(lambda: str(x)),
                "other operator": error(x.erf),
                "autocast": error(lambda: timed_passes(autocast=True)),
            },
            "frames": named_frames(),
        }
    found["restored"] = standin.DEVICE not in backends._AUTO
    print(json.dumps(found))


def timed_passes(autocast: bool) -> None:
    for name in host_network.NETWORKS:
        model, x = host_network.network(name, model=MODEL), host_network.batch_of(SAMPLES, side=SIDE)
        host_network.run_passes(model, x, host_network.Clock(), autocast)


def named_frames() -> int:
    """The result of a function of Python with named frames."""
    standin.name_frames(host_network.host_parts.FRAMES.values())
    return sum(number for number in range(10))


if __name__ == "__main__":
    main()
