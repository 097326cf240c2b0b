"""What results put into their pictures."""

import numpy as np

from jaxinterp.methods.attribution.compare import POINTS, comparison
from jaxinterp.methods.lenses.logit_lens import LogitLens


def test_a_comparison_draws_its_cells_with_the_fitted_line_and_of_many_the_largest(rng: np.random.Generator) -> None:
    exact = rng.normal(size=POINTS + 500)
    found = comparison(2 * exact, exact, tuple(f"neuron {i}" for i in range(len(exact))))
    picture = found.view().sections[0].views[0]
    np.testing.assert_allclose(picture.arrays["x"], 2 * picture.arrays["y"], rtol=1e-6)
    np.testing.assert_allclose(picture.options["line"], [0.5, 0.0], atol=1e-9)
    left_out = set(range(len(exact))) - {int(name.split()[1]) for name in picture.labels["point"]}
    assert len(left_out) == 500 and abs(exact[list(left_out)]).max() <= abs(picture.arrays["y"]).min() + 1e-6
    assert picture.normalisation == f"the {POINTS} largest of {len(exact)} cells"
    flat = comparison(np.zeros(3), exact[:3], ("a", "b", "c")).view().sections[0].views[0]
    assert flat.options["line"] is None and flat.normalisation == ""


def test_a_lens_shows_the_top_token_of_each_cell() -> None:
    grid, top = np.zeros((1, 2, 3), np.float32), np.asarray([[[[7], [8], [9]], [[7], [7], [-1]]]])
    none = np.zeros((1, 2, 3, 0))
    axes = (("layer", (0, 1)), ("position", (0, 1, 2)))
    lens = LogitLens(top, np.zeros(top.shape), grid, grid, np.zeros((1, 0), int), none, none, none, axes, (("site", "resid_post"),))
    first, second = lens.view().sections[0].views[:2]
    assert first.cell_texts() == [["7", "8", "9"], ["7", "7", ""]] and second.cell_texts() == []
