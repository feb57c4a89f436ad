"""The cache of what tests compile (support/compiled.py)."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from support import compiled

pytestmark = pytest.mark.skipif(compiled.COMPILER is None, reason="needs a C++ compiler")


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two files of a program that exits with ``value()``; one of them includes a header."""
    monkeypatch.setenv("SE_FUSED_TEST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "value.h").write_text("constexpr int kValue = 3;\n")
    (tmp_path / "value.cpp").write_text('#include "value.h"\nint value() { return kValue; }\n')
    (tmp_path / "main.cpp").write_text("int value();\nint main() { return value(); }\n")
    return [tmp_path / "main.cpp", tmp_path / "value.cpp"]


def objects() -> set[str]:
    return {path.name for path in compiled.cache("objects").iterdir()}


def test_only_what_changed_is_compiled(sources: list[Path], tmp_path: Path) -> None:
    program = compiled.build(sources)
    first = objects()
    assert subprocess.run([program], check=False).returncode == 3 and len(first) == 2

    (tmp_path / "value.h").write_text("constexpr int kValue = 3;  // the same\n")
    assert compiled.build(sources) == program and objects() == first, "a comment changes nothing"

    (tmp_path / "value.h").write_text("constexpr int kValue = 4;\n")
    changed = compiled.build(sources)
    assert subprocess.run([changed], check=False).returncode == 4 and changed != program
    assert len(objects() - first) == 1, "main.cpp does not see the header"
    assert len(objects()) == len(first) + 1 and compiled.build(sources, ["-O1"]) != changed


def test_errors_are_raised_and_not_cached(sources: list[Path], tmp_path: Path) -> None:
    (tmp_path / "value.cpp").write_text("int value() { return nothing; }\n")
    for _ in range(2):
        with pytest.raises(subprocess.CalledProcessError) as failed:
            compiled.build(sources)
        assert "nothing" in failed.value.stderr
    assert len(objects()) == 1 and not list(compiled.cache("linked").iterdir())


def test_unused_files_are_deleted(sources: list[Path], tmp_path: Path) -> None:
    first = compiled.build(sources)
    old = time.time() - 40 * 24 * 3600
    for path in (tmp_path / "cache").rglob("*.o"):
        os.utime(path, (old, old))
    (tmp_path / "value.h").write_text("constexpr int kValue = 5;\n")
    compiled.build(sources)
    assert first.exists() and len(objects()) == 2, "the object that the second program shares with the first is in use"
