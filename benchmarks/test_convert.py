"""Benchmarks of networks of timm, torchvision and MONAI before and after ``se_fused.convert``."""

from harness import Settings, WorkloadCache, WorkloadSpec, run

from se_fused._formats import DTYPES
from se_fused.bench.workloads.converted import ConvertWorkload


def test_convert(
    benchmark,
    workloads: WorkloadCache,
    settings: Settings,
    model: str,
    mode: str,
    batch: str,
    size: str,
    dtype: str,
    layout: str,
    candidate: str,
) -> None:
    library, _, name = model.partition("-")
    group = f"{model} {mode} {batch}x{size} {dtype} {layout}"
    spec = WorkloadSpec(
        group,
        lambda: ConvertWorkload(
            name, library, mode, DTYPES[dtype], settings.device, batch=int(batch), size=int(size), layouts=(layout,)
        ),
    )
    workloads.start_group(group)
    to = (spec, "converted", layout)
    run(
        benchmark,
        workloads,
        settings,
        spec,
        candidate,
        layout,
        kind="convert",
        group=group,
        to=to,
        info={"network": name},
    )
