"""Tests of optimize_for_inference: arguments, copies and hooks of optimised models, and refusals with their reasons."""

import copy
from typing import Any

import pytest
import torch
from support.optimize import CLOSE, block, images, norms, optimized_and_same, ready
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import se_fused

pytestmark = pytest.mark.quick


# ---- arguments
class Speech(nn.Module):
    """A speech model, as in wespeaker and speechbrain: lengths after the features, then options."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8)

    def forward(self, x: Tensor, lengths: Tensor | None = None, return_features: bool = False, *, scale: float = 1.0):
        x = torch.relu(self.bn(self.conv(x))) * scale
        if lengths is not None:
            x = x * (torch.arange(x.shape[-1]) < lengths[:, None])[:, None]
        return x if return_features else x.mean(-1)


class Tabular(nn.Module):
    """A model with two inputs, an image and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.meta = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
        # these names are also attributes of a GraphModule or of the layers that optimisation adds
        self.graph, self.cast_input, self.cast_output = block(), nn.Conv2d(8, 8, 1), nn.Linear(16, 3)
        self.code = nn.Parameter(torch.randn(3))

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        features = self.cast_input(self.graph(image)).mean((2, 3))
        return self.cast_output(torch.cat([features, self.meta(table)], 1)) + self.code


class Variadic(Tabular):
    def forward(self, *inputs: Tensor, **switches: Any) -> Tensor:
        return super().forward(*inputs)


class OneDictionary(Tabular):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return super().forward(batch["image"], batch["table"])


def test_other_arguments_keep_their_defaults() -> None:
    x = images(2, 3, 9)
    fast = optimized_and_same(ready(Speech()), x)
    with pytest.raises(TypeError, match="positional argument"):
        fast(x, torch.tensor([3, 9]))


def test_as_many_arguments_as_examples() -> None:
    x, lengths = images(2, 3, 9), torch.tensor([3, 9])
    optimized_and_same(ready(Speech()), x, lengths)
    optimized_and_same(ready(Speech()), x=x, lengths=lengths)


def test_a_switch_is_what_it_is_in_the_example() -> None:
    x, model = images(2, 3, 9), ready(Speech())
    fast = se_fused.optimize_for_inference(model, {"x": x, "return_features": True, "scale": 2.0})
    with torch.no_grad():
        wanted = model(x, return_features=True, scale=2.0)
        torch.testing.assert_close(fast(x=x, return_features=True), wanted, **CLOSE)
        torch.testing.assert_close(copy.deepcopy(fast)(x), wanted, **CLOSE)
    with pytest.raises(ValueError, match=r"return_features was True when the model was optimised, got False"):
        fast(x, return_features=False)


@pytest.mark.parametrize("kind", [Tabular, Variadic])
def test_two_inputs_and_names_of_a_graph_module(kind: type[nn.Module]) -> None:
    optimized_and_same(ready(kind()), images(2, 3, 6, 6), images(2, 4))


def test_one_dictionary() -> None:
    batch = {"image": images(2, 3, 6, 6), "table": images(2, 4)}
    fast = se_fused.optimize_for_inference(ready(OneDictionary()), (batch,))
    with torch.no_grad():
        torch.testing.assert_close(fast(batch), ready(OneDictionary())(batch), **CLOSE)


def test_arguments_that_do_not_fit() -> None:
    for example in (None, images(2, 3, 6, 6), (images(2, 3, 6, 6),), {"picture": images(2, 3, 6, 6)}):
        with pytest.raises(ValueError, match=r"model\.forward\(image.*table.*cannot be called.*give example_input=\("):
            se_fused.optimize_for_inference(ready(Tabular()), example)
    with pytest.raises(TypeError, match=r"example_input must be a tensor, a tuple.*got list"):
        se_fused.optimize_for_inference(ready(Tabular()), [images(2, 3, 6, 6)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"model fails on an example of \(2, 4, 6, 6\).*give example_input"):
        se_fused.optimize_for_inference(ready(block()), images(2, 4, 6, 6))


# ---- code that runs during the optimisation
def test_hooks_are_neither_run_nor_carried_over() -> None:
    model, seen = ready(block()), []

    def record(module: nn.Module, args: Any, y: Tensor) -> None:
        seen.append(float(y.sum()) if y.sum() > 0 else 0.0)  # a proxy cannot be compared

    handles = [m.register_forward_hook(record) for m in model.modules()]
    handles += [m.register_full_backward_hook(lambda *a: seen.append(a)) for m in list(model)[:2]]
    handles.append(model[0].register_forward_pre_hook(lambda m, a: seen.append(a)))
    fast = se_fused.optimize_for_inference(model, images(2, 3, 6, 6))
    fast(images(2, 3, 6, 6))
    assert not seen and norms(fast) == 0
    model.requires_grad_(False)(images(2, 3, 6, 6))
    assert len(seen) == 6  # the model's own hooks are still there
    for handle in handles:
        handle.remove()


REPARAMETRISED = {
    "weight_norm": weight_norm,
    "spectral_norm": spectral_norm,
    "parametrized weight_norm": parametrizations.weight_norm,
    "parametrized spectral_norm": parametrizations.spectral_norm,
    "pruning": lambda m: prune.random_unstructured(m, "weight", 0.5),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("norm", REPARAMETRISED.values(), ids=REPARAMETRISED)
@pytest.mark.parametrize("called", [False, True], ids=["new", "called"])
def test_weights_that_are_computed(norm: Any, called: bool) -> None:
    model = ready(block())
    norm(model[0])
    x = images(2, 3, 6, 6)
    if called:  # then the weight is a non-leaf tensor, which copy.deepcopy refuses
        model.train()(x)
        model.eval()
    keys = list(model.state_dict())
    fast = optimized_and_same(model, x)
    assert norms(fast) == 0 and list(model.state_dict()) == keys


def test_a_recorded_map_is_no_obstacle() -> None:
    model = ready(block())
    model.last = model(images(2, 3, 6, 6))  # hooks and losses store maps like this; copy.deepcopy refuses it
    optimized_and_same(model, images(2, 3, 6, 6))


@pytest.mark.parametrize("name", ["densenet121", "resnet18", "efficientnet_b0"])
def test_feature_extractors(name: str) -> None:
    """torchvision's feature extractors, with a graph per mode and copies in training mode, can be optimised."""
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    model = ready(pytest.importorskip("torchvision").models.get_model(name, num_classes=5))
    nodes = {"features.denseblock1": "a"} if name == "densenet121" else {}
    nodes |= {"layer1": "a", "layer3": "b"} if name == "resnet18" else {}
    nodes |= {"features.1": "a", "flatten": "b"} if name == "efficientnet_b0" else {}
    extractor = extraction.create_feature_extractor(model, nodes).eval()
    optimized_and_same(extractor, images(2, 3, 64, 64))


def test_a_model_in_training_and_under_inference_mode() -> None:
    model = ready(block()).train()
    with torch.inference_mode():
        fast = se_fused.optimize_for_inference(model, images(2, 3, 6, 6))
    x = images(2, 3, 6, 6)
    torch.testing.assert_close(fast(x), copy.deepcopy(model).eval()(x).detach(), **CLOSE)
    assert model.training


def test_wrapped_models() -> None:
    model, x = ready(block()), images(2, 3, 6, 6)
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        fast = se_fused.optimize_for_inference(wrapped, x)
        torch.testing.assert_close(fast(x), model(x).detach(), **CLOSE)


# ---- layers that torch.fx cannot trace
class Swish(torch.autograd.Function):
    """A function as in the winning code of SIIM-ISIC 2020."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)


class SwishModule(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Swish.apply(x)


class Counts(nn.Module):
    """A module that branches on values and depends on its input's memory layout."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1, 2).flatten(1) if float(x.sum()) > -1e9 else -x


def test_layers_that_cannot_be_traced_are_called() -> None:
    model = ready(nn.Sequential(block(), SwishModule(), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3), Counts()))
    fast = optimized_and_same(model, images(2, 3, 6, 6))
    assert "Counts" in {type(m).__name__ for m in fast.modules()}


# ---- refusals
class Breaks(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner, self.how = block(), how

    def forward(self, x: Tensor) -> Any:
        x = self.inner(x)
        if self.how == "values":
            return x if x.mean() > -9 else -x
        if self.how == "type":  # as in MONAI's BasicUNet; a proxy is not a tensor
            return x * 2 if isinstance(x, Tensor) else x
        if self.how == "type and shape":
            return self.inner[3](torch.cat([x, x], 1)[:, 4:12] if isinstance(x, Tensor) else x[:, 4:])
        if self.how == "lists":
            return torch.stack([row for row in x])
        if self.how == "lengths":
            return x * len(x)
        return x.argmax(1)


@pytest.mark.parametrize(
    ("how", "match"),
    [
        (
            "values",
            r"cannot be traced by torch.fx in inner \(Breaks\): its forward branches on values or sizes.*convert",
        ),
        ("lists", r"branches on values or sizes \(TraceError: Proxy object cannot be iterated.*se_fused.convert"),
        ("lengths", r"uses an operation that torch.fx cannot record \(RuntimeError: 'len' is not supported.*convert"),
        ("type", r"computes something else when torch.fx traces it \(another result\): its forward checks the type"),
        ("type and shape", r"something else.*\(RuntimeError: Given groups=1.*channels instead.*\): its forward checks"),
        ("integers", r"returns no floating-point tensor.*optimise the part of the model that returns the logits"),
    ],
)
def test_refusals_in_one_line(how: str, match: str) -> None:
    model = ready(nn.Sequential())
    model.add_module("inner", Breaks(how))
    with pytest.raises(ValueError, match=match) as caught:
        se_fused.optimize_for_inference(ready(model), images(2, 3, 6, 6))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


class Uncopied:
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        raise NotImplementedError  # an error without a message


def test_refuses_what_it_cannot_copy_and_what_has_no_shape() -> None:
    model = ready(block())
    model.handle = iter(())  # copy.deepcopy cannot copy it
    model.lock = __import__("threading").Lock()
    with pytest.raises(ValueError, match=r"model cannot be copied.*copy\.deepcopy\(model\) must work"):
        se_fused.optimize_for_inference(model, images(2, 3, 6, 6))
    model.lock = Uncopied()
    with pytest.raises(ValueError, match=r"model cannot be copied \(NotImplementedError.*must work"):
        se_fused.optimize_for_inference(model, images(2, 3, 6, 6))
    with pytest.raises(ValueError, match=r"lazy parameters.*call the model once"):
        se_fused.optimize_for_inference(nn.Sequential(nn.LazyConv2d(4, 1)), images(2, 3, 6, 6))
