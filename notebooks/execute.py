"""Runs the lessons: each .py becomes a notebook, runs in a fresh kernel of this Python, and is written with its outputs.

python -m notebooks.execute               all lessons, each written once all of its cells have passed
python -m notebooks.execute 01            those whose names begin so
python -m notebooks.execute --check       runs them and writes nothing: fails on an error, or where one takes too long

It needs jupytext, nbclient and ipykernel (the extra `dev`), and no kernel that anybody has installed.
"""

import argparse
import hashlib
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
LIMIT = 90.0
"""Seconds that a lesson may take, with loading and compiling, on two cores."""

CELL_TIMEOUT = 300
"""Seconds after which a cell is stopped."""

PATHS = re.compile(r"(?<![\w.:/])(?:/(?:home|root|Users|tmp|private|var|opt|mnt|work|usr)/|[A-Z]:\\Users\\)[^\s\"'<>&]*")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 where every lesson passed."""
    parser = argparse.ArgumentParser(prog="python -m notebooks.execute", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="lessons whose names begin so; all of them where none is named")
    parser.add_argument("--check", action="store_true", help="write nothing, and fail where a lesson takes longer than the limit")
    parser.add_argument("--limit", type=float, default=LIMIT, metavar="SECONDS", help=f"of --check, for each lesson ({LIMIT:.0f})")
    given = parser.parse_args(arguments)
    chosen = lessons(given.names)
    if not chosen:
        parser.error(f"no lesson begins with {' or '.join(given.names)}; there are {', '.join(path.stem for path in lessons())}")
    failed = 0
    for path in chosen:
        begin = time.perf_counter()
        complaint, notebook = attempt(path)
        seconds = time.perf_counter() - begin
        if not complaint and given.check and seconds > given.limit:
            complaint = f"took {seconds:.0f} s; a lesson may take {given.limit:.0f} s"
        elif not complaint and not given.check:
            write(notebook, path.with_suffix(".ipynb"))
        failed += bool(complaint)
        print(f"{path.stem}: {'FAILED' if complaint else 'passed'}, {seconds:.1f} s", flush=True)
        if complaint:
            print(complaint, file=sys.stderr, flush=True)
    return min(failed, 1)


def lessons(names: Sequence[str] = ()) -> list[Path]:
    """The lessons in order, as .py files: all, or those whose names begin with one of `names`."""
    every = sorted(path for path in FOLDER.glob("[0-9]*.py"))
    wanted = tuple(Path(name).name.removesuffix(".py").removesuffix(".ipynb") for name in names)
    return [path for path in every if path.stem.startswith(wanted)] if names else every


def attempt(path: Path) -> tuple[str, Any]:
    """What is wrong with a lesson ("" if nothing is), and the notebook with the outputs of the cells that ran."""
    import jupytext
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    notebook = jupytext.read(path)
    try:
        execute(notebook)
    except CellExecutionError as error:
        return COLOURS.sub("", str(error)), notebook
    except (CellTimeoutError, RuntimeError) as error:  # it took too long, or the kernel died or never answered
        return f"{type(error).__name__}: {COLOURS.sub('', str(error))}", notebook
    tidy(notebook)
    told = [f"an output shows where it was run: {found}" for found in traces_of_machine(notebook)]
    return "\n".join(told), notebook


def execute(notebook: Any) -> None:
    """Runs all cells in a new kernel of this Python, in the lessons' folder, and keeps their outputs in the notebook.

    Nothing of the user's own Jupyter or IPython is read or written: settings, kernels and histories are those of an empty folder.
    """
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from traitlets.config import Config

    class ThisPython(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=command, display_name="Python 3", language="python")

    with tempfile.TemporaryDirectory() as folder:
        own = {name: os.path.join(folder, name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
        for place in own.values():
            os.mkdir(place)
        # Sockets that are files, where there are such, so that no port need be open.
        sockets = {} if os.name == "nt" else {"KernelManager": {"transport": "ipc", "ip": os.path.join(folder, "kernel")}}
        client = NotebookClient(
            notebook, timeout=CELL_TIMEOUT, kernel_name="python3", kernel_manager_class=ThisPython, record_timing=False,
            coalesce_streams=True, resources={"metadata": {"path": str(FOLDER)}}, config=Config(sockets),
        )  # fmt: skip
        before = dict(os.environ)
        os.environ.update(own)
        try:
            client.execute(env={name: value for name, value in os.environ.items() if name != "MPLBACKEND"})
        finally:
            os.environ.clear()
            os.environ.update(before)


def tidy(notebook: Any) -> None:
    """Leaves out what differs from one run or machine to the next, and names cells by what they say, so that a diff is small."""
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        cell.metadata.pop("execution", None)
    notebook.metadata.language_info = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"}
    notebook.metadata.get("jupytext", {}).pop("text_representation", None)


def traces_of_machine(notebook: Any) -> Iterator[str]:
    """Absolute paths, and the machine's name, in what the cells print and show."""
    names = re.compile(rf"\b{re.escape(socket.gethostname())}\b")
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            texts = [output.get("text", ""), *(text for kind, text in data.items() if not kind.startswith("image/"))]
            for text in texts:
                shown = "".join(text) if isinstance(text, list) else str(text)
                yield from PATHS.findall(shown)
                yield from names.findall(shown)


def write(notebook: Any, path: Path) -> None:
    """Writes a notebook by one rename."""
    import nbformat

    nbformat.validate(notebook)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".tmp", delete=False) as file:
        try:
            nbformat.write(notebook, file)
        except BaseException:
            os.unlink(file.name)
            raise
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


if __name__ == "__main__":
    sys.exit(main())
