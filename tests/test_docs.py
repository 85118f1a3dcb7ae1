"""The documents' code runs as it stands: python blocks in order, and every command of the bash blocks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMES = ("conventions", "method", "first-reconstruction", "plugin", "dataset", "crystal", "training", "formats", "real-data")
DOCUMENTS = ["README.md", *(f"docs/{name}.md" for name in NAMES)]
RUN = ("mepdiff ", "mkdir ", "cp ")


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_code_blocks_run(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    crystal = ROOT / "src/mepdiff_core/data/SrTiO3.cif"
    (tmp_path / "SrTiO3.cif").write_text(crystal.read_text())
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    names: dict[str, object] = {}
    for language, code in re.findall(r"```(python|bash)\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.S):
        if language == "python":
            exec(compile(code, document, "exec"), names)
            continue
        for line in code.splitlines():
            if line.startswith(RUN):
                run = subprocess.run(line, shell=True, capture_output=True, text=True, env=environment)
                assert run.returncode == 0, f"{line}\n{run.stderr}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        if "://" not in target:
            assert (ROOT / document).parent.joinpath(target).exists(), target
