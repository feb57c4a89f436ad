"""Benchmarks of networks with and without SE: se_fused, timm eager and compiled, OpenVINO, ONNX Runtime, TensorRT.

The reference of a baseline is se_fused in channels_last. The reference of a network without SE is the same candidate
with SE, for the cost of SE.
"""

from harness import Settings, WorkloadCache, WorkloadSpec, run

from se_fused._formats import DTYPES
from se_fused.bench.workloads.network import ModelWorkload

PLAIN = {
    "seresnet18": "resnet18",
    "seresnet50": "resnet50",
    "seresnet101": "resnet101",
    "seresnet152": "resnet152",
    "seresnext50_32x4d": "resnext50_32x4d",
}


def test_network(
    benchmark,
    workloads: WorkloadCache,
    settings: Settings,
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
            lambda: ModelWorkload(name, mode, DTYPES[dtype], settings.device, batch=int(batch), size=int(size)),
        )

    workloads.start_group(group)
    with_se, info = spec(network), {"network": network}
    if kind == "plain":
        info["plain"] = True
        run(
            benchmark, workloads, settings, spec(PLAIN[network]), candidate, layout, kind="network", group=group,
            to=(with_se, candidate, layout), info=info,
        )  # fmt: skip
        return
    to = with_se, "se_fused", "channels_last"
    run(benchmark, workloads, settings, with_se, candidate, layout, kind="network", group=group, to=to, info=info)
