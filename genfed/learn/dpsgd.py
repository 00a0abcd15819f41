"""DP-SGD: Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang, Deep Learning with Differential Privacy, CCS 2016,
arXiv 1607.00133, Algorithm 1. Opacus's hooks give every example's gradient; here it is cut, added up and noised.
"""

import contextlib
import secrets
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genfed.core.errors import GenfedError
from genfed.core.method import Data
from genfed.core.privacy import Private, Use
from genfed.core.rng import derive, seeded
from genfed.learn.fit import Player, scaled, step

AT_ONCE = 2**26
"""Numbers in the gradients of examples that are held at once (256 MB); a batch with more is taken in parts."""


def unforeseeable() -> np.random.Generator:
    """Draws that nobody else can repeat: from 256 bits of the operating system's randomness. (A torch.Generator on a
    CPU would take 32 bits of a seed, which can be tried out.)
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(secrets.randbits(256))))


def repeatable(seed: int, *path: str | int) -> np.random.Generator:
    """Draws that a test can repeat, and whoever knows the run's seed: they protect nothing."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(derive(seed, "noise", *path))))


def fit_privately(players: Sequence[Player], data: Data, *, epochs: int, batch_size: int, privacy: Private) -> None:
    """`learn.fit.fit` by DP-SGD: batches are Poisson samples, and the mean gradient is one over the expected batch.

    Raises:
        GenfedError: a network that cannot be trained per example, or a training that was not declared.
    """
    use, device = Use(epochs, batch_size), data.y.device
    privacy.begin(use)
    rate = use.rate(len(data))
    expected = rate * len(data)
    # The losses' own draws are not foreseen either: then it does not matter to which example of a batch they go.
    rng = torch.Generator().manual_seed(int(privacy.draws.integers(2**62)))
    with seeded(rng), ExitStack() as stack:  # dropout
        hooks = {id(p): stack.enter_context(per_example(p)) for p in players if p.sees_data}
        for _ in range(use.steps(len(data))):
            chosen = torch.from_numpy(np.flatnonzero(privacy.draws.random(len(data)) < rate)).to(device)
            for player in players:
                if player.sees_data:
                    _private_step(player, hooks[id(player)], data, chosen, expected, rng, privacy)
                else:  # the size of the batch, too, tells of examples
                    size = max(1, round(expected))
                    blank = torch.zeros(size, *data.x.shape[1:], device=device)
                    with _off(list(hooks.values())):
                        step(player, blank, torch.zeros(size, dtype=torch.int64, device=device), rng)


def _private_step(
    player: Player, hooks: Any, data: Data, rows: Tensor, expected: float, rng: torch.Generator, privacy: Private
) -> None:
    parameters = parameters_of(player)
    total = [torch.zeros_like(p) for p in parameters]
    for part in torch.split(rows, max(1, AT_ONCE // sum(p.numel() for p in parameters))) if len(rows) else ():
        gradients = example_gradients(player, scaled(data.x[part]), data.y[part], rng)
        for place, cut in enumerate(clipped(gradients, privacy.clip)):
            total[place] += cut
    scale = privacy.noise_multiplier * privacy.clip
    for p, gradient in zip(parameters, total, strict=True):
        p.grad = (gradient + scale * _noise(p, privacy.draws) if scale else gradient) / expected
    if player.penalty is not None:
        with _off([hooks]):
            extra = torch.autograd.grad(player.penalty(), parameters, allow_unused=True)
        for p, more in zip(parameters, extra, strict=True):
            if more is not None:
                assert p.grad is not None
                p.grad += more
    player.optimiser.step()


def _noise(like: Tensor, draws: np.random.Generator) -> Tensor:
    return torch.from_numpy(draws.standard_normal(tuple(like.shape), dtype=np.float32)).to(like.device)


def clipped(gradients: Sequence[Tensor], clip: float) -> list[Tensor]:
    """The sum over examples of their gradients, each cut to the norm `clip` over all parameters: of [n, *shape] per
    parameter, [*shape] each. One that is not finite counts as 0: what fails because of an example tells of it.
    """
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
    if not bool((finite := torch.isfinite(norms)).all()):
        gradients, norms = [g[finite] for g in gradients], norms[finite]
    factors = (clip / norms.clamp_min(1e-12)).clamp_max(1)
    return [torch.tensordot(factors, g, dims=1) for g in gradients]


def parameters_of(player: Player) -> list[nn.Parameter]:
    """Those that the player's optimiser changes."""
    return [p for group in player.optimiser.param_groups for p in group["params"]]


def example_gradients(
    player: Player, x: Tensor, y: Tensor, rng: torch.Generator, *, summed: bool = False
) -> list[Tensor]:
    """The gradient of every example's loss, [n, *shape] per parameter of the player's; inside `per_example`. `summed`:
    they must come to the batch's, which is tried before training and not in it, where to fail would tell of examples.

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
def per_example(player: Player) -> Iterator[Any]:
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
def _off(hooks: Sequence[Any]) -> Iterator[None]:
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


def check_trained(player: Player, x: Tensor, y: Tensor) -> None:
    """Refuses, before training, a player that could not be trained by DP-SGD, by trying it on two examples.

    Raises:
        GenfedError: says why.
    """
    assert player.network is not None
    rng = torch.Generator().manual_seed(0)
    before = {name: buffer.clone() for name, buffer in player.network.named_buffers()}
    with seeded(rng), per_example(player):
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


def each(parameter: nn.Parameter, n: int) -> Tensor:
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
    try:
        from opacus.grad_sample import GradSampleHooks  # takes seconds
    except ImportError:
        raise GenfedError("""[privacy] needs the extra "privacy": pip install 'genfed[privacy]'""") from None
    if (of_maps := GradSampleHooks.GRAD_SAMPLERS[nn.Conv2d]) is not _in_one_piece:
        _in_one_piece.opacus = of_maps  # type: ignore[attr-defined]
        GradSampleHooks.GRAD_SAMPLERS[nn.Conv2d] = _in_one_piece
    return GradSampleHooks


def _in_one_piece(layer: nn.Conv2d, given: list[Tensor], gradient: Tensor) -> Any:
    """Opacus's for nn.Conv2d, which is wrong for maps whose channels come last in memory, as after attention."""
    return _in_one_piece.opacus(layer, [given[0].contiguous()], gradient.contiguous())  # type: ignore[attr-defined]
