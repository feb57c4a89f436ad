"""Benchmarks of networks with and without SE: se_fused, timm eager and compiled, OpenVINO, ONNX Runtime, TensorRT.

The reference of a baseline is se_fused in channels_last. The reference of a network without SE is the same candidate
with SE, for the cost of SE.
"""

from harness import Bench, Contender, WorkloadSpec

from se_fused._formats import DTYPES
from se_fused.bench.workloads.network import ImageBatch, ModelWorkload

PLAIN = {
    "seresnet18": "resnet18",
    "seresnet50": "resnet50",
    "seresnet101": "resnet101",
    "seresnet152": "resnet152",
    "seresnext50_32x4d": "resnext50_32x4d",
}


def test_network(
    bench: Bench,
    network: str,
    mode: str,
    batch: str,
    size: str,
    dtype: str,
    candidate: str,
    layout: str,
    kind: str,
) -> None:
    group = f"{network} {mode} {batch}x{size} {dtype}"

    def spec(name: str) -> WorkloadSpec:
        return WorkloadSpec(
            f"{name} {group}",
            lambda: ModelWorkload(
                name, mode, DTYPES[dtype], bench.settings.device, data=ImageBatch(int(batch), int(size))
            ),
        )

    bench.workloads.start_group(group)
    with_se, info = spec(network), {"network": network}
    if kind == "plain":
        info["plain"] = True
        mine, to = (Contender(each, candidate, layout) for each in (spec(PLAIN[network]), with_se))
    else:
        mine, to = Contender(with_se, candidate, layout), Contender(with_se, "se_fused", "channels_last")
    bench.run(mine, to, kind="network", group=group, info=info)
