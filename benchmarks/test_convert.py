"""Networks of timm, torchvision and MONAI as they are and after ``se_fused.convert``."""

from harness import Settings, Shelf, Subject, run

from se_fused.bench.workloads.block import DTYPES
from se_fused.bench.workloads.converted import ConvertWorkload


def test_convert(
    benchmark, shelf: Shelf, settings: Settings, model: str, mode: str, batch: str, size: str, dtype: str,
    layout: str, peer: str,
) -> None:  # fmt: skip
    library, _, name = model.partition("-")
    group = f"{model} {mode} {batch}x{size} {dtype} {layout}"
    subject = Subject(
        group,
        lambda: ConvertWorkload(
            name, library, mode, DTYPES[dtype], settings.device, batch=int(batch), size=int(size), layouts=(layout,)
        ),
    )
    shelf.turn_to(group)
    to = None if peer == "converted" else (subject, "converted", layout)
    run(benchmark, shelf, settings, subject, peer, layout, kind="convert", group=group, to=to, info={"network": name})
