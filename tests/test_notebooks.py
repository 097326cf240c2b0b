"""The lessons as they are stored: pairs in step, run from top to bottom without an error, and nothing of the machine in them.

They are not run here: `python -m notebooks.execute --check` does that.
"""

import re
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook, new_output

from notebooks import execute

LESSONS = execute.lessons()
NAMES = [path.stem for path in LESSONS]


@pytest.fixture(params=LESSONS, ids=NAMES, scope="module")
def lesson(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A lesson's source, as a notebook, and the stored notebook."""
    return jupytext.read(request.param), nbformat.read(request.param.with_suffix(".ipynb"), as_version=4)


def test_the_course_begins_with_its_first_three_lessons() -> None:
    assert NAMES[:3] == ["00_tour", "01_transformer_from_scratch", "02_patching_and_steering"]
    assert execute.lessons(["01"]) == [LESSONS[1]] == execute.lessons(["notebooks/01_transformer_from_scratch.ipynb"])


def test_pairs_are_in_step(lesson: tuple[Any, Any]) -> None:
    source, stored = lesson
    assert [(cell.cell_type, cell.source) for cell in source.cells] == [(cell.cell_type, cell.source) for cell in stored.cells]
    assert [cell.metadata for cell in source.cells] == [cell.metadata for cell in stored.cells]


def test_every_cell_was_run_in_order_without_an_error(lesson: tuple[Any, Any]) -> None:
    code = [cell for cell in lesson[1].cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"] == []
    assert {output.output_type for output in outputs} >= {"stream", "display_data"}


def test_outputs_tell_nothing_of_the_machine(lesson: tuple[Any, Any]) -> None:
    stored = lesson[1]
    assert list(execute.traces_of_machine(stored)) == []
    assert not any("execution" in cell.metadata for cell in stored.cells) and "version" not in stored.metadata.language_info
    execute.tidy(again := nbformat.from_dict(stored))
    assert again == stored


def test_a_lesson_checks_what_it_says_and_ends_with_exercises_and_their_answers(lesson: tuple[Any, Any]) -> None:
    source = lesson[0]
    answers = [cell for cell in source.cells if "answer" in cell.metadata.get("tags", ())]
    assert len(answers) >= 3 and all(cell.metadata.jupyter.source_hidden and "assert" in cell.source for cell in answers)
    assert sum("assert" in cell.source for cell in source.cells if cell.cell_type == "code") >= 15
    assert source.cells[0].source.startswith("# ") and "you" in source.cells[0].source


def test_links_of_the_course_lead_somewhere() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (*LESSONS, execute.FOLDER / "README.md")]
    links = [link for text in texts for link in re.findall(r"\]\(([^)#]+)\)", text)]
    assert links and [link for link in links if not link.startswith("http") and not (execute.FOLDER / link).exists()] == []


# ------------------------------------------------------------------------------------------- the program that runs them


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one lesson, whose cells pass."""
    (tmp_path / "05_small.py").write_text("# %%\nprint(1)\n", encoding="utf-8")
    monkeypatch.setattr(execute, "FOLDER", tmp_path)
    monkeypatch.setattr(execute, "execute", _print_one)
    return tmp_path


def _print_one(notebook: Any) -> None:
    notebook.cells[0].execution_count = 1
    notebook.cells[0].outputs = [new_output("stream", text="1\n")]


def _fail(notebook: Any) -> None:
    raise CellExecutionError("\x1b[31mAssertionError\x1b[0m in cell", "AssertionError", "")


def test_a_lesson_is_written_once_all_of_its_cells_have_passed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute.main([]) == 0
    written = nbformat.read(folder / "05_small.ipynb", as_version=4)
    assert written.cells[0].outputs[0].text == "1\n" and capsys.readouterr().out.startswith("05_small: passed, ")
    first = (folder / "05_small.ipynb").read_bytes()
    assert execute.main(["05"]) == 0 and (folder / "05_small.ipynb").read_bytes() == first  # no diff where nothing has changed
    assert sorted(path.name for path in folder.iterdir()) == ["05_small.ipynb", "05_small.py"]


def test_a_failing_lesson_is_reported_and_not_written(folder: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(execute, "execute", _fail)
    assert execute.main([]) == 1
    said = capsys.readouterr()
    assert "05_small: FAILED" in said.out and said.err == "AssertionError in cell\n"
    assert not (folder / "05_small.ipynb").exists()


def test_check_writes_nothing_and_minds_the_time(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute.main(["--check"]) == 0 and execute.main(["--check", "--limit", "0"]) == 1
    assert "a lesson may take 0 s" in capsys.readouterr().err
    assert not (folder / "05_small.ipynb").exists()


def test_a_name_that_no_lesson_has_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        execute.main(["06"])
    assert "no lesson begins with 06; there are 05_small" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("in /home/someone/models here", ["/home/someone/models"]),
        ('"/tmp/x.png"', ["/tmp/x.png"]),
        ("https://example.org/home/page", []),
        ("axes L/B/P, 1/2 and </div>", []),
    ],
)
def test_paths_are_found_in_outputs(text: str, found: list[str]) -> None:
    notebook = new_notebook(
        cells=[new_code_cell("", outputs=[new_output("display_data", data={"text/html": text, "image/png": "/tmp/a"})])]
    )
    assert list(execute.traces_of_machine(notebook)) == found
