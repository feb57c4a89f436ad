"""Which spellings of a squeeze-excite layer and of a block's end the backend "se_fused" replaces, and which it must
leave: those whose intermediate results are read elsewhere, or whose inputs change in between."""

import copy
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.compile import counts, keeping
from support.modules import assert_as_close, one_thread  # noqa: F401 (a fixture)
from torch import Tensor, nn

from se_fused import backends

BN, SE, BN_SE = "batch_norm_act", "squeeze_excite", "batch_norm_squeeze_excite"
N, C, R = 4, 6, 3


class Parts(nn.Module):
    """The parameters of a block, whose end is any function of them and of a map."""

    def __init__(self, run: Callable[..., Tensor], dims: int = 2) -> None:
        super().__init__()
        self.run, self.dims = run, dims
        self.bn = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1](C)
        self.w1, self.w2 = nn.Parameter(torch.randn(R, C)), nn.Parameter(torch.randn(C, R))
        self.b1, self.b2 = nn.Parameter(torch.randn(R)), nn.Parameter(torch.randn(C))
        self.kernel = nn.Parameter(torch.randn(C, C, 1, 1))

    def gate(self, m: Tensor) -> Tensor:
        """The factor (N, C, 1, 1) from the means (N, C)."""
        return torch.sigmoid(F.linear(F.relu(F.linear(m, self.w1, self.b1)), self.w2, self.b2))[:, :, None, None]

    def excited(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def steps(run: Callable[..., Tensor], dims: int, training: bool, seed: int) -> tuple[Counter[str], list[list[Tensor]]]:
    """The inserted calls; and the result, gradients and statistics of the backend, of eager mode, and in float64."""
    torch.manual_seed(seed)
    x = torch.randn(N, C, *(5, 4, 3)[:dims])
    ours = Parts(run, dims).train(training)
    models = [ours, copy.deepcopy(ours), copy.deepcopy(ours).double()]
    graphs, backend = keeping()
    torch._dynamo.reset()
    calls = [torch.compile(ours, fullgraph=True, backend=backend), *models[1:]]
    results = []
    for model, call, given in zip(models, calls, (x, x, x.double()), strict=True):
        given = given.clone().requires_grad_()
        y = call(given * 1)
        (y * torch.arange(1, 1 + y.numel()).reshape(y.shape).sin()).sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append([y.detach(), given.grad, *gradients, *model.buffers()])
    return counts(graphs), results


def replaced(run: Callable[..., Tensor], dims: int = 2, training: bool = True) -> Counter[str]:
    """The inserted calls, after a check of all results. Of five draws one must be in bounds: terms may cancel in the
    gradient of a few numbers."""
    for seed in range(5):
        inserted, results = steps(run, dims, training, seed)
        try:
            for mine, theirs, truth in zip(*results, strict=True):
                assert_as_close(mine, theirs, truth)
            return inserted
        except AssertionError as wrong:
            last = wrong
    raise last


# ---- squeeze-excite as models spell it
def hu(p, x):
    b, c, _, _ = x.size()
    y = F.adaptive_avg_pool2d(x, 1).view(b, c)
    y = F.linear(y, p.w1).relu()
    return x * torch.sigmoid(F.linear(y, p.w2)).view(b, c, 1, 1).expand_as(x)


def convolutions(p, x):
    y = F.conv2d(x.mean((2, 3), keepdim=True), p.w1[:, :, None, None], p.b1)
    y = F.hardsigmoid(F.conv2d(F.silu(y, inplace=True), p.w2[:, :, None, None], p.b2))
    return y * x


def flattened(p, x):
    y = F.linear(torch.tanh(F.linear(x.flatten(2).mean(-1), p.w1, p.b1)), p.w2, p.b2)
    return x.mul(y.sigmoid_().unsqueeze(-1).unsqueeze(-1))


def without_activation(p, x):
    return x * F.linear(F.linear(x.mean((-1, -2)), p.w1), p.w2).sigmoid().reshape(N, C, 1, 1)


def gelu(p, x):
    y = F.gelu(F.linear(x.mean([2, 3]), p.w1), approximate="none")
    return x * F.linear(y, p.w2).sigmoid().reshape(*x.shape[:2], 1, 1)


SPELLINGS = [hu, convolutions, flattened, without_activation, gelu]


@pytest.mark.quick
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(spelling):
    assert replaced(spelling) == {SE: 1}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_after_batch_norm(spelling):
    assert replaced(lambda p, x: spelling(p, p.bn(x))) == {BN_SE: 1}


@pytest.mark.parametrize("dims", [1, 3])
def test_other_numbers_of_dimensions(dims):
    def run(p, x):
        pool = (F.adaptive_avg_pool1d, F.adaptive_avg_pool3d)[dims // 2]
        y = torch.relu(F.linear(pool(x, 1).flatten(1), p.w1))
        return x * torch.sigmoid(F.linear(y, p.w2)).view(N, C, *(1,) * dims) + x

    assert replaced(run, dims) == {SE: 1}
    assert replaced(lambda p, x: run(p, p.bn(x)).relu(), dims) == {SE: 1}  # batch norm's result is the residual


# ---- ends of blocks
ENDS = {
    "act": lambda u, r, d: F.relu(u, inplace=True),
    "add": lambda u, r, d: u + r,
    "add-act": lambda u, r, d: torch.relu_(u.add_(r)),
    "other-order": lambda u, r, d: F.silu(r + u),
    "drop": lambda u, r, d: F.hardswish(u * d + r, True),
    "drop-in-place": lambda u, r, d: u.mul_(d).add_(r).relu_(),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", [BN, SE, BN_SE])
def test_ends(name, end):
    def run(p, x):
        r = x + 1
        u = p.bn(x) if name != SE else x
        u = p.excited(u) if name != BN else u
        d = u.new_empty((N, 1, 1, 1)).fill_(0.5)
        return ENDS[end](u, r, d)

    assert replaced(run) == {name: 1}


def test_batch_norm_alone_is_left():
    assert not replaced(lambda p, x: p.bn(x))


def test_evaluation_mode_with_gradients():
    assert replaced(lambda p, x: p.bn(x).relu(), training=False) == {BN: 1}


def test_projection():
    """Between an activation and a 1x1 convolution, the means come from the pass before, and scale the convolution."""

    def run(p, x, kernel=lambda p: p.kernel, **options):
        return F.conv2d(p.excited(F.silu(p.bn(x))), kernel(p), **options)

    fused = {"batch_norm_act_squeeze": 1, "gated_conv1x1": 1}
    assert replaced(run) == fused
    assert replaced(lambda p, x: p.bn(run(p, x)).relu()) == {**fused, BN: 1}
    # another convolution, and another reader of the activated map
    apart = {BN: 1, SE: 1}
    assert replaced(lambda p, x: run(p, x, stride=2)) == apart
    assert replaced(lambda p, x: run(p, x, lambda p: p.kernel[:, :2], groups=3)) == apart
    assert replaced(lambda p, x: run(p, x, lambda p: p.kernel.expand(C, C, 3, 3))) == apart
    assert replaced(lambda p, x: F.conv2d(p.excited(u := F.silu(p.bn(x))), p.kernel) + u) == apart


# ---- what must stay
def second_user(p, x):
    u = p.bn(x)
    return F.relu(u) + u


def second_user_of_the_gate(p, x):
    s = p.gate(x.mean((2, 3)))
    return x * s + s


def written_map(p, x):
    u = x * 1
    s = p.gate(u.mean((2, 3)))
    u.add_(1)
    return u * s


def written_through_a_view(p, x):
    u = x * 1
    s = p.gate(u.mean((2, 3)))
    u.view(-1).add_(1)
    return u * s


def written_residual(p, x):
    r = x * 2
    u = p.bn(x) + r
    r.add_(1)
    return F.relu(u) * r


def sum_in_the_residual(p, x):
    r = x * 2
    r += p.bn(x)
    return r.sigmoid() + r


def product_in_the_map(p, x):
    u = x * 1
    u *= p.gate(u.mean((2, 3)))
    return u


def statistics_read(p, x):
    u = p.bn(x)
    mean = p.bn.running_mean * 1
    return F.relu(u) + mean[:, None, None]


def normalised_twice(p, x):
    u = p.bn(x)
    v = p.bn(x + 1)
    return F.relu(u) * v


def without_gradient(p, x):
    u = p.bn(x)
    with torch.no_grad():
        v = F.relu(u)
    return v + x


def other_means(p, x):
    u = F.pad(x, (0, 2))  # as wide as it has channels
    return u * p.gate(u.mean((1, 2)))


def other_channels(p, x):
    order = torch.arange(C - 1, -1, -1)
    return x * p.gate(x.mean((2, 3)))[:, order]


def grouped(p, x):
    y = F.conv2d(x.mean((2, 3), keepdim=True), p.w1[:, :2, None, None], groups=3).relu()
    return x * F.conv2d(y, p.w2[:, :, None, None]).sigmoid()


def other_slope(p, x):
    return F.leaky_relu(p.bn(x), 0.2)


def tanh_approximation(p, x):
    return x * F.linear(F.gelu(F.linear(x.mean((2, 3)), p.w1), approximate="tanh"), p.w2).sigmoid()[:, :, None, None]


def weighted_sum(p, x):
    return torch.add(p.bn(x), x, alpha=2)


def learnt_scale(p, x):
    return p.bn(x) * p.b2[:N].reshape(N, 1, 1, 1)


def scale_of_channels(p, x):
    return p.bn(x) * torch.arange(C).reshape(1, C, 1, 1)


LEFT = [
    second_user, second_user_of_the_gate, written_map, written_through_a_view, written_residual, sum_in_the_residual,
    product_in_the_map, statistics_read, normalised_twice, without_gradient, other_means, other_channels, grouped,
    other_slope, tanh_approximation, weighted_sum, learnt_scale, scale_of_channels,
]  # fmt: skip


@pytest.mark.quick
@pytest.mark.parametrize("run", LEFT)
def test_left(run):
    assert not replaced(run)


def test_parts_are_left():
    """What has another form ends the replaced group; the operations before it are replaced."""
    assert replaced(lambda p, x: torch.add(p.excited(p.bn(x)), x, alpha=2)) == {BN_SE: 1}
    assert replaced(lambda p, x: p.excited(second_user(p, x))) == {SE: 1}

    def added_in_place(p, x):
        r = x * 2
        r += p.excited(p.bn(x))
        return r

    assert replaced(added_in_place) == {BN_SE: 1}

    def with_its_map(p, x):
        u = p.bn(x)
        return p.excited(u) + u

    assert replaced(with_its_map) == {SE: 1}
    assert replaced(lambda p, x: p.excited(u := p.bn(x)) + u.sigmoid()) == {SE: 1}


def test_hooks_are_second_users():
    """Dynamo records a hook's operations."""

    graphs, backend = keeping()
    model = nn.Sequential(nn.BatchNorm2d(C), nn.ReLU())
    seen = []
    model[0].register_forward_hook(lambda _, given, result: seen.append(result))
    x = torch.randn(N, C, 5, 4)
    torch._dynamo.reset()
    y = torch.compile(model, backend=backend)(x)
    torch.testing.assert_close(seen[0].relu(), y)
    assert not counts(graphs)


def test_other_dtypes_and_backends():
    run = Parts(lambda p, x: p.excited(p.bn(x)).relu())
    x = torch.randn(N, C, 5, 4)
    for model, given, name, wanted in (
        (copy.deepcopy(run).double(), x.double(), "auto", {}),
        (copy.deepcopy(run).double(), x.double(), "cpu", {}),
        (run, x, "reference", {}),
        (run, x, "cpu", {BN_SE: 1}),
    ):
        torch._dynamo.reset()
        graphs, backend = keeping()
        with backends.use_backend(name):
            torch.compile(model, fullgraph=True, backend=backend)(given)
        assert counts(graphs) == wanted


def test_transforms_are_left():
    graphs, backend = keeping()
    model = Parts(lambda p, x: p.excited(x))

    def loss(x):
        return model(x).sum()

    x = torch.randn(N, C, 5, 4)
    torch._dynamo.reset()
    ours = torch.compile(torch.func.grad(loss), backend=backend)(x)
    torch.testing.assert_close(ours, torch.func.grad(loss)(x))
    assert graphs and not counts(graphs)
