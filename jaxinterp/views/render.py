"""save: a view as a file, by its suffix."""

from pathlib import Path

from jaxinterp.errors import InputError
from jaxinterp.views.payload import View


def save(view: View, path: str | Path) -> Path:
    """Write a view as .html (one self-contained file), .png (needs matplotlib), .json (the payload) or .txt; returns the path.

    Raises:
        InputError: another suffix, or a .png without matplotlib.
    """
    path = Path(path)
    if path.suffix == ".html":
        from jaxinterp.views.html import page

        path.write_text(page(view), encoding="utf-8")
    elif path.suffix == ".png":
        from jaxinterp.views.png import save_png

        save_png(view, path)
    elif path.suffix == ".json":
        path.write_text(view.to_json(), encoding="utf-8")
    elif path.suffix == ".txt":
        from rich.console import Console

        from jaxinterp.views.terminal import show

        with path.open("w", encoding="utf-8") as file:
            show(view, Console(file=file, width=120, no_color=True, color_system=None))
    else:
        raise InputError(f"A picture is saved as .html, .png, .json or .txt; got {path.name!r}.")
    return path
