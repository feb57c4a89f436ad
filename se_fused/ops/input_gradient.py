"""The gradients of a residual block's input, added by the product that computes one of them.

A block's input x has two gradients: dr of the shortcut, and that of the first convolution. A 1x1 convolution's is a
matrix product, and a product can add to what the memory of its result holds: this costs one read of dr. PyTorch writes
both gradients and adds them in a kernel of three passes.

The node of :mod:`.residual_block` calls :func:`add_input_gradient`. torch.compile's graphs get the operator
``se_fused::add_input_gradient`` by a pass over Inductor's graph, on GPUs.
"""

import operator
import sys
from typing import Any

import torch
from torch import Tensor, fx

from .layout import dense, is_channels_last

__all__ = ["DEVICES", "accumulate_in_products", "add_input_gradient", "install", "product_is_as_precise"]

DEVICES = ("cuda",)
"""Device types on which the pass replaces the sum. On CPUs it was not measured."""

_library = torch.library.Library("se_fused", "FRAGMENT")  # the operator lives as long as this object
_library.define("add_input_gradient(Tensor(a!) dr, Tensor dy, Tensor weight) -> ()", tags=(torch.Tag.flexible_layout,))


def product_is_as_precise(device_type: str, dtype: torch.dtype) -> bool:
    """Whether a matrix product has the precision of a convolution. In float32 on a GPU, PyTorch allows TF32 in
    convolutions but not in products, which are then several times slower."""
    if device_type != "cuda" or dtype != torch.float32:
        return True
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return (products.fp32_precision == "tf32") == (convolutions.fp32_precision == "tf32")


def _rows(t: Tensor) -> Tensor:
    """(N, C, *spatial) in channels_last -> (N * S, C), a view."""
    c = t.shape[1]
    return t.as_strided((t.numel() // c, c), (c, 1))


def add_input_gradient(dr: Tensor, dy: Tensor, weight: Tensor) -> None:
    """Add the input gradient of a 1x1 convolution to dr.

    Args:
        dr: (N, C, *spatial). It is written.
        dy: (N, K, *spatial), the gradient of the convolution's result.
        weight: (K, C, 1, ...).
    """
    if not dr.numel():
        return
    matrix = weight.flatten(1)
    if is_channels_last(dr):
        rows = _rows(dr)
        of_dy = _rows(dy) if is_channels_last(dy) else dy.movedim(1, -1).reshape(-1, dy.shape[1])
        torch.addmm(rows, of_dy, matrix, out=rows)
    elif dr.is_contiguous():
        dr.view(*dr.shape[:2], -1).baddbmm_(matrix.t().expand(dr.shape[0], -1, -1), dy.flatten(2))
    else:
        total = dense(dr)
        add_input_gradient(total, dy, weight)
        dr.copy_(total)


_library.impl("add_input_gradient", add_input_gradient, "CompositeExplicitAutograd")
torch.library.register_fake("se_fused::add_input_gradient", lambda dr, dy, weight: None, lib=_library)


# ---- the pass
def _is_shortcut_gradient(node: Any) -> bool:
    """Whether the node is dr of a block's backward pass, with no other use."""
    if not (isinstance(node, fx.Node) and node.target is operator.getitem and len(node.users) == 1):
        return False
    made_by: Any = node.args[0]
    number: Any = node.args[1]
    return number == 1 and made_by.target is torch.ops.se_fused.batch_norm_squeeze_excite_backward.default


def _is_product(node: Any) -> bool:
    """Whether the node is the input gradient of a 1x1 convolution of stride 1, with no other use."""
    if not (isinstance(node, fx.Node) and node.target is operator.getitem and len(node.users) == 1):
        return False
    made_by: Any = node.args[0]
    if made_by.target is not torch.ops.aten.convolution_backward.default or node.args[1] != 0:
        return False
    _, _, weight, _, stride, padding, _, transposed, _, groups, _ = made_by.args
    sizes = weight.meta["val"].shape[2:]
    simple = all(s == 1 for s in (*stride, *sizes)) and all(p == 0 for p in padding)
    value = weight.meta["val"]
    if value.device.type not in DEVICES or not product_is_as_precise(value.device.type, value.dtype):
        return False
    return simple and not transposed and groups == 1


def accumulate_in_products(graph: fx.Graph) -> None:
    """Replace each sum of dr and a 1x1 convolution's input gradient by ``se_fused::add_input_gradient``."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true, sym_eq  # imports SymPy

    def alike(t: Tensor, other: Tensor) -> bool:
        return t.dtype == other.dtype and bool(statically_known_true(sym_eq(t.shape, other.shape)))

    functionalized: Any = torch.ops.higher_order.auto_functionalized_v2
    for total in graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor):
        if len(total.args) != 2 or total.kwargs:
            continue
        one, other = total.args
        dr, dx = (one, other) if _is_shortcut_gradient(one) else (other, one)
        if not (_is_shortcut_gradient(dr) and _is_product(dx)):
            continue
        if not all(alike(node.meta["val"], total.meta["val"]) for node in (dr, dx)):
            continue
        convolution = dx.args[0]
        dy, _, weight, *_, wanted = convolution.args
        with graph.inserting_before(total):
            # Functional, as all of the graph: Inductor then finds that dr is not used again, and writes to it.
            added = graph.call_function(
                functionalized,
                (torch.ops.se_fused.add_input_gradient.default,),
                {"dy": dy, "weight": weight, "_dr_base_index": 0, "_all_bases": [dr]},
            )
            added.meta["val"] = (None, total.meta["val"])
            result = graph.call_function(operator.getitem, (added, 1))
        result.meta.update(total.meta)
        total.replace_all_uses_with(result)
        graph.erase_node(total)
        graph.erase_node(dx)
        convolution.args = (*convolution.args[:-1], [False, *wanted[1:]])
        if convolution.users:
            found = convolution.meta["val"]
            convolution.meta["val"] = (None, *found[1:])
        else:
            graph.erase_node(convolution)


def install() -> None:
    """Add the pass to Inductor's, if Inductor is loaded and its user has set no pass of the same kind."""
    config: Any = sys.modules.get("torch._inductor.config")
    if config is not None and config.post_grad_custom_post_pass is None:
        from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

        class AccumulateInProducts(CustomGraphPass):
            def __call__(self, graph: fx.Graph) -> None:
                accumulate_in_products(graph)

            def uuid(self) -> Any:
                return get_hash_for_files((__file__,))  # a part of the keys of Inductor's caches

        config.post_grad_custom_post_pass = AccumulateInProducts()
