"""The pool, the choice of instruction set, and how the native module is found."""

from __future__ import annotations

import multiprocessing
import sys
import threading

import numpy as np
import pytest
from tests.unit.kernels.native_pages import native

from thrifty.arrays import Floats
from thrifty.errors import KernelError
from thrifty.formats.linear import GroupLinear
from thrifty.kernels import dispatch


def product() -> Floats:
    linear = GroupLinear.quantize(np.linspace(-1, 1, 64 * 96, dtype=np.float32).reshape(64, 96), 4, 32)
    return dispatch.matmul(linear, np.linspace(-2, 3, 20 * 96, dtype=np.float32).reshape(20, 96))


def test_threads_are_bounded() -> None:
    module = native()
    limit = module.available_threads()
    for wrong in (0, limit + 1):
        with pytest.raises(ValueError, match=f"threads must be between 1 and {limit} .*, not {wrong}"):
            module.set_threads(wrong)
    assert 1 <= module.threads() <= limit


def test_unknown_instruction_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="instruction set 'neon' is unknown or not supported"):
        native().force_isa("neon")
    assert native().isa() in ("avx512", "avx2", "portable")


def test_many_python_threads_share_the_pool() -> None:
    native()
    wanted, wrong = product(), []

    def work() -> None:
        for _ in range(20):
            if not np.array_equal(product(), wanted):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def _child(queue: multiprocessing.Queue[bool]) -> None:
    queue.put(bool(np.isfinite(product()).all()))


@pytest.mark.skipif(sys.platform != "linux", reason="fork is used on Linux only")
def test_a_forked_child_gets_a_pool_of_its_own() -> None:
    native()
    product()
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[bool] = context.Queue()
    child = context.Process(target=_child, args=(queue,))
    child.start()
    assert queue.get(timeout=30)
    child.join(30)
    assert child.exitcode == 0


def test_measurements_are_plausible() -> None:
    module = native()
    assert 0.5 < module.read_bandwidth(16, 2) < 5000
    assert 0.5 < module.gemm_rate(1) < 1e6
    with pytest.raises(ValueError, match="at least 1 MB"):
        module.read_bandwidth(0, 1)


@pytest.fixture
def fresh_dispatch(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """`dispatch.native` forgets what it found, before and after."""
    dispatch.native.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    dispatch.native.cache_clear()


def test_the_switch_turns_native_off(fresh_dispatch: pytest.MonkeyPatch) -> None:
    fresh_dispatch.setenv(dispatch.SWITCH, "0")
    assert dispatch.native() is None
    with pytest.raises(KernelError, match="native kernels are off: unset THRIFTY_NATIVE"):
        dispatch.require()


def test_a_wrong_switch_is_refused(fresh_dispatch: pytest.MonkeyPatch) -> None:
    fresh_dispatch.setenv(dispatch.SWITCH, "yes")
    with pytest.raises(KernelError, match="THRIFTY_NATIVE is 'yes'; it must be 0"):
        dispatch.native()


def test_a_missing_module_warns_once_and_says_what_to_do(fresh_dispatch: pytest.MonkeyPatch) -> None:
    fresh_dispatch.delenv(dispatch.SWITCH, raising=False)
    fresh_dispatch.setitem(sys.modules, "thrifty.kernels.native._native", None)
    with pytest.warns(RuntimeWarning, match="not built for this Python.*pip install") as seen:
        assert dispatch.native() is None
        assert dispatch.native() is None
    assert len(seen) == 1
    with pytest.raises(KernelError, match="pip install"):
        dispatch.require()
