"""PNG pictures, where matplotlib is installed, and a clear word where it is not."""

import sys

import pytest

from jaxinterp.errors import InputError
from tests.views.samples import every_kind


@pytest.mark.parametrize("kind", every_kind())
def test_every_kind_is_drawn(kind: str, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    path = every_kind()[kind].save(tmp_path / "view.png")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 3000


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'jaxinterp\[plot\]'"):
        every_kind()["line"].save(tmp_path / "view.png")
