"""The tutorial works as it is written, and the documentation builds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(command: list[str], place: Path) -> str:
    """What a command prints; fails if it fails."""
    tools = place / "bin"
    tools.mkdir(exist_ok=True)
    for name, arguments in (("python", ""), ("csengine", " -m csengine")):
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n')
        (tools / name).chmod(0o755)
    path = {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=place, env=os.environ | path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_tutorial(tmp_path: Path) -> None:
    for needed in ("torch", "onnx", "onnxruntime", "onnxscript", "sklearn"):
        pytest.importorskip(needed)
    printed = ""
    for kind, text in _BLOCK.findall((ROOT / "docs" / "tutorial.md").read_text()):
        if kind == "python":
            name = re.match(r"# (\w+\.py)\n", text)
            assert name, "a program begins with the name of its file"
            (tmp_path / name[1]).write_text(text)
        else:
            printed += run(["sh", "-e", "-c", text], tmp_path)
    accuracies = dict(re.findall(r"(\w+)\.safetensors accuracy ([\d.]+)", printed))
    assert float(accuracies["dense"]) > 0.93
    assert float(accuracies["sparse"]) > 0.93
    assert float(accuracies["pruned"]) < float(accuracies["sparse"])
    assert "sparse-dense" in printed
    assert "nothing differs" in printed


def test_the_program_of_the_readme(tmp_path: Path) -> None:
    (program,) = [text for kind, text in _BLOCK.findall((ROOT / "README.md").read_text()) if kind == "python"]
    printed = run([sys.executable, "-c", program], tmp_path).splitlines()
    assert printed[0].startswith("(8, 12) ")
    assert printed[1].startswith("input ")


def test_links_between_documents_lead_somewhere() -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*/README.md")]
    links = [(file, link) for file in documents for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", file.read_text())]
    assert len(links) > 20
    assert [(file.name, link) for file, link in links if not (file.parent / link).exists()] == []


def test_the_study_of_digits_runs(tmp_path: Path) -> None:
    for needed in ("torch", "sklearn", "matplotlib"):
        pytest.importorskip(needed)
    study, results = ROOT / "examples" / "digits" / "study.py", tmp_path / "digits.json"
    run([sys.executable, str(study), "--quick", "--output", str(results)], tmp_path)
    draw = f"import sys; sys.path.insert(0, {str(ROOT / 'bench')!r}); import report, pathlib; p = pathlib.Path('.')"
    table = run([sys.executable, "-c", f"{draw}; print(report.sections(p, p)['digits'])"], tmp_path)
    assert "| 75 % |" in table
    assert (tmp_path / "digits.png").stat().st_size > 1000


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs the extra csengine[docs]")
def test_the_documentation_builds(tmp_path: Path) -> None:
    command = ["mkdocs", "build", "--quiet", "--strict", "-f", str(ROOT / "mkdocs.yml"), "-d", str(tmp_path / "site")]
    run([sys.executable, "-m", *command], tmp_path)
    reference = (tmp_path / "site" / "reference" / "index.html").read_text()
    for name in ("csengine.Engine.run", "csengine.convert.convert", "csengine.pruning.prune"):
        assert f'id="{name}"' in reference
