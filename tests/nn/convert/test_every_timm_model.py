"""convert and revert on every timm architecture whose name implies SE. This takes long and runs only on request:

SE_FUSED_TEST_TIMM='*' pytest tests/nn/convert/test_every_timm_model.py        all of them
SE_FUSED_TEST_TIMM='*1/8' ...                                     the second of eight parts
SE_FUSED_TEST_TIMM='regnety_*' ...                                all that match the pattern
"""

import copy
import fnmatch
import os
import re

import pytest
import timm
import torch
from support.convert import classes, step
from support.modules import assert_as_close, one_thread, randomise, rms  # noqa: F401 (a fixture)

import se_fused

ASKED, _, PARTS = os.environ.get("SE_FUSED_TEST_TIMM", "").partition("/")
NAMES = [n for n in timm.list_models() if re.search(r"(?<!ba)(?<!den)se|efficientnet|mobilenetv3|regnety", n)]
if PARTS:
    NAMES, ASKED = NAMES[int(ASKED.removeprefix("*")) :: int(PARTS)], "*"
NAMES = fnmatch.filter(NAMES, ASKED) if ASKED else []
LARGEST = 60_000_000  # parameters: a float64 model, its copy and their gradients then take 2 GB

pytestmark = [
    pytest.mark.skipif(not NAMES, reason="every architecture only with SE_FUSED_TEST_TIMM='*'"),
]


@pytest.mark.parametrize("name", NAMES or ["none"])
def test_architecture(name):
    with torch.device("meta"):
        size = sum(p.numel() for p in timm.create_model(name, num_classes=64).parameters())
    if size > LARGEST:
        pytest.skip(f"{size / 1e6:.0f} million parameters")
    model = timm.create_model(name, num_classes=64).eval()
    randomise(model)
    before = classes(model)
    fixed = getattr(model, "default_cfg", {}).get("fixed_input_size")
    x = torch.randn(2, *((3, 64, 64) if not fixed else model.default_cfg["input_size"]))
    original, truth = copy.deepcopy(model), copy.deepcopy(model).double()
    state = model.state_dict()
    se_fused.convert(model)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    print(se_fused.conversion_report(model))
    with torch.no_grad():
        exact = truth(x.double())
        # sums of up to several thousand terms in each of many layers
        assert_as_close(model(x), original(x), exact, terms=10_000)
    wide = se_fused.convert(copy.deepcopy(truth))
    for training in (False, True):
        y, wanted = step(truth.train(training), x.double())
        ours, mine = step(wide.train(training), x.double())
        torch.testing.assert_close(ours, y, rtol=1e-9, atol=1e-10 * rms(y))
        for key, value in mine.items():
            torch.testing.assert_close(
                value, wanted[key], rtol=1e-6, atol=1e-8 * rms(wanted[key].double()) + 1e-12, msg=key
            )
        truth.zero_grad(), wide.zero_grad()
    assert classes(se_fused.revert(model)) == before
