"""One rank of the test of DistributedDataParallel. Each rank is a process that imports this module by name."""

import os

import torch
import torch.distributed as dist

from se_fused import SEResNet18


def small_model():
    torch.manual_seed(0)
    return SEResNet18(num_classes=3, zero_init_last=False).eval()  # eval: the statistics do not depend on the rank


def small_images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def run_rank(rank, port, path):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model = torch.nn.parallel.DistributedDataParallel(small_model())
    model(small_images()[rank::2]).square().mean().backward()
    if rank == 0:
        torch.save({k: p.grad for k, p in model.module.named_parameters()}, path)
    dist.destroy_process_group()
