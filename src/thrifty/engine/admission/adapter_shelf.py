"""The adapters of an engine: by name, each counted in the ledger for as long as it is there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from thrifty.decoding.option_values import shown
from thrifty.engine.admission.memory import EngineMemory
from thrifty.engine.plan.native_runner import NativeRunner
from thrifty.engine.runner import Runner
from thrifty.errors import PromptError, nearest
from thrifty.models.adapters import Adapter, AdapterFile, check_adapter, open_adapter
from thrifty.models.config.model_config import ModelConfig

if TYPE_CHECKING:
    from thrifty.engine.running import Running

Source = Adapter | str | os.PathLike[str]


class AdapterShelf:
    """Names, and what they stand for now."""

    def __init__(
        self, config: ModelConfig, runner: Runner, memory: EngineMemory, adapters: Mapping[str, Source]
    ) -> None:
        """runner: runs with them. adapters: those to begin with. Raises what `add` raises."""
        self._config, self._runner, self._memory = config, runner, memory
        self._adapters: dict[str, Adapter] = {}
        if not isinstance(adapters, Mapping):
            raise PromptError(f"adapters = {shown(adapters)} is no mapping; use {{name: directory or Adapter}}")
        for name, source in adapters.items():
            self.add(name, source)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all that are there, in the order in which they came."""
        return tuple(self._adapters)

    def add(self, name: str, source: Source, accepted: Sequence[Running] = ()) -> Adapter:
        """Load a directory that PEFT wrote, or take an adapter as it is; its bytes are charged to the budget before any
        matrix is read, and once where it is there by another name. accepted: sequences that must still be able to end.

        Raises PromptError for a name that is taken or no text, CheckpointError where it does not fit the model, and
        BudgetError where its bytes do not fit; nothing is added then.
        """
        if not isinstance(name, str) or not name:
            raise PromptError(f"the adapter's name is {name!r:.80}; use a text of at least one character")
        if name in self._adapters:
            raise PromptError(f"there is an adapter {name!r} already; remove it first, or use another name")
        if isinstance(source, Adapter):
            check_adapter(source, self._config)
        elif not isinstance(source, str | os.PathLike):
            raise PromptError(f"the adapter {name!r:.80} is {shown(source)}; use an Adapter or PEFT's directory")
        held = source if isinstance(source, Adapter) else open_adapter(source, self._config)
        charge = 0 if held in self._adapters.values() else self._charge(held)
        if charge:
            self._memory.check_accepted(accepted, charge, f"the adapter {name!r:.80}")
        self._memory.hold_adapter(charge)
        try:
            adapter = held.load() if isinstance(held, AdapterFile) else held
        except BaseException:
            self._memory.drop_adapter(charge)
            raise
        self._adapters[name] = adapter
        return adapter

    def remove(self, name: str) -> Adapter:
        """Forget an adapter and give its bytes back, where it has no other name. Raises PromptError where there is none
        of the name.
        """
        adapter = self.get(name)
        del self._adapters[name]
        if adapter not in self._adapters.values():
            self._memory.drop_adapter(self._charge(adapter))
        return adapter

    def get(self, name: str) -> Adapter:
        """The adapter of a name. Raises PromptError with the names that there are."""
        if name not in self._adapters:
            raise PromptError(f"there is no adapter {name!r:.80}. {nearest(str(name), self._adapters)}")
        return self._adapters[name]

    def clear(self) -> None:
        """Forget them all."""
        for name in self.names:
            self.remove(name)

    def _charge(self, adapter: Adapter | AdapterFile) -> int:
        """Bytes of its matrices, and of what native code makes of the rows of a step with them."""
        runner = self._runner
        return adapter.nbytes + (runner.adapter_scratch(adapter.rank) if isinstance(runner, NativeRunner) else 0)
