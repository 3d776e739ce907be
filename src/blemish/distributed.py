"""Several processes at one training: which one this is, and what they tell each other.

`torchrun` starts the same program several times, on one machine or many, and says in the environment
which of them each one is. Inside `joined` they share the work: each takes its part of every batch
(`share`), and what they found is summed or told to all. In one process all of this does nothing, so
that nobody else has to ask how many there are.

They must tell each other the same things in the same order, from their main threads.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from blemish.errors import BlemishError, ConfigError, count_of

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed.distributed_c10d import Store

Item = TypeVar("Item")
PATIENCE = timedelta(hours=6)
"""Time to wait for a process that reads, judges or saves alone; torchrun sees dead ones much earlier."""
_SAID = "error"
_HEARD = timedelta(seconds=5)


@dataclass(frozen=True)
class _Place:
    rank: int = 0
    world_size: int = 1


_ALONE = _Place()
_joined = [_ALONE]
"""The last one counts."""
_is_alone: ContextVar[bool] = ContextVar("_is_alone", default=False)
"""Of one thread, and of those that are started with its context: one may be alone while another shares."""


def asked() -> bool:
    """Whether this process was started as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    """Which process this is, from 0."""
    return _here().rank


def world_size() -> int:
    """How many processes share the work."""
    return _here().world_size


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def _here() -> _Place:
    return _ALONE if _is_alone.get() else _joined[-1]


@contextmanager
def joined(device: str = "auto") -> Iterator[None]:
    """Nothing; while the block runs, this process works together with the others that torchrun has started.

    All but the first are silent meanwhile; an error that all have is said once.

    Args:
        device: What they compute on; with "auto" or "cuda", each takes the GPU of its number.

    Raises:
        ConfigError: they can't find each other, or there are fewer GPUs than processes.
    """
    if not asked():
        yield
        return
    import torch.distributed as group
    from torch.distributed.rendezvous import rendezvous

    has_gpu = _choose_gpu(device)
    try:
        store, own, count = next(rendezvous("env://", timeout=PATIENCE))
        backend = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
        group.init_process_group(backend, store=store, rank=own, world_size=count, timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the processes can't find each other ({error}); start them with torchrun, for example torchrun "
            "--standalone --nproc-per-node 2 -m blemish fit ..."
        ) from error
    _joined.append(_Place(own, count))
    try:
        with ExitStack() as stack:
            if own:
                nowhere = stack.enter_context(Path(os.devnull).open("w"))
                stack.enter_context(redirect_stdout(nowhere))
                stack.enter_context(redirect_stderr(nowhere))
            yield
    except BlemishError as error:
        if _is_said(store, str(error), own):
            raise SystemExit(2) from error
        raise
    finally:
        _joined.pop()
        group.destroy_process_group()


def _choose_gpu(device: str) -> bool:
    """Whether GPUs take part; this process then has one of its own."""
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        return False
    local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if device not in {"auto", "cuda"}:
        raise ConfigError(
            f'--device is "{device}"; expected auto, cuda or cpu where several processes share a training: each '
            "takes the GPU of its number."
        )
    if local >= there:
        raise ConfigError(
            f"this machine has {count_of(there, 'GPU')} and more processes than that; expected --nproc-per-node "
            f"{there}, or --device cpu."
        )
    torch.cuda.set_device(local)
    return True


def _is_said(store: "Store", sentence: str, own: int) -> bool:
    """Whether the first process has had the same error; it lets the others know of its own."""
    if not own:
        store.set(_SAID, sentence)
        return False
    try:
        store.wait([_SAID], _HEARD)
        return bool(store.get(_SAID).decode() == sentence)
    except RuntimeError:  # the first one has none, or has left already
        return False


@contextmanager
def alone() -> Iterator[None]:
    """Nothing; while the block runs, this process works as if there were no other."""
    before = _is_alone.set(True)
    try:
        yield
    finally:
        _is_alone.reset(before)


@contextmanager
def in_turn() -> Iterator[None]:
    """Nothing; the processes run the block one after the other."""
    for turn in range(world_size()):
        if turn == rank():
            yield
        wait()


def wait() -> None:
    """Nothing, as soon as all processes have come here."""
    if world_size() > 1:
        import torch

        total(torch.zeros(1))


def check_shares(size: int, option: str = "batch_size") -> None:
    """Nothing, if so many pictures can be shared evenly.

    Raises:
        ConfigError: they can't.
    """
    count = world_size()
    if size % count:
        raise ConfigError(
            f"a batch of {size} can't be shared evenly by {count} processes; expected --{option.replace('_', '-')} to "
            f"make a multiple of {count}, for example {-(-size // count) * count}."
        )


def share(items: Sequence[Item]) -> Sequence[Item]:
    """The part of a batch that this process takes: every so many-th item.

    Raises:
        ConfigError: the batch can't be shared evenly.

    >>> share("abcd")
    'abcd'
    """
    check_shares(len(items))
    return items[rank() :: world_size()]


def total(value: "Tensor") -> "Tensor":
    """The sum over all processes of a tensor that has the same shape in each."""
    if world_size() == 1:
        return value
    import torch.distributed as group

    summed = value.detach().clone()
    group.all_reduce(summed)
    return summed


class Averaging:
    """The mean over all processes of the gradients of some parameters, sent while these are still being computed.

    Gradients are ready from the last layer to the first, and are sent so, some layers together. All
    processes send the same ones in the same order, whichever of them a process has no gradient for,
    and nothing else is said in their group.
    """

    def __init__(self, parameters: Sequence["Tensor"]) -> None:
        """Parameters in the order of the layers; all processes have the same."""
        self._buckets: list[list[Tensor]] = []
        if world_size() == 1:
            return
        import torch.distributed as group

        self._group: Any = group.new_group()
        self._buckets = list(_buckets(reversed(parameters)))
        self._place = {id(each): place for place, bucket in enumerate(self._buckets) for each in bucket}

    @contextmanager
    def during(self, is_last: bool = True) -> Iterator[None]:
        """Nothing; after a block with the last backward pass of a step, all processes have the same gradients.

        A parameter without a gradient counts as one of 0, unless no process has any for it.

        Args:
            is_last: Whether the block computes the last of the gradients that add up.
        """
        if not (self._buckets and is_last):
            yield
            return
        self._sent: list[tuple[Any, Tensor]] = []
        self._lack = [len(bucket) for bucket in self._buckets]
        trained = [each for bucket in self._buckets for each in bucket]
        hooks = [each.register_post_accumulate_grad_hook(self._come) for each in trained]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        while len(self._sent) < len(self._buckets):  # those with parameters that had no part in it
            self._send()
        self._receive()

    def _come(self, parameter: "Tensor") -> None:
        """Sends all buckets whose turn it is now that this gradient is there."""
        self._lack[self._place[id(parameter)]] -= 1
        while len(self._sent) < len(self._buckets) and not self._lack[len(self._sent)]:
            self._send()

    def _send(self) -> None:
        import torch
        import torch.distributed as group

        bucket = self._buckets[len(self._sent)]
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in bucket]
        wide = [each.to(torch.promote_types(each.dtype, torch.float32)) for each in gradients]
        flat = torch.cat([each.reshape(-1) for each in wide])
        self._sent.append((group.all_reduce(flat, group=self._group, async_op=True), flat))

    def _receive(self) -> None:
        import torch

        own = [float(each.grad is not None) for bucket in self._buckets for each in bucket]
        used = iter(total(torch.tensor(own)).tolist())
        for (sending, flat), bucket in zip(self._sent, self._buckets, strict=True):
            sending.wait()
            means = (flat / world_size()).split([each.numel() for each in bucket])
            for each, mean, times in zip(bucket, means, used, strict=False):
                if times:
                    each.grad = torch.empty_like(each).copy_(mean.view(each.shape))
        self._sent = []


def _buckets(tensors: Iterable["Tensor"], most: int = 2**22) -> Iterator[list["Tensor"]]:
    """The tensors, in lists of about `most` numbers: few messages, and little memory."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        bucket.append(tensor)
        if sum(each.numel() for each in bucket) >= most:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def gathered(text: str) -> list[str]:
    """The texts of all processes, in the order of their ranks."""
    count = world_size()
    if count == 1:
        return [text]
    import torch

    own = torch.tensor(list(text.encode()), dtype=torch.uint8)
    sizes = torch.zeros(count, dtype=torch.long)
    sizes[rank()] = len(own)
    sizes = total(sizes)
    padded = torch.zeros(count, int(sizes.max()), dtype=torch.uint8)
    padded[rank(), : len(own)] = own
    rows = total(padded)
    return [bytes(row[:size].tolist()).decode() for row, size in zip(rows, sizes.tolist(), strict=True)]


def from_first(text: str, tensors: "Mapping[str, Tensor] | None" = None) -> "tuple[str, dict[str, Tensor]]":
    """The text and the tensors of the first process, on the CPU where they come from another one."""
    own = dict(tensors or {})
    if world_size() == 1:
        return text, own
    import torch
    import torch.distributed as group

    kinds = [(name, str(value.dtype).removeprefix("torch."), list(value.shape)) for name, value in own.items()]
    about = json.loads(gathered(json.dumps([text, kinds]) if is_first() else "")[0])
    found: dict[str, Tensor] = {}
    for name, kind, shape in about[1]:
        value = own[name].detach().cpu() if is_first() else torch.empty(shape, dtype=getattr(torch, kind))
        flat = value.contiguous().reshape(-1).view(torch.uint8)
        if len(flat):
            group.broadcast(flat, 0)
        found[name] = flat.view(value.dtype).view(shape)
    return about[0], own if is_first() else found


def number_of_first(value: float) -> float:
    """The number that the first process has, such as the time on its clock."""
    if world_size() == 1:
        return value
    import torch

    return float(total(torch.tensor(value if is_first() else 0.0, dtype=torch.double)))
