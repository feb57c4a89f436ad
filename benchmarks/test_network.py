"""Whole networks, the one without SE beside each: ours, timm's eager and compiled, OpenVINO, ONNX Runtime, TensorRT.

Peers are held against ours in channels_last; a network without SE against the same candidate with it: what SE costs.
"""

from harness import Settings, Shelf, Subject, run

from se_fused.bench.workloads.block import DTYPES
from se_fused.bench.workloads.network import ModelWorkload

PLAIN = {
    "seresnet18": "resnet18", "seresnet50": "resnet50", "seresnet101": "resnet101", "seresnet152": "resnet152",
    "seresnext50_32x4d": "resnext50_32x4d",
}  # fmt: skip


def test_network(
    benchmark, shelf: Shelf, settings: Settings, network: str, mode: str, batch: str, size: str, dtype: str,
    peer: str, layout: str, kind: str,
) -> None:  # fmt: skip
    group = f"{network} {mode} {batch}x{size} {dtype}"

    def subject(name: str) -> Subject:
        return Subject(
            f"{name} {group}",
            lambda: ModelWorkload(name, mode, DTYPES[dtype], settings.device, batch=int(batch), size=int(size)),
        )

    shelf.turn_to(group)
    with_se, info = subject(network), {"network": network}
    if kind == "plain":
        info["plain"] = True
        run(
            benchmark, shelf, settings, subject(PLAIN[network]), peer, layout, kind="network", group=group,
            to=(with_se, peer, layout), info=info,
        )  # fmt: skip
        return
    ours = "se_fused", "channels_last"
    to = None if (peer, layout) == ours else (with_se, *ours)
    run(benchmark, shelf, settings, with_se, peer, layout, kind="network", group=group, to=to, info=info)
