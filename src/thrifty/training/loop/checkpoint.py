"""The state of a training run on the disk: one safetensors file, the old one or the new one whatever happens."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.arrays import Array
from thrifty.errors import StorageError
from thrifty.files import replace_file
from thrifty.reference.arrays import array_of

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Checkpoint:
    """path: the file. run: what is trained, with all that decides it; a file of another run is refused."""

    path: Path
    run: str

    @classmethod
    def of(cls, folder: Path | None, what: str, run: str) -> Checkpoint | None:
        """The file of a run in a folder, named after both; None without a folder."""
        if folder is None:
            return None
        return cls(folder / f"{what}-{hashlib.sha256(run.encode()).hexdigest()[:12]}.safetensors", run)

    def save(self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, step: int) -> None:
        """Keep parameters, AdamW's moments and the number of steps taken. Raises StorageError."""
        from safetensors.numpy import save

        arrays: dict[str, Array] = {}
        for name, parameter in parameters.items():
            arrays[f"parameter/{name}"] = array_of(parameter)
            for moment in MOMENTS:
                if parameter in optimizer.state:
                    arrays[f"{moment}/{name}"] = array_of(optimizer.state[parameter][moment])
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.path, save(arrays, {"run": self.run, "step": str(step)}))
        except OSError as error:
            raise StorageError(f"cannot keep the state of the training in '{self.path}': {error}") from error

    def restore(self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
        """Put parameters and moments back where there is a file; the steps that were taken, 0 without one.

        Raises StorageError for a file that cannot be read, or that another run left.
        """
        if not self.path.exists():
            return 0
        metadata, arrays = self._read()
        if metadata.get("run") != self.run:
            raise StorageError(
                f"'{self.path}' is the state of another training run: remove it, or use the options it began with"
            )
        step = int(metadata["step"])
        for name, parameter in parameters.items():
            state = {moment: arrays.get(f"{moment}/{name}") for moment in MOMENTS}
            value = arrays.get(f"parameter/{name}")
            if value is None or value.shape != parameter.shape:
                raise StorageError(f"'{self.path}' lacks '{name}' {list(parameter.shape)}: remove it")
            with torch.no_grad():
                parameter.copy_(value)
            kept: dict[str, Any] = {moment: tensor for moment, tensor in state.items() if tensor is not None}
            if len(kept) == len(MOMENTS):
                optimizer.state[parameter] = {"step": torch.tensor(float(step)), **kept}
        return step

    def _read(self) -> tuple[dict[str, str], dict[str, Tensor]]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(self.path), framework="pt") as file:
                return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise StorageError(f"cannot read the state of the training '{self.path}': {error}; remove it") from error
