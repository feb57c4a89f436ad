"""DistributedDataParallel over two CPU processes: gradients are the mean of the ranks', hooks fire, nothing hangs."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from se_fused import SEResNet18


def _model():
    torch.manual_seed(0)
    return SEResNet18(num_classes=3, zero_init_last=False).eval()  # eval: statistics that do not depend on the rank


def _images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def _rank(rank, port, path):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model = torch.nn.parallel.DistributedDataParallel(_model())
    model(_images()[rank::2]).square().mean().backward()
    if rank == 0:
        torch.save({k: p.grad for k, p in model.module.named_parameters()}, path)
    dist.destroy_process_group()


@pytest.mark.slow
def test_ddp_averages_gradients(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_rank, (port, tmp_path / "gradients.pt"), nprocs=2)
    gradients = torch.load(tmp_path / "gradients.pt")
    model = _model()
    model(_images()).square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            gradients[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=lambda t, n=name: f"{n}: {t}"
        )
