"""Result files: two for each command, readable at any time, because a lent machine returns at most eight files."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from se_fused._atomic_write import write_bytes
from se_fused.info.provenance import portable

from .runner import Done
from .tables import render

__all__ = ["Store", "load"]


class Store:
    """Writer of the result files of a command.

    ``COMMAND.jsonl`` gets a line for each result immediately. ``COMMAND.tar.gz`` contains that file, the tables and the
    output of the steps; it is written again atomically when a step has ended.

    Args:
        folder: folder of the files, which is created if needed.
        command: "right", "where" or "claims".
        environment: environment of the results, see :mod:`.environment`.
        logs: folder with the output of the steps.

    Raises:
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, command: str, environment: dict[str, Any], logs: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._command, self._logs = folder, command, logs
        self._lines = (folder / f"{command}.jsonl").open("w", encoding="utf-8")
        self.environment: dict[str, Any] = portable(environment)
        self.rows: list[dict[str, Any]] = []
        self.steps: list[dict[str, Any]] = []
        self._write({"kind": "environment", **self.environment})
        self.table = ""

    def _write(self, record: dict[str, Any]) -> None:
        self._lines.write(json.dumps(record) + "\n")
        self._lines.flush()

    def row(self, step: str, row: dict[str, Any]) -> None:
        """Store a result of a step."""
        record = portable({"kind": "row", "step": step, **row})
        self.rows.append(record)
        self._write(record)

    def done(self, done: Done) -> None:
        """Store the outcome of a step and write the archive."""
        about = {"step": done.step, "verdict": done.verdict, "seconds": round(done.seconds, 1), "figure": done.figure}
        record = portable({"kind": "step", **about})
        self.steps.append(record)
        self._write(record)
        self.save()

    def save(self) -> None:
        """Render the tables and write the archive."""
        self.table = "\n".join(render(self._command, self.environment, self.steps, self.rows)) + "\n"
        packed, table = io.BytesIO(), self.table.encode()
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=6) as tar:
            tar.add(self._folder / f"{self._command}.jsonl", f"{self._command}.jsonl")
            about = tarfile.TarInfo(f"{self._command}.txt")
            about.size = len(table)
            tar.addfile(about, io.BytesIO(table))
            for log in sorted(self._logs.iterdir()):
                tar.add(log, f"{self._command}-logs/{log.name}")
        write_bytes(self._folder / f"{self._command}.tar.gz", packed.getvalue())

    def close(self) -> None:
        self._lines.close()


def load(text: str) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """(environment, steps, rows) from the text of a ``.jsonl`` file. An incomplete last line is ignored.

    Raises:
        ValueError: the text is not of such a file.
    """
    records = []
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise ValueError(f"line {number} is not JSON: this is not a file of benchmarks.gpu") from None
    if not records or not isinstance(records[0], dict) or records[0].get("kind") != "environment":
        raise ValueError("the first line is not an environment: this is not a file of benchmarks.gpu")
    by_kind = {kind: [r for r in records if r.get("kind") == kind] for kind in ("step", "row")}
    return records[0], by_kind["step"], by_kind["row"]
