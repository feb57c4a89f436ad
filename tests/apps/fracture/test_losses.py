"""Tests of the losses against their definitions, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("lightning", reason="training needs lightning")

from se_fused._errors import InputError
from se_fused.apps.fracture.training import class_weights, focal_loss
from se_fused.apps.fracture.training.losses import make_loss

pytestmark = pytest.mark.quick


def definition(logits, labels, gamma, alpha, smoothing):
    """Lin et al.'s equation 5, written term by term."""
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        top = max(row)
        mass = sum(math.exp(v - top) for v in row)
        for k, value in enumerate(row):
            p = math.exp(value - top) / mass
            q = (1 - smoothing) * (k == label) + smoothing / len(row)
            total -= q * alpha[k] * (1 - p) ** gamma * math.log(p)
    return total / len(labels)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal_loss_is_its_definition(gamma, smoothing):
    logits = 3 * torch.randn(7, 4, dtype=torch.float64)
    labels = torch.tensor([0, 3, 2, 1, 1, 0, 3])
    alpha = torch.tensor([0.5, 1.0, 2.0, 0.25], dtype=torch.float64)
    wanted = definition(logits, labels, gamma, alpha.tolist(), smoothing)
    # 28 terms, each with a few float64 roundings.
    assert focal_loss(logits, labels, gamma, alpha, smoothing).item() == pytest.approx(wanted, rel=1e-13)


def test_focal_loss_without_focus_is_cross_entropy():
    logits, labels = torch.randn(9, 5, dtype=torch.float64), torch.randint(5, (9,))
    wanted = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(focal_loss(logits, labels, 0.0, smoothing=0.1), wanted, rtol=1e-13, atol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_gradient(gamma):
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    labels, alpha = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, labels, gamma, alpha, 0.1), logits)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_of_certainty(gamma):
    """The focal loss has finite gradients if p is exactly 1, where the slope of 0 ** gamma could give NaN."""
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0, 0]), gamma)
    loss.backward()
    assert loss.item() == pytest.approx(100.0) and logits.grad.isfinite().all()


def test_class_weights_are_their_formulas():
    counts = [100, 10, 1]
    n = torch.tensor(counts, dtype=torch.float64)
    for kind, raw in {"inverse": 1 / n, "sqrt": n**-0.5, "effective": (1 - 0.99) / (1 - 0.99**n)}.items():
        made = class_weights(counts, kind, 0.99)
        torch.testing.assert_close(made / made[0], (raw / raw[0]).float(), rtol=1e-6, atol=0)
        assert (made.double() * n).sum().item() == pytest.approx(111, rel=1e-6), "the loss keeps its scale"
    assert class_weights(counts, "none") is None
    with pytest.raises(InputError, match="without training images"):
        class_weights([3, 0], "inverse")


def test_weighted_loss_is_a_mean_over_images():
    """The weighted loss of a batch is the mean of the losses of its parts, unlike F.cross_entropy's weighted mean."""
    logits, labels = torch.randn(8, 3, dtype=torch.float64), torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    for kind in ("cross_entropy", "focal"):
        whole = make_loss(kind, 2.0, 0.1, weight, logits, labels)
        halves = [make_loss(kind, 2.0, 0.1, weight, logits[i], labels[i]) for i in (slice(0, 4), slice(4, 8))]
        torch.testing.assert_close(whole, sum(halves) / 2, rtol=1e-13, atol=0)
    each = -F.log_softmax(logits, 1)[range(8), labels] * weight[labels]
    torch.testing.assert_close(make_loss("cross_entropy", 0.0, 0.0, weight, logits, labels), each.mean())


def test_half_precision_logits_are_widened():
    logits = torch.tensor([[60.0, -60.0]], dtype=torch.bfloat16)
    assert make_loss("cross_entropy", 0, 0.0, None, logits, torch.tensor([1])).dtype == torch.float32
