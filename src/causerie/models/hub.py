"""Files of a Hugging Face repository, through huggingface_hub and its cache.

Once fetched, a model needs no network: where the hub cannot be reached, what its cache has is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from causerie.errors import ModelUnavailable
from causerie.models.progress import Progress

_ANSWER_SECONDS = 5.0
_AUTHENTICATE = "set HF_TOKEN to a token that may read it, or run 'hf auth login'"

Names: TypeAlias = Sequence[str]
Choose: TypeAlias = Callable[[Names], Names]
"""From a repository's file names, those that are needed. May raise ModelUnavailable."""


def fetch(repo: str, choose: Choose, progress: Progress) -> tuple[Path, Names]:
    """The local folder with a repository's newest files, and the names in it that ``choose`` wants.

    Raises ModelUnavailable, saying what to do, if they are neither on the hub nor in its cache.
    """
    names = _list(repo)
    if names is None:
        folder = _cached(repo)
        return folder, choose(sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()))
    wanted = choose(names)
    return _download(repo, wanted, progress), wanted


def _list(repo: str) -> Names | None:
    """The names of a repository's files; None if the hub cannot be reached."""
    from huggingface_hub import HfApi, errors

    try:
        info = HfApi().model_info(repo, timeout=_ANSWER_SECONDS)
    except errors.HfHubHTTPError as error:
        if error.response.status_code >= 500:
            return None
        raise _refused(repo, error) from error
    except (_transport_error(), errors.OfflineModeIsEnabled, OSError):
        return None
    return sorted(file.rfilename for file in info.siblings or ())


def _cached(repo: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, local_files_only=True, allow_patterns=[]))
    except LocalEntryNotFoundError:
        raise ModelUnavailable(
            f"{repo} is not in the local cache, and the hub cannot be reached. Check the network (HF_ENDPOINT and "
            "HF_HUB_OFFLINE too, if they are set), or give a model that is on this machine: a folder or a .gguf file.",
            param="model",
        ) from None


def _download(repo: str, names: Names, progress: Progress) -> Path:
    from huggingface_hub import errors, snapshot_download, try_to_load_from_cache

    new = [name for name in names if not isinstance(try_to_load_from_cache(repo, name), str)]
    if new:
        progress.note(f"Fetching {repo} ({len(new)} {'file' if len(new) == 1 else 'files'})")
    bars = {} if progress.visible else {"tqdm_class": _silent_bar()}
    try:
        return Path(snapshot_download(repo, allow_patterns=list(names), etag_timeout=_ANSWER_SECONDS, **bars))
    except errors.HfHubHTTPError as error:
        raise _refused(repo, error) from error
    except (_transport_error(), OSError) as error:
        said = (str(error).splitlines() or [""])[0]
        raise ModelUnavailable(
            f"The download of {repo} broke off ({type(error).__name__}: {said}). Run the same command again: it goes "
            "on where it stopped.",
            param="model",
        ) from error


def _transport_error() -> type[Exception]:
    """The base of what huggingface_hub's HTTP client raises, whichever client its version has."""
    from huggingface_hub.errors import HfHubHTTPError

    return next(base for base in HfHubHTTPError.__bases__ if base is not OSError)


def _silent_bar() -> Any:
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **(kwargs | {"disable": True}))

    return Bar


def _refused(repo: str, error: Any) -> ModelUnavailable:
    """What the hub's refusal means to the person who named ``repo``."""
    from huggingface_hub.errors import DisabledRepoError, GatedRepoError, RepositoryNotFoundError

    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        message = f"{repo} is gated: ask for access on its page on the hub, then {_AUTHENTICATE}."
    elif isinstance(error, RepositoryNotFoundError):
        message = (
            f"The hub has no model {repo}, or it is private. Check the spelling; if it is private, {_AUTHENTICATE}."
        )
    elif isinstance(error, DisabledRepoError):
        message = f"The hub has disabled {repo}: it cannot be downloaded. Choose another model."
    elif status in (401, 403):
        message = f"The hub refused access to {repo} ({status}): {_AUTHENTICATE}."
    elif status == 429:
        message = f"The hub asks to slow down ({status}). Wait a minute and try again, or {_AUTHENTICATE}."
    else:
        message = f"The hub could not give out {repo} (HTTP {status}). Try again later."
    return ModelUnavailable(message, param="model")
