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
from thrifty.models.gguf_split import first_part, part_names

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

    Raises DownloadError where it cannot be had, or where it holds several GGUF files and none is named.
    """
    repository, _, file = hub_id.partition(":")
    if offline():
        return _local(repository, file)
    try:
        names = _answered(lambda: _files(repository))
    except DownloadError as error:
        _LOG.warning("%s; looking in the local cache", error)
        return _local(repository, file)
    if file or not any(name.endswith(".safetensors") for name in names):
        chosen = _one_gguf(repository, file, [name for name in names if name.endswith(".gguf")])
        return _fetched_parts(repository, part_names(chosen))
    return Path(_tried(repository, lambda library: library.snapshot_download(repository, allow_patterns=list(DATA))))


def fetch_config(hub_id: str) -> Path:
    """A folder with the config.json of a hub model, from the hub's cache or fetched; no weights.

    Raises DownloadError where it cannot be had.
    """
    local = offline()
    if not local:
        try:
            _answered(lambda: _files(hub_id))
        except DownloadError as error:
            _LOG.warning("%s; looking in the local cache", error)
            local = True
    return Path(_tried(hub_id, lambda one: one.hf_hub_download(hub_id, CONFIG, local_files_only=local))).parent


def download_file(repository: str, file: str, sha256: str, directory: Path) -> Path:
    """One file whose content is known, into a directory. The hub must state that SHA-256 before a byte is fetched.

    Raises DownloadError where offline mode is set, the hub does not answer soon, or the content is another one.
    """
    if offline():
        raise DownloadError("offline mode is set")

    def stated() -> str | None:
        import huggingface_hub as library

        url = library.hf_hub_url(repository, file)
        return library.get_hf_file_metadata(url, timeout=SECONDS_TO_ANSWER).etag

    if _answered(stated) != sha256:
        raise DownloadError(f"{repository} holds another version of {file}")
    path = Path(_tried(repository, lambda library: library.hf_hub_download(repository, file, local_dir=directory)))
    from thrifty.models.content_key import file_digest

    if file_digest(path) != sha256:
        raise DownloadError(f"{file} arrived damaged")
    return path


def _fetched_parts(repository: str, names: list[str]) -> Path:
    """The first of some files that are fetched into one folder."""
    return Path(_tried(repository, lambda library: [library.hf_hub_download(repository, name) for name in names])[0])


def _files(repository: str) -> list[str]:
    import huggingface_hub as library

    return list(library.HfApi().list_repo_files(repository))


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
    found = [str(path.relative_to(folder)) for path in folder.rglob("*.gguf")]
    return folder / _one_gguf(repository, file, found)


def _one_gguf(repository: str, file: str, names: list[str]) -> str:
    """The file to read: the one named, or the only model, whose first part stands for all."""
    found = [name for name in names if first_part(name) not in names]
    if file in names:
        return file
    if not file and len(found) == 1:
        return found[0]
    listing = ", ".join(sorted(found)[:12]) or "none"
    raise DownloadError(f"{repository}: name one GGUF file as '{repository}:FILE.gguf'. It holds: {listing}.")


def _tried(repository: str, action: Callable[[Any], T]) -> T:
    import huggingface_hub as library

    try:
        return action(library)
    except Exception as error:  # the library passes on errors of several networking packages
        raise DownloadError(_failure(repository, error)) from error


def _answered(action: Callable[[], T]) -> T:
    """The result of a first question to the hub, within a few seconds whatever its retries."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(action())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="thrifty-hub", daemon=True)
    thread.start()
    thread.join(SECONDS_TO_ANSWER + 3)
    if results:
        return results[0]
    reason = _first_line(errors[0]) if errors else "no answer in time"
    raise DownloadError(f"the hub cannot be used: {reason}")


def _failure(repository: str, error: Exception) -> str:
    hint = " (offline mode is set)" if offline() else ""
    return f"{repository} could not be fetched from the hub{hint}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
