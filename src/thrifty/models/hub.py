"""Models of the hub, through `huggingface_hub`: only data files, never pickles or code."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from thrifty.errors import DownloadError
from thrifty.models.gguf.split import first_part, part_names

T = TypeVar("T")

DATA = ("*.safetensors", "*.json", "*.jinja")
CONFIG = "config.json"
SECONDS_TO_ANSWER = 5.0
_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}(:[\w./-]{1,200}\.gguf)?")
_LOG = logging.getLogger(__name__)


def is_hub_id(name: str) -> bool:
    """Whether a name looks like "owner/name", or "owner/name:file.gguf" for one file of several."""
    return _HUB_ID.fullmatch(name) is not None and not name.startswith((".", "/"))


def offline() -> bool:
    """Whether HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) asks to stay offline."""
    asked = (os.environ.get(name, "").upper() for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(value in ("1", "ON", "YES", "TRUE") for value in asked)


def fetch(hub_id: str) -> Path:
    """The local directory (safetensors) or GGUF file of a hub model, from the hub's cache or downloaded into it.

    The hub is asked once, for seconds at most; where it does not answer, an earlier download is used, with a message.
    Raises DownloadError where there is none, or where it holds several GGUF files and none is named.
    """
    repository, _, file = hub_id.partition(":")
    names = _listed(repository, lambda: _local(repository, file))
    if isinstance(names, Path):
        return names
    if file or not any(name.endswith(".safetensors") for name in names):
        chosen = _one_gguf(repository, file, [name for name in names if name.endswith(".gguf")])
        return _fetched_parts(repository, part_names(chosen))
    return Path(_tried(repository, lambda library: library.snapshot_download(repository, allow_patterns=list(DATA))))


def fetch_config(hub_id: str) -> Path:
    """A folder with the config.json of a hub model, from the hub's cache or fetched; no weights.

    Raises DownloadError where it cannot be had.
    """

    def config(local: bool) -> Path:
        return Path(_tried(hub_id, lambda library: library.hf_hub_download(hub_id, CONFIG, local_files_only=local)))

    names = _listed(hub_id, lambda: config(local=True).parent)
    return names if isinstance(names, Path) else config(local=False).parent


def download_file(repository: str, file: str, sha256: str, directory: Path) -> Path:
    """One file whose content is known, into a directory. The hub must state that SHA-256 before a byte is fetched.

    Raises DownloadError where offline mode is set, the hub does not answer soon, or the content is another one.
    """
    if offline():
        raise DownloadError("offline mode is set")
    if _ask(repository).get(file) != sha256:
        raise DownloadError(f"{repository} holds another version of {file}")
    path = Path(_tried(repository, lambda library: library.hf_hub_download(repository, file, local_dir=directory)))
    from thrifty.models.store.content_key import file_digest

    if file_digest(path) != sha256:
        raise DownloadError(f"{file} arrived damaged")
    return path


def _fetched_parts(repository: str, names: list[str]) -> Path:
    """The first of some files that are fetched into one folder."""
    return Path(_tried(repository, lambda library: [library.hf_hub_download(repository, name) for name in names])[0])


def _listed(repository: str, local: Callable[[], Path]) -> list[str] | Path:
    """The names of a repository's files; where offline mode is set or the hub does not answer, the result of `local`.

    Raises DownloadError that says both where `local` has nothing either.
    """
    if offline():
        return local()
    try:
        return list(_ask(repository))
    except DownloadError as error:
        try:
            path = local()
        except DownloadError as missing:
            if missing.__cause__ is None:  # what is there does for none
                raise
            raise DownloadError(f"{repository} is not in the hub's local cache, and {error}") from error
        _LOG.warning("using what an earlier download left of %s: %s", repository, error)
        return path


def _ask(repository: str) -> dict[str, str | None]:
    """The names of a repository's files, and the SHA-256 of those that are stored by it. One request, never repeated.

    Raises DownloadError with what to do.
    """
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            import huggingface_hub as library

            results.append(library.HfApi().model_info(repository, timeout=SECONDS_TO_ANSWER, files_metadata=True))
        except BaseException as error:
            errors.append(error)

    # A thread, because looking up a host's name heeds no timeout.
    thread = threading.Thread(target=run, name="thrifty-hub", daemon=True)
    thread.start()
    thread.join(SECONDS_TO_ANSWER + 1)
    if not results:
        raise DownloadError(_unanswered(repository, errors[0] if errors else None))
    files = results[0].siblings or []
    return {file.rfilename: None if file.lfs is None else file.lfs.sha256 for file in files}


def _unanswered(repository: str, error: BaseException | None) -> str:
    """Why the hub's answer is none, and what to do."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403, 404):
        return (
            f"the hub shows no model {repository} (status {status}): check the name; for a private or gated model ask "
            "for access and set HF_TOKEN"
        )
    reason = "no answer in time" if error is None else _first_line(error)
    return f"the hub cannot be reached ({reason}): check the network, or give a folder or a GGUF file"


def _local(repository: str, file: str) -> Path:
    """What an earlier download left in the hub's cache."""
    patterns = part_names(file) if file else [*DATA, "*.gguf"]
    folder = Path(
        _tried(
            repository,
            lambda library: library.snapshot_download(repository, allow_patterns=patterns, local_files_only=True),
        )
    )
    if not file and any(folder.glob("*.safetensors")):
        return folder
    files = [str(path.relative_to(folder)) for path in folder.rglob("*.gguf")]
    return folder / _one_gguf(repository, file, files)


def _one_gguf(repository: str, file: str, names: list[str]) -> str:
    """The file to read: the one named, or the only model, whose first part stands for all."""
    firsts = [name for name in names if first_part(name) not in names]
    if file in names:
        return file
    if not file and len(firsts) == 1:
        return firsts[0]
    listing = ", ".join(sorted(firsts)[:12]) or "none"
    raise DownloadError(f"{repository}: name one GGUF file as '{repository}:FILE.gguf'. It holds: {listing}.")


def _tried(repository: str, action: Callable[[Any], T]) -> T:
    import huggingface_hub as library

    try:
        return action(library)
    except Exception as error:  # the library passes on errors of several networking packages
        raise DownloadError(_failure(repository, error)) from error


def _failure(repository: str, error: Exception) -> str:
    if offline():
        return (
            f"{repository} could not be fetched from the hub (offline mode is set), and its local cache does not hold "
            "it: unset HF_HUB_OFFLINE, or give a folder or a GGUF file"
        )
    return f"{repository} could not be fetched from the hub: {_first_line(error)}; try again"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
