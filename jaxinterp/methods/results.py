"""What results share: tables of rows, and arrays that are written whole or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxinterp.errors import InputError

How = tuple[tuple[str, str], ...]


def frame(columns: Mapping[str, Any]) -> Any:
    """A pandas DataFrame of columns of one length.

    Raises:
        InputError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise InputError("to_dataframe() needs pandas: pip install pandas.") from None
    return pandas.DataFrame(columns)


def write(path: str | Path, arrays: Mapping[str, Any], about: Mapping[str, Any], how: How) -> Path:
    """Writes arrays as safetensors, with what is about them as JSON and how they were made in the header.

    Args:
        path: the file.
        arrays: by name; those that are None are left out.
        about: by name, JSON values.
        how: how the result was made.
    """
    from safetensors.numpy import save

    kept = {name: np.ascontiguousarray(np.asarray(value)) for name, value in arrays.items() if value is not None}
    content = save(kept, metadata={**{name: json.dumps(value) for name, value in about.items()}, **dict(how)})
    draft = Path(path).with_name(f".{Path(path).name}.{os.getpid()}")
    draft.write_bytes(content)
    os.replace(draft, path)
    return Path(path)
