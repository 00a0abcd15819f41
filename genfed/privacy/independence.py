"""Checks before training under privacy of examples that none of a batch changes what another becomes: its features, or
its loss and gradient under DP-SGD.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from genfed.core.errors import GenfedError, first_line
from genfed.core.rng import seeded
from genfed.privacy.per_example_gradients import example_gradients, hook_per_example, parameters_of
from genfed.training.fit import Objective

SIZES = (2, 3, 5)
"""Sizes of the batches that are always tried."""
NUMBERS = 2**26
"""Maximum count of numbers in the per-example gradients of a batch that is tried; larger batches are tried smaller."""


def check_independent(objective: Objective, x: Tensor, y: Tensor, batch_sizes: Iterable[int] = ()) -> None:
    """Refuses an objective in which an example's loss or gradient depends on the other examples of its batch, on their
    number, or on examples seen before.

    Each is computed in batches of several sizes and compared with that of the example alone, both as in training and,
    for losses, as in evaluation. The derivative of one example's loss by another example must be 0. Afterwards a batch
    of unlike examples must have changed nothing. Every example gets the same random numbers in all of these. This finds
    what shows on these examples; it is no proof.

    Args:
        objective: the loss and its network.
        x: examples [m, *shape] to begin the batches with; random numbers in [−1, 1] follow.
        y: their classes [m].
        batch_sizes: further sizes of batches, such as those of the training.

    Raises:
        GenfedError: the reason, with the name of the layer if it is one.
    """
    assert objective.network is not None
    most = max(2, NUMBERS // max(1, sum(p.numel() for p in parameters_of(objective))))
    sizes = sorted({min(size, most) for size in (*SIZES, *batch_sizes) if size > 1})
    tried = _Tried(objective, *_extend(x, y, sizes[-1]))
    buffers = {name: buffer.clone() for name, buffer in objective.network.named_buffers()}
    try:
        _try_all(tried, objective.network, sizes)
    except GenfedError:
        raise
    except Exception as error:  # a user's network, on one example or in evaluation, can raise any error
        raise GenfedError(
            f"it fails on some of {sizes[-1]} examples or on one alone ({type(error).__name__}: {first_line(error)})"
        ) from error
    for name, buffer in objective.network.named_buffers():
        if not torch.equal(buffers[name], buffer):
            raise GenfedError(f"{name} stores statistics of examples, which get no noise")


def check_features_independent(network: nn.Module, x: Tensor) -> None:
    """Refuses a fixed map in which an example's features depend on the other examples of its batch, on their number, or
    on examples seen before. Like `check_independent` it is no proof.

    Args:
        network: the map, in evaluation mode.
        x: examples [m, *shape], m ≥ 5, as a network takes them. The first few and all together are tried.

    Raises:
        GenfedError: the reason.
    """
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
        sizes = (*SIZES, len(x))
        alone = {row: network(x[row : row + 1])[0] for size in sizes for row in (0, size - 1)}
        for size in sizes:
            together = network(x[:size])
            if not all(_close(together[row], alone[row]) for row in (0, size - 1)):
                raise GenfedError(
                    f"its features of an example depend on the others of the batch (tried with {size} examples)"
                )
        network(x * 10 + 3)
        if not all(_close(network(x[row : row + 1])[0], before) for row, before in alone.items()):
            raise GenfedError("its features of an example depend on examples that it has seen before")


def _try_all(tried: "_Tried", network: nn.Module, sizes: Sequence[int]) -> None:
    # Convolutions of a GPU are computed with 10 bits by default, and otherwise for every size of the batch.
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
        for training in (False, True):
            network.train(training)
            tried.check_state(sizes[0])
            for size in sizes:
                tried.check_losses(size)
        for size in sizes:
            tried.check_gradients(size)


def _extend(x: Tensor, y: Tensor, count: int) -> tuple[Tensor, Tensor]:
    more = torch.rand(max(0, count - len(x)), *x.shape[1:], generator=torch.Generator().manual_seed(0)) * 2 - 1
    places = torch.arange(count, device=y.device) % len(y)
    return torch.cat([x, more.to(x)])[:count], y[places]


class _Tried:
    """An objective on some examples, in batches and one at a time."""

    def __init__(self, objective: Objective, x: Tensor, y: Tensor) -> None:
        assert objective.network is not None
        self._objective, self._network, self._x, self._y = objective, objective.network, x, y
        self._draws = _Draws()  # what was last drawn for one example alone
        self._alone: dict[int, Tensor] = {}  # gradients of examples alone, in training

    def check_losses(self, size: int) -> None:
        x = self._x[:size].clone().requires_grad_()
        alone = {row: self._loss_alone(row) for row in (0, size - 1)}
        losses = self._losses(x, self._y[:size], self._draws)
        if losses.shape != (size,):
            raise GenfedError(f"its loss has shape {tuple(losses.shape)} for {size} examples; one each is needed")
        for row, loss in alone.items():
            if not _close(losses[row].detach(), loss):
                self._refuse(size, row)
        if losses.requires_grad:
            (slope,) = torch.autograd.grad(losses[-1], x, allow_unused=True, materialize_grads=True)
            if bool(slope[:-1].any()):
                self._refuse(size, size - 1)

    def check_state(self, size: int) -> None:
        before = self._loss_alone(0)
        with torch.no_grad():
            self._losses(self._x[:size] * 10 + 3, self._y[:size], _Draws())
        if not _close(self._loss_alone(0), before):
            raise GenfedError("its loss for an example depends on examples that it has seen before")

    def check_gradients(self, size: int) -> None:
        for row in (0, size - 1):
            if row not in self._alone:
                self._draws = _Draws()
                self._alone[row] = self._gradients(self._x[row : row + 1], self._y[row : row + 1], self._draws)[0]
        together = self._gradients(self._x[:size], self._y[:size], self._draws.repeated(size))
        for row in (0, size - 1):
            alone = self._alone[row]
            if not _close(together[row], alone, slack=1e-3 * float(alone.norm()) + 1e-6):
                self._refuse(size, row)

    def _loss_alone(self, row: int) -> Tensor:
        self._draws = _Draws()
        with torch.no_grad():
            return self._losses(self._x[row : row + 1], self._y[row : row + 1], self._draws).flatten()[0]

    def _losses(self, x: Tensor, y: Tensor, draws: "_Draws") -> Tensor:
        rng = torch.Generator().manual_seed(0)
        with seeded(rng), draws.repeated(len(x)):
            return self._objective.loss(x, y, rng)

    def _gradients(self, x: Tensor, y: Tensor, draws: "_Draws") -> Tensor:
        """Returns every example's gradient over all parameters in one row [n, count]."""
        rng = torch.Generator().manual_seed(0)
        with seeded(rng), hook_per_example(self._objective), draws:
            return torch.cat([g.flatten(1) for g in example_gradients(self._objective, x, y, rng, summed=True)], dim=1)

    def _refuse(self, size: int, row: int) -> None:
        """Refuses the objective, with the layer in which an example first depends on others."""
        draws = _Draws()
        with torch.no_grad(), _recorded(self._network) as alone:
            self._losses(self._x[row : row + 1], self._y[row : row + 1], draws)
        with torch.no_grad(), _recorded(self._network) as together:
            self._losses(self._x[:size], self._y[:size], draws)
        where = "its loss"
        for (module, given, made), (_, given_alone, made_alone) in zip(together, alone, strict=False):
            if _same(given, given_alone, row, size) and not _same(made, made_alone, row, size):
                name = next(name for name, each in self._network.named_modules() if each is module)
                where = f"the output of {name or 'its network'} ({type(module).__name__})"
                break
        raise GenfedError(f"{where} for an example depends on the others of the batch (tried with {size} examples)")


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives every example of a batch the random numbers that one example alone gets.

    Used for an example alone first, it notes what is drawn. A draw of `repeated(n)` that is n times as long as the one
    noted is made for one example, and repeated.
    """

    def __init__(self, noted: Sequence[int] | None = None, times: int = 1) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._noted, self._times, self._lengths = noted, times, list[int]()

    def repeated(self, times: int) -> "_Draws":
        return _Draws(tuple(self._lengths), times) if times > 1 else self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or (place := _find_size(func, args)) is None:
            return func(*args, **kwargs)
        like, number = args[place], len(self._lengths)
        size = list(like.shape if isinstance(like, Tensor) else like)
        self._lengths.append(size[0] if size else 0)
        noted = self._noted[number] if self._noted is not None and number < len(self._noted) else 0
        if not noted or self._times == 1 or size[0] != noted * self._times:
            return func(*args, **kwargs)
        one: Any = like[:noted] if isinstance(like, Tensor) else [noted, *size[1:]]
        if func is torch.ops.aten.native_dropout.default:  # dropout on a GPU
            factors = func(torch.ones_like(one), *args[1:])[0].repeat(self._times, *(1 for _ in size[1:]))
            return like * factors, factors != 0
        made = func(*args[:place], one, *args[place + 1 :], **kwargs).repeat(self._times, *(1 for _ in size[1:]))
        return like.copy_(made) if func.overloadpacket.__name__.endswith("_") else made


def _find_size(func: Any, args: Sequence[Any]) -> int | None:
    """Returns the place of the argument that gives a random operation the shape of its numbers. None: their
    distribution depends on other tensors, or they have no shape.
    """
    name = func.overloadpacket.__name__
    if name.endswith(("_", "_like")) or func is torch.ops.aten.native_dropout.default:
        return 0 if sum(isinstance(arg, Tensor) for arg in args) == 1 else None
    return next((i for i, arg in enumerate(args) if isinstance(arg, list | tuple)), None)


@contextlib.contextmanager
def _recorded(network: nn.Module) -> Iterator[list[tuple[nn.Module, list[Tensor], list[Tensor]]]]:
    """Yields a list to which each call of a layer inside the block is added: layer, inputs, outputs."""
    calls: list[tuple[nn.Module, list[Tensor], list[Tensor]]] = []

    def record(module: nn.Module, given: Any, made: Any) -> None:
        outputs = made if isinstance(made, tuple | list) else (made,)
        calls.append((module, *([t for t in each if isinstance(t, Tensor)] for each in (given, outputs))))  # type: ignore[arg-type]

    handles = [module.register_forward_hook(record) for module in network.modules()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _same(together: Sequence[Tensor], alone: Sequence[Tensor], row: int, size: int) -> bool:
    """Returns whether a row of tensors of a batch is that of the example alone. Tensors without a batch are ignored."""
    return all(
        _close(a[row].float(), b[0].float())
        for a, b in zip(together, alone, strict=False)
        if a.dim() and a.shape[0] == size and b.shape == (1, *a.shape[1:])
    )


def _close(one: Tensor, other: Tensor, slack: float | None = None) -> bool:
    """Returns whether two tensors are equal but for rounding: up to `slack`, or to 1e-4 of the second's norm."""
    if not bool(torch.isfinite(other).all()):
        return torch.allclose(one, other, equal_nan=True)
    return float((one - other).norm()) <= (1e-4 * float(other.norm()) + 1e-6 if slack is None else slack)
