"""The list of mutants fits the sources: a changed line cannot drop out of the proof unnoticed."""

import ast
import re

import pytest
from mutants.catalogue import FAMILIES, load
from support.paths import ROOT

pytestmark = pytest.mark.quick

MUTANTS = load()


def test_ids_and_families() -> None:
    ids = [mutant.id for mutant in MUTANTS]
    assert len(ids) == len(set(ids))
    assert {mutant.family for mutant in MUTANTS} == set(FAMILIES)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", name) for name in ids)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_each_change_applies(mutant) -> None:
    text = (ROOT / mutant.file).read_text()
    assert text.count(mutant.old) == 1, f"{mutant.file} changed: adapt the entry in mutants.toml"
    assert mutant.new != mutant.old and mutant.breaks.endswith(".")
    assert mutant.tests
    for name in mutant.tests:
        file, _, function = name.partition("::")
        wanted = f"def {function}(" if function else "def test_"
        assert wanted in (ROOT / file).read_text(), f"{name} is gone: adapt the entry in mutants.toml"
    if mutant.file.endswith(".py"):
        ast.parse(text.replace(mutant.old, mutant.new))
