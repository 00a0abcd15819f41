"""Counts of the arithmetic of a round."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode  # torch's own FlopCounterMode is built on it
from torch.utils.flop_counter import flop_registry


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside the block, `count` grows by the floating-point operations of matrix products, convolutions and attention,
    forwards and backwards. A product of [m, k] and [k, n] is 2·m·k·n. Nothing else (norms, optimizers) is counted.

    torch's own FlopCounterMode counts the same. It also finds the module of each operation, which costs time.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0
        self._whole: set[Any] = set()  # operations that are not made of others

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(getattr(func, "overloadpacket", None))
        if formula is None and func not in self._whole and hasattr(func, "decompose"):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:  # a linear layer in inference mode, say, is a product and a sum
                return result
            self._whole.add(func)
        result = func(*args, **kwargs)
        if formula is not None:
            self.count += formula(*args, **kwargs, out_val=result)
        return result
