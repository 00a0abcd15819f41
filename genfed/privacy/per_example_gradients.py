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


def parameters_of(objective: Objective) -> list[nn.Parameter]:
    """Returns the parameters that the objective's optimizer changes."""
    return [p for group in objective.optimizer.param_groups for p in group["params"]]


def example_gradients(
    objective: Objective, x: Tensor, y: Tensor, rng: torch.Generator, *, summed: bool = False
) -> list[Tensor]:
    """Returns the gradient of every example's loss, [n, *shape] per parameter. Call it inside `hook_per_example`.

    Args:
        objective: the loss and its network.
        x: the examples [n, *shape].
        y: their classes [n].
        rng: the randomness of the loss.
        summed: whether to check that the gradients add up to the batch's. This is for checks before training: a failure
            during training would reveal something about the examples.

    Raises:
        GenfedError: the hooks did not see every use of a parameter.
    """
    parameters, found = parameters_of(objective), list[Tensor]()
    for p in parameters:
        p.grad, p.grad_sample = None, None  # type: ignore[attr-defined]
    with warnings.catch_warnings():  # a warning that no gradient of the inputs is computed
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        objective.loss(x, y, rng).float().sum().backward()  # type: ignore[no-untyped-call]
    for p in parameters:
        seen: object = getattr(p, "grad_sample", None)
        p.grad_sample = None  # type: ignore[attr-defined]
        if p.grad is None and seen is None:
            seen = p.new_zeros(len(x), *p.shape)  # the loss does not depend on it
        whole = torch.zeros_like(p) if p.grad is None else p.grad
        if not (isinstance(seen, Tensor) and seen.shape == (len(x), *p.shape) and (not summed or _sums(seen, whole))):
            raise GenfedError(
                f"a parameter of shape {tuple(p.shape)} is used in a way that gives no per-example gradient: put it "
                "into a layer of its own that is called with the batch first"
            )
        found.append(seen)
    return found


def _sums(parts: Tensor, whole: Tensor) -> bool:
    slack = 1e-4 * float(parts.norm()) + 1e-6
    return torch.allclose(parts.sum(0), whole, rtol=1e-2, atol=slack, equal_nan=True)


@contextlib.contextmanager
def hook_per_example(objective: Objective) -> Iterator[Any]:
    """Yields Opacus's hooks. Inside the block, the objective's backward passes store the gradient of each example.

    Raises:
        GenfedError: the objective has no network, or one that mixes the examples of a batch or that Opacus does not
            support.
    """
    if objective.network is None:
        raise GenfedError("an objective of this method names no network, so it cannot be trained by DP-SGD")
    hooks_of = _opacus()
    check_layers(objective.network)
    for module in objective.network.modules():
        own: Callable[[Tensor, Tensor], dict[nn.Parameter, Tensor]] | None
        if own := getattr(type(module), "example_gradients", None):
            hooks_of.GRAD_SAMPLERS.setdefault(type(module), _sampler(own))
    inside = objective.network
    if any(True for _ in inside.parameters(recurse=False)):  # for these there is `per_example_parameter`
        inside = nn.ModuleList(inside.children())
    for p in parameters_of(objective):
        p.grad_sample = None  # type: ignore[attr-defined]
    try:
        hooks = hooks_of(inside, loss_reduction="sum")
    except NotImplementedError as error:
        raise GenfedError(f"Opacus cannot train it per example: {error}") from None
    try:
        yield hooks
    finally:
        hooks.cleanup()
        for p in parameters_of(objective):
            if hasattr(p, "grad_sample"):
                del p.grad_sample


def _sampler(own: Callable[..., Any]) -> Callable[..., Any]:
    return lambda module, given, gradient: own(module, given[0], gradient)


@contextlib.contextmanager
def hooks_disabled(hooks: Sequence[Any]) -> Iterator[None]:
    """Disables hooks: inside the block, backward passes store no per-example gradients."""
    for each in hooks:
        each.disable_hooks()
    try:
        yield
    finally:
        for each in hooks:
            each.enable_hooks()


def check_layers(network: nn.Module) -> None:
    """Refuses layers that make an example's output depend on other examples.

    Raises:
        GenfedError: the network has BatchNorm, or a layer that stores statistics of examples.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise GenfedError(f"{name or 'it'} is BatchNorm, in which an example changes the outputs of others")
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
            raise GenfedError(f"{name} stores statistics of examples")


def check_trained(objective: Objective, x: Tensor, y: Tensor) -> None:
    """Refuses an objective that DP-SGD does not support. Tries it on a few examples before training.

    Raises:
        GenfedError: the reason.
    """
    rng = torch.Generator().manual_seed(0)
    with seeded(rng), hook_per_example(objective):
        assert objective.network is not None
        before = {name: buffer.clone() for name, buffer in objective.network.named_buffers()}
        try:
            example_gradients(objective, x, y, rng, summed=True)
        except GenfedError:
            raise
        except Exception as error:  # a layer that Opacus does not support can raise any error
            raise GenfedError(f"Opacus cannot train it per example ({type(error).__name__}: {error})") from error
    for name, buffer in objective.network.named_buffers():
        if not torch.equal(before[name], buffer):
            raise GenfedError(f"{name} stores statistics of examples, which get no noise")


def per_example_parameter(parameter: nn.Parameter, n: int) -> Tensor:
    """Returns a parameter that belongs to no layer, expanded to one copy per example [n, *shape], so that
    `hook_per_example` sees the gradient of each. Outside of it, returns the parameter itself.
    """
    if not hasattr(parameter, "grad_sample") or not torch.is_grad_enabled():
        return parameter
    wide = parameter.expand(n, *parameter.shape)

    def keep(gradient: Tensor) -> None:
        parameter.grad_sample = gradient.detach()

    wide.register_hook(keep)  # type: ignore[no-untyped-call]
    return wide


def _opacus() -> Any:
    """Returns the class of Opacus's hooks, with a corrected function for nn.Conv2d."""
    require("opacus", extra="privacy", what="[privacy]")
    from opacus.grad_sample import GradSampleHooks  # takes seconds

    if (original := GradSampleHooks.GRAD_SAMPLERS[nn.Conv2d]) is not _sample_conv2d:
        _sample_conv2d.opacus = original  # type: ignore[attr-defined]
        GradSampleHooks.GRAD_SAMPLERS[nn.Conv2d] = _sample_conv2d
    return GradSampleHooks


def _sample_conv2d(layer: nn.Conv2d, given: list[Tensor], gradient: Tensor) -> Any:
    """Returns Opacus's gradients of nn.Conv2d from contiguous tensors. Opacus's own function is wrong for feature maps
    whose channels come last in memory, as after attention.
    """
    return _sample_conv2d.opacus(layer, [given[0].contiguous()], gradient.contiguous())  # type: ignore[attr-defined]
