"""The Hugging Face hub: fetches the few files of a checkpoint that loading needs, through huggingface_hub and its cache."""

import errno
from collections.abc import Iterable
from pathlib import Path

from jaxinterp.checkpoints.safetensors import INDEX, SINGLE, folder_files
from jaxinterp.errors import CheckpointError, FetchError

TIMEOUT_S = 8.0
"""How long the hub may take to answer the first question; after that it counts as unreachable."""

CONFIGS = (
    "config.json",
    "jaxinterp.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files beside the weights that say something about the model or its tokenizer."""


def fetch(
    repo: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder of a hub repository, fetched unless it is in the hub client's cache.

    Args:
        repo: "owner/name".
        revision: branch, tag or commit.
        cache_dir: the hub client's cache; None is its own.
        token: access token.
        local_files_only: fetch nothing.

    Raises:
        FetchError: there is no such repository or revision, it may not be read, or the hub cannot be reached.
        CheckpointError: the repository holds no safetensors files.
    """
    if local_files_only:
        return _cached_or_refused(repo, revision, cache_dir, "nothing may be fetched (local_files_only)")
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError

    try:
        info = HfApi(token=token).model_info(repo, revision=revision, timeout=TIMEOUT_S)
        wanted = _needed(repo, [sibling.rfilename for sibling in info.siblings or ()])
        return Path(snapshot_download(repo, revision=revision, cache_dir=cache_dir, token=token, allow_patterns=wanted))
    except CheckpointError:
        raise
    except HFValidationError:
        raise FetchError(f"{repo!r} is not the id of a hub repository: expected owner/name.") from None
    except GatedRepoError:
        raise FetchError(f"{repo} is gated: accept its terms at the hub and pass token=..., or log in with 'hf auth login'.") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            at = f" at revision {revision!r}" if revision else ""
            raise FetchError(f"The hub has no repository {repo}{at} that may be read with this token.") from None
        reason = f"the hub answered {status}"
    except Exception as error:  # the http client's own errors, whose classes differ between versions of the hub client
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FetchError(f"The disk is full: there is no room for {repo}. Free some, or pass cache_dir=...") from None
        reason = f"the hub cannot be reached ({type(error).__name__}: {str(error)[:100]})".replace("\n", " ")
    return _cached_or_refused(repo, revision, cache_dir, reason)


def _cached_or_refused(repo: str, revision: str | None, cache_dir: str | Path | None, reason: str) -> Path:
    folder = cached(repo, revision=revision, cache_dir=cache_dir)
    if folder is None:
        raise FetchError(f"{repo} is not in the hub client's cache, and {reason}.")
    return folder


def cached(repo: str, *, revision: str | None = None, cache_dir: str | Path | None = None) -> Path | None:
    """The folder of a repository in the hub client's cache, if it is there with all its weights; nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in ("config.json", "jaxinterp.json"):
        try:
            found = try_to_load_from_cache(repo, name, cache_dir=cache_dir, revision=revision)
        except HFValidationError:
            return None
        if isinstance(found, str):
            try:
                folder_files(Path(found).parent)
            except CheckpointError:
                return None
            return Path(found).parent
    return None


def _needed(repo: str, names: Iterable[str]) -> list[str]:
    """The files to fetch: configs and tokenizer, and the weights in one file or in those of the index."""
    names = list(names)
    top = {name for name in names if "/" not in name}
    weights = [name for name in top if name.startswith("model") and name.endswith(".safetensors")] if INDEX in top else []
    if not weights and SINGLE not in top:
        pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
        has = f"only {pickled[0]}, a pickle, which is never read: convert it with transformers' save_pretrained" if pickled else "none"
        raise CheckpointError(f"Expected safetensors weights in the hub repository {repo}; it holds {has}.")
    return sorted(top & {*CONFIGS, *([INDEX, *weights] if weights else [SINGLE])})
