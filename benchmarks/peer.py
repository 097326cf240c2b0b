"""The peer's side: a process of the peers' environment that prepares work, checks in its results and times it on request.

Run as a script by the peers' interpreter. It reads one JSON object a line and answers with one; between requests it sleeps
in `read`, so that it costs the other side nothing:

    {"call": "hello"}                                             -> {"versions": {...}, "threads": 2}
    {"call": "prepare", "work": "peer.transformers_forward", "args": {...}}   -> the work's number
    {"call": "seconds", "number": 0}                              -> the duration of one repetition
    {"call": "result", "number": 0, "file": "/tmp/x.npz"}         -> its arrays, written to the file

Work is named "module.function"; a module of another benchmark stands beside this file. Such a function takes keyword
arguments and returns a `Work`. Nothing of jaxinterp is imported here.
"""

import dataclasses
import functools
import importlib
import importlib.metadata
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

PACKAGES = ("torch", "transformers", "transformer-lens", "nnsight", "numpy")


@dataclasses.dataclass(frozen=True)
class Work:
    """One thing that a peer does.

    Attributes:
        once: one repetition.
        arrays: from what `once` returned to the tensors that are compared, by name.
        device: "cpu" or "cuda".
    """

    once: Callable[[], Any]
    arrays: Callable[[Any], Mapping[str, Any]]
    device: str = "cpu"


# -------------------------------------------------------------------------------------------------------- the models


@functools.cache
def transformers_model(folder: str, device: str, attention: str | None = None) -> Any:
    """The model of a folder in float32, with its default attention unless another is named."""
    import torch
    from transformers import AutoModelForCausalLM

    chosen = {} if attention is None else {"attn_implementation": attention}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **chosen).eval().to(device)


@functools.cache
def lens_model(folder: str, device: str) -> Any:
    """TransformerLens' bridge over a transformers model of its own (it switches that one's attention to eager)."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return TransformerBridge.boot_transformers(folder, hf_model=model, tokenizer=tokenizer, dtype=torch.float32, device=device)


def token_ids(ids: Sequence[Sequence[int]], device: str) -> Any:
    """Ids [B P] as a tensor."""
    import torch

    return torch.tensor(ids, dtype=torch.int64, device=device)


# ---------------------------------------------------------------------------------------------------------- the work


def transformers_forward(folder: str, ids: Sequence[Sequence[int]], device: str = "cpu") -> Work:
    """Logits [B P V] by transformers, without gradients and without a key/value cache."""
    import torch

    model, prompt = transformers_model(folder, device), token_ids(ids, device)

    @torch.inference_mode()
    def once() -> Any:
        return model(prompt, use_cache=False).logits

    return Work(once, lambda logits: {"logits": logits}, device)


def lens_forward(folder: str, ids: Sequence[Sequence[int]], device: str = "cpu") -> Work:
    """Logits [B P V] by TransformerLens."""
    import torch

    model, prompt = lens_model(folder, device), token_ids(ids, device)

    @torch.inference_mode()
    def once() -> Any:
        return model(prompt, return_type="logits")

    return Work(once, lambda logits: {"logits": logits}, device)


def lens_run_with_cache(folder: str, ids: Sequence[Sequence[int]], device: str = "cpu") -> Work:
    """Logits and every activation by TransformerLens; the residual stream [L B P D] is what is compared."""
    import torch

    model, prompt = lens_model(folder, device), token_ids(ids, device)

    @torch.inference_mode()
    def once() -> Any:
        return model.run_with_cache(prompt)

    def arrays(result: Any) -> dict[str, Any]:
        logits, cache = result
        resid_post = torch.stack([cache[f"blocks.{layer}.hook_resid_post"] for layer in range(model.cfg.n_layers)])
        return {"logits": logits, "resid_post": resid_post}

    return Work(once, arrays, device)


# ------------------------------------------------------------------------------------------------------- the requests


class Worker:
    """Answers requests."""

    def __init__(self) -> None:
        self.works: list[Work] = []

    def hello(self) -> dict[str, Any]:
        """Versions of what is installed here, and how many threads torch uses."""
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        versions = {"python": sys.version.split()[0]}
        for name in PACKAGES:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        return {"versions": versions, "threads": torch.get_num_threads()}

    def prepare(self, work: str, args: Mapping[str, Any]) -> int:
        """Builds a piece of work and returns its number."""
        module, _, name = work.rpartition(".")
        source = sys.modules[__name__] if module == "peer" else importlib.import_module(module)
        self.works.append(getattr(source, name)(**args))
        return len(self.works) - 1

    def seconds(self, number: int) -> float:
        """How long one repetition takes."""
        work = self.works[number]
        _wait_for(work.device)
        start = time.perf_counter()
        work.once()
        _wait_for(work.device)
        return time.perf_counter() - start

    def result(self, number: int, file: str) -> None:
        """Writes what one repetition gives."""
        work = self.works[number]
        arrays: dict[str, np.ndarray] = {name: tensor.detach().cpu().numpy() for name, tensor in work.arrays(work.once()).items()}
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def _wait_for(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def main() -> None:
    """Serves requests until the other side closes the pipe."""
    sys.modules["peer"] = sys.modules[__name__]  # so that work of other files finds this module, and not a second copy
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"answer": getattr(worker, request.pop("call"))(**request)}
        except Exception:  # the other side shows it and stops
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
