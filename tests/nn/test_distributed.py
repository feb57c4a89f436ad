"""DistributedDataParallel over two CPU processes: gradients are the mean of the ranks', hooks fire, and it ends."""

import socket

import torch
import torch.multiprocessing as mp
from support.ddp_rank import run_rank, small_images, small_model


def test_ddp_averages_gradients(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(run_rank, (port, tmp_path / "gradients.pt"), nprocs=2)
    gradients = torch.load(tmp_path / "gradients.pt")
    model = small_model()
    model(small_images()).square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            gradients[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=lambda t, n=name: f"{n}: {t}"
        )
