"""Runs the Gluon forward without a GPU: its partitions as threads, what is asynchronous as late as the hardware may.

Gluon has no interpreter. This is a model of the few operations that the kernel uses, for its indices, phases, masks and
order; layouts, and what the compiler makes of them, are not modeled. A copy fills its buffer with NaN until a wait
completes it, and a product reads its operands when it is started and again when it is waited for, which must agree.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import types
from typing import Any

import torch

PATIENCE_S = 5.0  # of a wait, after which the partitions are deadlocked


class Barrier:
    """An mbarrier: a phase completes with its arrivals and the bytes that were announced."""

    def __init__(self) -> None:
        self.completed = 0
        self.arrivals = 0
        self.bytes_due = 0
        self.copies: list[Any] = []
        self.changed = threading.Condition()

    def arrive(self, count: int = 1, expected: int = 0) -> None:
        with self.changed:
            self.arrivals += count
            self.bytes_due += expected
            self._advance()

    def deliver(self, size: int, copy: Any) -> None:
        with self.changed:
            self.bytes_due -= size
            self.copies.append(copy)
            self._advance()

    def _advance(self) -> None:
        assert self.arrivals <= 1, "more arrivals than the barrier was initialized for"
        if self.arrivals == 1 and self.bytes_due == 0:
            self.completed += 1
            self.arrivals = 0
            self.changed.notify_all()

    def wait(self, phase: int) -> None:
        with self.changed:
            if not self.changed.wait_for(lambda: self.completed & 1 != phase & 1, PATIENCE_S):
                raise RuntimeError("a barrier never completed its phase: the partitions are deadlocked")
            for copy in self.copies:
                copy()
            self.copies.clear()


class Barriers:
    """One barrier per stage."""

    def __init__(self, stages: int) -> None:
        self.barriers = [Barrier() for _ in range(stages)]

    def index(self, i: Any) -> Barrier:
        return self.barriers[int(i)]


class Shared:
    """A buffer in shared memory, or a view of one."""

    def __init__(self, data: torch.Tensor) -> None:
        self.data = data
        self.dtype = data.dtype

    def index(self, i: Any) -> Shared:
        return Shared(self.data[int(i)])

    def reshape(self, shape: list[int]) -> Shared:
        return Shared(self.data.view(shape))

    def permute(self, order: tuple[int, ...]) -> Shared:
        return Shared(self.data.permute(order))


class Product:
    """A product that has been started."""

    def __init__(self, a: Any, b: Shared, start: torch.Tensor | None) -> None:
        self.operands = a, b
        self.start = start
        self.result: torch.Tensor | None = None
        self.read = self._read()

    @staticmethod
    def finished(result: torch.Tensor) -> Product:
        product = Product.__new__(Product)
        product.result = result
        return product

    def _read(self) -> list[torch.Tensor]:
        return [(x.data if isinstance(x, Shared) else x).float().clone() for x in self.operands]

    def finish(self) -> None:
        late = self._read()
        assert all(torch.equal(x, y) for x, y in zip(late, self.read, strict=True)), (
            "a running product's operand changed"
        )
        product = late[0] @ late[1]
        self.result = product if self.start is None else product + self.start


class Pointer:
    def __init__(self, memory: torch.Tensor, offset: Any = 0) -> None:
        # The storage from this tensor's first element on.
        self.memory = memory.as_strided(
            (memory.untyped_storage().size() // memory.element_size() - memory.storage_offset(),), (1,)
        )
        self.offset = offset
        self.dtype = types.SimpleNamespace(element_ty=memory.dtype)

    def __add__(self, step: Any) -> Pointer:
        moved = Pointer.__new__(Pointer)
        moved.memory, moved.dtype, moved.offset = self.memory, self.dtype, self.offset + step
        return moved


class Machine:
    """The stand-ins for the modules that the kernel uses, and the launch of it."""

    def __init__(self, monkeypatch: Any, module: Any) -> None:
        self.program = threading.local()
        self.local = threading.local()
        self.module = module
        self.kernel = module.gluon_forward_kernel.fn
        self.launches = 0
        for name, value in vars(module).copy().items():
            if type(value).__name__ == "GluonJITFunction":
                monkeypatch.setattr(module, name, value.fn)
            elif type(value).__name__ == "constexpr":
                monkeypatch.setattr(module, name, value.value)
        real = module.gl
        monkeypatch.setattr(module, "gl", self._language(real))
        monkeypatch.setattr(module, "mbarrier", self._mbarrier())
        monkeypatch.setattr(module, "tma", types.SimpleNamespace(async_copy_global_to_shared=self._copy))
        monkeypatch.setattr(module, "warpgroup_mma", self._start)
        monkeypatch.setattr(module, "warpgroup_mma_init", Product.finished)
        monkeypatch.setattr(module, "warpgroup_mma_wait", self._wait)
        monkeypatch.setattr(module, "gluon_forward_kernel", self)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, maxnreg: int, **constants: Any) -> None:
            self.launches += 1
            assert 32 * maxnreg * (constants["num_warps"] + 4) <= 65536
            for program in range(*grid):
                self.program.id = program
                self.kernel(*(self._argument(x) for x in arguments), **constants)

        return launch

    @staticmethod
    def _argument(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return Pointer(x)
        if hasattr(x, "block_shape"):
            size = x.base.element_size()
            for step in x.block_shape:
                size *= step
            return types.SimpleNamespace(
                base=x.base, shape=x.shape, block_shape=x.block_shape, dtype=x.base.dtype, layout=x.layout,
                block_type=types.SimpleNamespace(nbytes=size),
            )  # fmt: skip
        return x

    @staticmethod
    def _mbarrier() -> Any:
        def initialize(barrier: Barrier, count: int) -> None:
            assert count == 1

        def arrive(barrier: Barrier, count: int, pred: Any = True) -> None:
            if pred:
                barrier.arrive(count)

        return types.SimpleNamespace(
            init=initialize, arrive=arrive, MBarrierLayout=lambda: None,
            expect=lambda barrier, size: barrier.arrive(expected=size),
            wait=lambda barrier, phase: barrier.wait(phase),
        )  # fmt: skip

    @staticmethod
    def _copy(source: Any, first: list[int], barrier: Any, target: Shared) -> None:
        block = torch.zeros(source.block_shape, dtype=source.dtype)
        inside = tuple(
            slice(at, min(at + n, size)) for at, n, size in zip(first, source.block_shape, source.shape, strict=True)
        )
        part = source.base[inside]
        block[tuple(slice(0, n) for n in part.shape)] = part
        target.data.fill_(torch.nan)
        barrier.deliver(source.block_type.nbytes, lambda: target.data.copy_(block))

    def _start(self, a: Any, b: Shared, start: Any, use_acc: bool = True, is_async: bool = False) -> Any:
        assert isinstance(start, torch.Tensor), "the accumulator is a product that still runs"
        product = Product(a, b, start if use_acc else None)
        self._running().append(product)
        if is_async:
            return product
        return self._wait(0, (product,))

    def _running(self) -> list[Product]:
        if not hasattr(self.local, "running"):
            self.local.running = []
        return self.local.running

    def _wait(self, outstanding: int, deps: tuple[Any, ...]) -> Any:
        running = self._running()
        while len(running) > outstanding:
            running.pop(0).finish()
        found = []
        for each in deps:
            if isinstance(each, Product):
                assert each.result is not None, "a product is used that still runs"
                found.append(each.result)
            else:
                found.append(each)
        return found[0] if len(found) == 1 else tuple(found)

    def _language(self, real: Any) -> Any:
        def number(x: Any) -> Any:
            return torch.as_tensor(x, dtype=torch.float32) if isinstance(x, float) else torch.as_tensor(x)

        def allocate(dtype: Any, shape: list[int], layout: Any) -> Any:
            if dtype == torch.int64:
                return Barriers(shape[0]) if len(shape) == 2 else Barrier()
            return Shared(torch.full(shape, torch.nan, dtype=dtype))

        def load(pointer: Pointer, mask: Any = None, other: float = 0.0) -> torch.Tensor:
            offset = torch.as_tensor(pointer.offset)
            if mask is None:
                return pointer.memory[offset]
            mask = mask.expand(offset.shape)
            return torch.where(mask, pointer.memory[offset.where(mask, 0)], other)

        def store(pointer: Pointer, value: torch.Tensor, mask: torch.Tensor) -> None:
            offset, mask = pointer.offset, mask.expand(pointer.offset.shape)
            pointer.memory[offset[mask]] = value[mask].to(pointer.memory.dtype)

        def specialize(parts: list[Any], warps: list[int], registers: list[int]) -> None:
            failures: list[BaseException] = []

            def run(function: Any, arguments: tuple[Any, ...]) -> None:
                try:
                    function(*arguments)
                except BaseException as failure:
                    failures.append(failure)

            threads = [threading.Thread(target=run, args=part, daemon=True) for part in parts]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if failures:
                raise failures[0]

        return types.SimpleNamespace(
            constexpr=real.constexpr, float32=torch.float32, int64=torch.int64,
            NVMMASharedLayout=real.NVMMASharedLayout, NVMMADistributedLayout=real.NVMMADistributedLayout,
            SliceLayout=real.SliceLayout, DotOperandLayout=real.DotOperandLayout,
            allocate_shared_memory=allocate, static_range=range, warp_specialize=specialize, load=load, store=store,
            program_id=lambda axis: self.program.id,
            arange=lambda start, stop, layout: torch.arange(start, stop),
            zeros=lambda shape, dtype, layout: torch.zeros(shape, dtype=dtype),
            full=lambda shape, value, dtype, layout: torch.full(shape, value, dtype=dtype),
            convert_layout=lambda x, layout: x,
            cast=lambda x, dtype: x,
            cdiv=lambda a, b: -(-a // b),
            minimum=min,
            maximum=lambda a, b: torch.maximum(number(a), number(b)),
            max=lambda x, axis: x.amax(axis),
            sum=lambda x, axis: x.sum(axis),
            exp2=lambda x: torch.exp2(number(x)),
            log2=torch.log2,
            where=lambda condition, a, b: torch.where(condition, a, torch.tensor(b)),
        )  # fmt: skip


@contextlib.contextmanager
def threads_switch_often() -> Any:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
