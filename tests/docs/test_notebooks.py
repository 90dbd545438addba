"""The notebooks run on small settings, and are stored with the outputs and pictures of real ones."""

import json
import re

import nbformat
import pytest
from nbclient import NotebookClient
from support.paths import EXAMPLES, ROOT

NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def test_notebooks_run(tmp_path, monkeypatch):
    """One after the other in one process, each without the names of those before it."""
    monkeypatch.setenv("WHET_NOTEBOOKS_SMALL", "1")
    together = nbformat.v4.new_notebook()
    for path in NOTEBOOKS:
        cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
        together.cells += [nbformat.v4.new_code_cell("%reset -f"), *cells]
    NotebookClient(together, timeout=120, kernel_name="python3").execute(cwd=str(tmp_path))
    outputs = [output for cell in together.cells for output in cell.outputs]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= len(NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_pictures_and_without_errors(path):
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    numbers = [cell.execution_count for cell in cells]
    assert numbers == list(range(1, len(cells) + 1)), "run it from top to bottom"
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert {output.output_type for output in outputs} <= {
        "stream",
        "display_data",
        "execute_result",
    }
    text = json.dumps(outputs)
    assert len(text) < 300_000 and not re.search(r"/(home|root|tmp|work|Users)/", text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook_lead_somewhere(path):
    links = re.findall(r"\]\((?!http)([^)#]+)", "\n".join(c.source for c in read(path).cells))
    assert links and not [link for link in links if not (path.parent / link).exists()]
    assert f"examples/{path.name}" in (ROOT / "README.md").read_text(encoding="utf-8")


def read(path):
    return nbformat.read(path, as_version=4)
