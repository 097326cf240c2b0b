"""The committed reference outputs: a JSON file that rebuilds a model, and its float64 values at a few tokens."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.parity.compare import at_tokens
from tests.parity.inputs import Batch, Shapes, make_batch, write_folder

FOLDER = Path(__file__).parent.parent / "fixtures" / "parity"
SEED = 7
# Row and column of the tokens that are kept: inside and at the end of the full prompt, the last of the prompt padded left
# and of the one padded right, and the only token of the last; gradients inside a prompt and at its first token.
TOKENS = ((0, 0, 1, 2, 3), (4, 10, 10, 5, 0))
TOKENS_OF_GRADIENTS = ((0, 1), (4, 3))
# the first is the same as at attn_proj or attn_out, once a head; the second is of whole numbers
NO_GRADIENT = ("head_out", "expert_index")


@dataclasses.dataclass(frozen=True)
class Fixture:
    """One model of the table without torch.

    Attributes:
        name: of the row.
        config: config.json.
        shapes: names and shapes of the checkpoint's tensors.
        gain_center: what random norm gains vary around.
        seed: of weights and prompts.
        versions: what made the reference.
    """

    name: str
    config: dict[str, Any]
    shapes: Shapes
    gain_center: float
    seed: int = SEED
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def batch(self) -> Batch:
        return make_batch(self.config["vocab_size"], self.seed)

    def write_folder(self, folder: Path) -> Path:
        """The model in HF layout."""
        return write_folder(folder, self.config, self.shapes, self.seed, self.gain_center)

    def cut(self, values: dict[str, np.ndarray], *, gradient: bool) -> dict[str, np.ndarray]:
        """The part of a run that the fixture keeps."""
        rows, columns = (np.asarray(index) for index in (TOKENS_OF_GRADIENTS if gradient else TOKENS))
        sites = [site for site in values if not (gradient and site in NO_GRADIENT)]
        return {site: at_tokens(site, values[site], self.batch.mask, (rows, columns), gradient=gradient) for site in sites}

    def save(self, values: dict[str, np.ndarray], gradients: dict[str, np.ndarray]) -> None:
        """Writes the two files."""
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / f"{self.name}.json").write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")
        arrays = {f"value/{site}": value for site, value in self.cut(values, gradient=False).items()}
        arrays |= {f"gradient/{site}": value for site, value in self.cut(gradients, gradient=True).items()}
        save_file({name: np.ascontiguousarray(array, np.float64) for name, array in arrays.items()}, FOLDER / f"{self.name}.safetensors")

    def reference(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The committed values and gradients, by site."""
        arrays = load_file(FOLDER / f"{self.name}.safetensors")
        values, gradients = (
            {name.split("/")[1]: array for name, array in arrays.items() if name.startswith(kind)} for kind in ("value", "gradient")
        )
        return values, gradients


def names() -> list[str]:
    """Every committed fixture."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> Fixture:
    fields = json.loads((FOLDER / f"{name}.json").read_text())
    fields["shapes"] = {tensor: tuple(shape) for tensor, shape in fields["shapes"].items()}
    return Fixture(**fields)
