"""Counting the arithmetic of a step."""

import functools
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside the block, `count` grows by the floating-point operations of matrix products, convolutions and attention,
    forwards and backwards; a product of [m, k] and [k, n] is 2·m·k·n. All else (norms, optimisers) is not counted.

    torch's own FlopCounterMode finds which module an operation belongs to; this one leaves that out, and costs less.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _made_of_others(func):  # linear, say, in inference mode
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        if formula := flop_registry.get(getattr(func, "overloadpacket", None)):
            self.count += formula(*args, **kwargs, out_val=result)
        return result


@functools.cache
def _made_of_others(func: Any) -> bool:
    registered = getattr(func, "overloadpacket", None) in flop_registry
    return isinstance(func, torch._ops.OpOverload) and not registered and func._can_decompose()
