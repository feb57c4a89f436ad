"""Running statistics under gradient checkpointing with the CUDA kernels, on a GPU or on the shim."""

import pytest
from support.cuda_backend import DEVICE, cuda_alone, given_backend  # noqa: F401 (fixtures)
from support.recomputation import FUNCTIONS, KINDS, assert_same_statistics, checkpointed, take_steps, trio


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("momentum", [0.1, None], ids=["momentum", "cumulative"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_statistics_move_as_in_pytorch(name: str, momentum: float | None, kind: str) -> None:
    modules = tuple(module.to(DEVICE) for module in trio(name, momentum))
    take_steps(modules, lambda m, x: checkpointed(kind, m, x), (3, 3, 5, 4))
    assert_same_statistics(*modules)
