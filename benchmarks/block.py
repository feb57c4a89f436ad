"""What test_tail.py and test_scaling.py share."""

from typing import Any

from harness import Settings, Shelf, Subject, run

from se_fused.bench.workloads.block import DTYPES, TailWorkload

__all__ = ["tail_benchmark"]


def tail_benchmark(
    benchmark: Any, shelf: Shelf, settings: Settings, shape: tuple[int, int, int, int], tail: str, dtype: str,
    layout: str, peer: str, info: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """One candidate of a tail, held against ours; ours against a copy.

    Args:
        tail: "se-infer", "bn_se-train" and so on.
        info: more for ``extra_info``.
    """
    norm, _, mode = tail.partition("-")
    key = " ".join([tail, "x".join(map(str, shape)), dtype, layout])
    subject = Subject(
        key, lambda: TailWorkload(shape, DTYPES[dtype], layout, mode, settings.device, batch_norm=norm == "bn_se")
    )
    shelf.turn_to(key)
    to = None if peer == "se_fused" else (subject, "se_fused", layout)
    run(benchmark, shelf, settings, subject, peer, layout, kind="tail", group=key, to=to, info=info)
