"""Write docs/cli.md from the commands' own help: ``python scripts/document_cli.py``.

A test compares the file with what this would write, so the two cannot drift apart.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import typer
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

HEAD = """# The command line

Made by `python scripts/document_cli.py` from the commands' own help.

Exit codes: 0 done; 1 the answer is no, or part of a batch failed; 2 a wrong flag or setting;
3 an image; 4 a model, pack or device; 5 the gallery; 6 another embedding contract;
130 interrupted. With `--json` an error is `{"error": {"type": ..., "message": ...}}`.

Settings may also come from the environment, as `FACEREC_GALLERY`, `FACEREC_PACK`,
`FACEREC_DEVICE`, `FACEREC_THREADS`, `FACEREC_FMR`, `FACEREC_KEEP_CROPS`, `FACEREC_MAX_PIXELS`,
`FACEREC_PACKS` (a folder of packs) and `FACEREC_CACHE`, or from a TOML file that
`FACEREC_CONFIG` names, with the same names in lower case. Flags win over the environment, the
environment over the file. An unknown name is an error.
"""


def commands(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command below ``command``, as the words that call it; groups before their parts."""
    yield path
    for name, part in getattr(command, "commands", {}).items():
        yield from commands(part, (*path, name))


def document() -> str:
    """The whole page."""
    from facerec.cli import app

    runner = CliRunner(env={"COLUMNS": "90", "TERMINAL_WIDTH": "90", "NO_COLOR": "1"})
    parts = [HEAD]
    for words in commands(typer.main.get_command(app)):
        result = runner.invoke(app, [*words, "--help"], prog_name="facerec")
        title = " ".join(("facerec", *words))
        text = "\n".join(line.rstrip() for line in result.output.strip().splitlines())
        parts.append(f"## {title}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    os.environ["COLUMNS"] = "90"
    (ROOT / "docs" / "cli.md").write_text(document(), encoding="utf-8")
    print("wrote docs/cli.md")
