"""Benchmark cases of each preset, as rows of strings. Rows with the same workload are adjacent, so it is built once.

On a CPU with two cores, ``default`` takes about an hour with all baselines; ``full`` adds batch sizes, networks and
float16.
"""

from se_fused._formats import DTYPES, LAYOUTS
from se_fused.bench.providers.modules import LIBRARIES
from se_fused.bench.providers.registry import compiles
from se_fused.bench.workloads.base import MODES
from se_fused.bench.workloads.block import STAGES
from se_fused.bench.workloads.converted import CONVERTED

__all__ = ["PASSES", "PRESETS", "STUDIES", "cases", "sizes"]

PRESETS = ("smoke", "default", "full")
Rows = list[tuple[str, ...]]

SMOKE_STAGES = ((2, 64, 14, 14), (2, 128, 7, 7))
BLOCKS = ("se-infer", "se-train", "bn_se-forward", "bn_se-train")
NETWORKS = ("seresnet50", "seresnet101", "seresnet152", "seresnext50_32x4d")
UNMEASURED = ("legacy_seresnet50",)  # models that only the tests convert

# Values of each axis of the scaling studies. "samples" is the batch size of maps with one position, where the two fully
# connected layers are all the work.
STUDIES = {
    "batch": (1, 2, 8, 32, 128, 512),
    "image": (64, 128, 224, 384, 640, 1024),
    "channels": (16, 64, 256, 1024, 2048, 4096),
    "positions": (1, 10, 100, 1000, 10_000, 100_000, 1_000_000),
    "samples": (2, 8, 64, 256, 512),
}


# For each pass: maps read, maps written, masks, floating-point operations per element
PASSES = {
    "moments": (1, 0, 0, 4),
    "scale_shift_act": (2, 1, 1, 4),
    "moments_backward": (2, 1, 1, 5),
    "scale_shift_act_backward": (2, 1, 0, 5),
    "scale_shift_act_mean": (1, 1, 0, 7),
    "scale_shift_act_mean_backward": (2, 1, 0, 14),
}


def compilers(device: str, freezing: bool = False) -> tuple[str, ...]:
    """Candidates with torch.compile on a device."""
    if device == "cuda":
        return ("compile", "compile max-autotune", "compile reduce-overhead")
    return ("compile", "compile freezing") if freezing else ("compile",)


def stages(preset: str, device: str) -> list[str]:
    if preset == "smoke":
        return ["x".join(map(str, s)) for s in SMOKE_STAGES]
    batches = {"cpu": {"default": (8,), "full": (1, 8, 64)}, "cuda": {"default": (128,), "full": (1, 8, 32, 128)}}
    return ["x".join(map(str, (batch, *s[1:]))) for batch in batches[device][preset] for s in STAGES]


def sizes(stage: str) -> tuple[int, int, int, int]:
    """(N, C, H, W) from the name of a stage, such as "8x256x56x56"."""
    n, c, h, w = (int(size) for size in stage.split("x"))
    return n, c, h, w


def dtypes(preset: str) -> tuple[str, ...]:
    return {"smoke": ("float32",), "default": ("float32", "bfloat16"), "full": tuple(DTYPES)}[preset]


def block_rows(preset: str, device: str) -> Rows:
    def candidates(block: str) -> tuple[str, ...]:
        # timm's module is the fastest in eager mode: it adds and applies ReLU in place, se_fused.reference does not.
        modules = LIBRARIES if block == "se-infer" or preset != "default" else ("timm",)
        return ("se_fused", "eager", *modules, *compilers(device))

    return [
        (stage, block, dtype, layout, candidate)
        for stage in stages(preset, device)
        for block in BLOCKS
        for dtype in dtypes(preset)
        for layout in LAYOUTS
        for candidate in candidates(block)
        # in the smoke preset, one compilation is enough, because each takes seconds
        if preset != "smoke" or not compiles(candidate) or (block, layout) == ("se-infer", "contiguous")
    ]


def pass_rows(preset: str, device: str) -> Rows:
    backends = ("cuda", "triton") if device == "cuda" else ("cpu",)
    return [
        (stage, dtype, layout, backend, kernel)
        for stage in stages(preset, device)
        for dtype in dtypes(preset)
        for layout in LAYOUTS
        for backend in backends
        for kernel in PASSES
    ]


def conv1x1_rows(preset: str, device: str) -> Rows:
    products = ("product", "separate", "cublaslt") if device == "cuda" else ()
    candidates = ("se_fused", "eager", "convolution", *products)
    return [
        (stage, dtype, candidate)
        for stage in stages(preset, device)
        for dtype in dtypes(preset)
        for candidate in candidates
    ]


def network_rows(preset: str, device: str) -> Rows:
    """Rows (network, mode, batch, size, dtype, candidate, layout, "se" or "plain")."""
    gpu = device == "cuda"
    both = [(name, layout) for name in ("se_fused", "eager") for layout in LAYOUTS]
    infer = [*both, ("se_fused optimized", "channels_last")]
    infer += [(way, "channels_last") for way in compilers(device, freezing=True)]
    # On a CPU, these take minutes to compile and add little to se_fused.optimize_for_inference.
    compiled = ("se_fused compile", "se_fused compile reduce-overhead") if gpu or preset == "full" else ()
    infer += [(way, "channels_last") for way in compiled]
    infer += [(engine, "contiguous") for engine in ("openvino", "onnxruntime", *(("tensorrt",) if gpu else ()))]
    train = [*both, *((way, "channels_last") for way in (*compilers(device), *compiled))]
    # The fast candidates are also measured on the network without SE, for the cost of SE.
    best = ("se_fused", "eager", "se_fused optimized", "openvino", "onnxruntime", "tensorrt", *compilers(device))
    best += ("compile freezing", *compiled)
    layouts = {"openvino": "contiguous", "onnxruntime": "contiguous", "tensorrt": "contiguous"}

    def kinds(ways: list[tuple[str, str]], sets: tuple[str, ...]) -> list[tuple[str, str, str]]:
        return [
            (name, layout, kind)
            for kind in sets
            for name, layout in ways
            if kind == "se" or (name in best and layout == layouts.get(name, "channels_last"))
        ]

    if preset == "smoke":
        quick = [way for way in infer if not compiles(way[0])]
        return [
            ("seresnet18", mode, "2", "64", "float32", *way)
            for mode, ways in (("infer", quick), ("train", both))
            for way in kinds(ways, ("se", "plain"))
        ]
    full = preset == "full"
    networks = NETWORKS if gpu or full else NETWORKS[:1]
    wanted = dtypes(preset) if full or not gpu else ("bfloat16",)
    few = "64" if gpu else "8"

    def batches(network: str) -> tuple[str, ...]:
        if full or (gpu and network == NETWORKS[0]):
            return ("1", "8", "64", "256")
        return (few,) if gpu else ("1", "8")

    rows = [
        (network, "infer", batch, "224", dtype, *way)
        for network in networks
        for dtype in wanted
        for batch in batches(network)
        for way in kinds(infer, ("se", "plain"))
    ]
    return rows + [
        (network, "train", few, "224", dtype, *way)
        for network in networks
        for dtype in (wanted if gpu or full else ("float32",))
        for way in kinds(train, ("se", "plain"))
    ]


def convert_rows(preset: str, device: str) -> Rows:
    """Rows (library-name, mode, batch, size, dtype, layout, candidate)."""
    names = [f"{library}-{name}" for name, library in CONVERTED if name not in UNMEASURED]
    if preset == "smoke":
        names = ["timm-efficientnet_b0"]
    batch, size = ("2", "64") if preset == "smoke" else ("64" if device == "cuda" else "8", "224")
    wanted = ("float32",) if device == "cpu" and preset != "full" else dtypes(preset)
    layouts = tuple(LAYOUTS) if preset == "full" else ("channels_last",)
    return [
        (name, mode, batch, size, dtype, layout, candidate)
        for name in names
        for dtype in wanted
        for mode in MODES
        for layout in layouts
        for candidate in ("converted", "original")
    ]


def host_rows(preset: str, device: str) -> Rows:
    """Rows (mode, dtype, candidate) of SE-ResNet50 on the stand-in device, whatever the machine has."""
    smoke = preset == "smoke"
    return [
        (mode, dtype, candidate)
        for mode in ("inference", "step")
        for dtype in ("float32", "bfloat16")[: 1 if smoke else None]
        for candidate in ("se_fused", "converted")[: 1 if smoke else None]
    ]


def scaling_rows(preset: str, device: str) -> Rows:
    """Rows (axis, value, block, dtype, candidate)."""
    candidates = ("se_fused", "eager", *(() if preset == "smoke" else ("timm", "compile")))
    return [
        (axis, str(value), block, "float32", candidate)
        for axis, values in STUDIES.items()
        for block in ("se-infer", "bn_se-train")
        for value in (values[:2] if preset == "smoke" else values)
        for candidate in candidates
    ]


def network_scaling_rows(preset: str, device: str) -> Rows:
    """Rows (axis, value, network, dtype, candidate, layout) of networks by batch size and by image size."""
    gpu = device == "cuda"
    if preset == "smoke":
        network, values = "seresnet18", {"batch": (1, 2), "image": (64, 96)}
    else:
        network, values = "seresnet50", {"batch": STUDIES["batch"], "image": STUDIES["image"]}
        if not gpu and preset != "full":
            values = {"batch": (1, 2, 4, 16), "image": (64, 128, 384, 640)}
    ways = [("se_fused optimized", "channels_last"), ("se_fused", "channels_last"), ("eager", "channels_last")]
    if gpu or preset == "full":
        ways += [(way, "channels_last") for way in compilers(device, freezing=True)]
    return [
        (axis, str(value), network, "bfloat16" if gpu else "float32", *way)
        for axis in values
        for value in values[axis]
        for way in ways
    ]


_CASES = {
    "test_pass": ("stage dtype layout backend kernel", pass_rows),
    "test_block": ("stage block dtype layout candidate", block_rows),
    "test_conv1x1": ("stage dtype candidate", conv1x1_rows),
    "test_network": ("network mode batch size dtype candidate layout kind", network_rows),
    "test_convert": ("model mode batch size dtype layout candidate", convert_rows),
    "test_host": ("mode dtype candidate", host_rows),
    "test_scaling": ("axis value block dtype candidate", scaling_rows),
    "test_network_scaling": ("axis value network dtype candidate layout", network_scaling_rows),
}


def cases(test: str, preset: str, device: str) -> tuple[list[str], Rows] | None:
    """Parameter names and rows of a benchmark; None if it has no table of cases."""
    if test not in _CASES:
        return None
    names, rows = _CASES[test]
    return names.split(), rows(preset, torch_type(device))


def torch_type(device: str) -> str:
    """Type of a device: "cuda" for "cuda:1"."""
    return device.partition(":")[0]
