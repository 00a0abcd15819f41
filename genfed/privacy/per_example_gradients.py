"""Gradients of every single example, for DP-SGD."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genfed.core.errors import GenfedError, require
from genfed.core.rng import seeded
from genfed.training.fit import Objective


def parameters_of(player: Objective) -> list[nn.Parameter]:
    """Those that the player's optimizer changes."""
    return [p for group in player.optimizer.param_groups for p in group["params"]]


def example_gradients(
    player: Objective, x: Tensor, y: Tensor, rng: torch.Generator, *, summed: bool = False
) -> list[Tensor]:
    """Returns the gradient of every example's loss, [n, *shape] per parameter; in `hook_per_example`. `summed`: they
    must come to the batch's, which is tried before training and not in it, where to fail would tell of examples.

    Raises:
        GenfedError: the hooks did not see all that a parameter does.
    """
    parameters, found = parameters_of(player), list[Tensor]()
    for p in parameters:
        p.grad, p.grad_sample = None, None  # type: ignore[attr-defined]
    with warnings.catch_warnings():  # that no gradient of the inputs is wanted
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        player.loss(x, y, rng).float().sum().backward()  # type: ignore[no-untyped-call]
    for p in parameters:
        seen: object = getattr(p, "grad_sample", None)
        p.grad_sample = None  # type: ignore[attr-defined]
        if p.grad is None and seen is None:
            seen = p.new_zeros(len(x), *p.shape)  # it has no part in the loss
        whole = torch.zeros_like(p) if p.grad is None else p.grad
        if not (isinstance(seen, Tensor) and seen.shape == (len(x), *p.shape) and (not summed or _sums(seen, whole))):
            raise GenfedError(
                f"a parameter of shape {tuple(p.shape)} is used in a way in which no gradient per example can be had: "
                "keep it in a layer of its own that is called with the batch first"
            )
        found.append(seen)
    return found


def _sums(parts: Tensor, whole: Tensor) -> bool:
    slack = 1e-4 * float(parts.norm()) + 1e-6
    return torch.allclose(parts.sum(0), whole, rtol=1e-2, atol=slack, equal_nan=True)


@contextlib.contextmanager
def hook_per_example(player: Objective) -> Iterator[Any]:
    """Inside the block the player's backward passes leave the gradient of each example; gives Opacus's hooks.

    Raises:
        GenfedError: there is no network, or one that mixes the examples of a batch or that Opacus cannot hook into.
    """
    if player.network is None:
        raise GenfedError("what this method trains is not known as a network, so it cannot be trained by DP-SGD")
    hooks_of = _opacus()
    check_layers(player.network)
    for module in player.network.modules():
        own: Callable[[Tensor, Tensor], dict[nn.Parameter, Tensor]] | None
        if own := getattr(type(module), "example_gradients", None):
            hooks_of.GRAD_SAMPLERS.setdefault(type(module), _sampler(own))
    inside = player.network
    if any(True for _ in inside.parameters(recurse=False)):  # these go by `each`
        inside = nn.ModuleList(inside.children())
    for p in parameters_of(player):
        p.grad_sample = None  # type: ignore[attr-defined]
    try:
        hooks = hooks_of(inside, loss_reduction="sum")
    except NotImplementedError as error:
        raise GenfedError(f"Opacus cannot train it per example: {error}") from None
    try:
        yield hooks
    finally:
        hooks.cleanup()
        for p in parameters_of(player):
            if hasattr(p, "grad_sample"):
                del p.grad_sample


def _sampler(own: Callable[..., Any]) -> Callable[..., Any]:
    return lambda module, given, gradient: own(module, given[0], gradient)


@contextlib.contextmanager
def hooks_disabled(hooks: Sequence[Any]) -> Iterator[None]:
    """Inside the block backward passes leave no gradients of single examples."""
    for each in hooks:
        each.disable_hooks()
    try:
        yield
    finally:
        for each in hooks:
            each.enable_hooks()


def check_layers(network: nn.Module) -> None:
    """Refuses what makes one example's output depend on others.

    Raises:
        GenfedError: BatchNorm, or statistics that are kept of examples.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise GenfedError(f"{name or 'it'} is BatchNorm, by which an example changes what others become")
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
            raise GenfedError(f"{name} keeps statistics of examples")


def check_trained(player: Objective, x: Tensor, y: Tensor) -> None:
    """Refuses, before training, a player that could not be trained by DP-SGD, by trying it on two examples.

    Raises:
        GenfedError: says why.
    """
    assert player.network is not None
    rng = torch.Generator().manual_seed(0)
    before = {name: buffer.clone() for name, buffer in player.network.named_buffers()}
    with seeded(rng), hook_per_example(player):
        try:
            example_gradients(player, x, y, rng, summed=True)
        except GenfedError:
            raise
        except Exception as error:  # a layer that Opacus does not know may fail in any way
            raise GenfedError(f"Opacus cannot train it per example ({type(error).__name__}: {error})") from error
    for name, buffer in player.network.named_buffers():
        if not torch.equal(before[name], buffer):
            raise GenfedError(f"{name} keeps statistics of examples, which no noise covers")


def check_alone(network: nn.Module, x: Tensor) -> None:
    """Refuses a network that gives an example another output in company than alone.

    Raises:
        GenfedError: it does.
    """
    network.train()
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    with torch.no_grad():
        together, alone = network(x), torch.cat([network(one) for one in torch.split(x, 1)])
    network.train()
    if not torch.allclose(together, alone, rtol=1e-3, atol=1e-4):
        raise GenfedError("its output for an example depends on the others of the batch")


def per_example_parameter(parameter: nn.Parameter, n: int) -> Tensor:
    """A parameter that no layer holds, as n examples use it: [n, *shape] while the gradient of each is wanted, else as
    it is.
    """
    if not hasattr(parameter, "grad_sample") or not torch.is_grad_enabled():
        return parameter
    wide = parameter.expand(n, *parameter.shape)

    def keep(gradient: Tensor) -> None:
        parameter.grad_sample = gradient.detach()

    wide.register_hook(keep)  # type: ignore[no-untyped-call]
    return wide


def _opacus() -> Any:
    """Opacus's hooks."""
    require("opacus", extra="privacy", what="[privacy]")
    from opacus.grad_sample import GradSampleHooks  # takes seconds

    if (of_maps := GradSampleHooks.GRAD_SAMPLERS[nn.Conv2d]) is not _in_one_piece:
        _in_one_piece.opacus = of_maps  # type: ignore[attr-defined]
        GradSampleHooks.GRAD_SAMPLERS[nn.Conv2d] = _in_one_piece
    return GradSampleHooks


def _in_one_piece(layer: nn.Conv2d, given: list[Tensor], gradient: Tensor) -> Any:
    """Opacus's for nn.Conv2d, which is wrong for maps whose channels come last in memory, as after attention."""
    return _in_one_piece.opacus(layer, [given[0].contiguous()], gradient.contiguous())  # type: ignore[attr-defined]
