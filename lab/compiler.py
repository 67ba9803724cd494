"""Compile ahead of time, so that compilation is seen, timed and never happens unnoticed in the loop."""

import time
from collections.abc import Callable
from typing import Any

import jax


class Compiler:
    """Call jitted functions through programs that are compiled once for each set of argument shapes.

    `seconds` is the time spent compiling so far; `programs` counts the programs compiled.
    """

    def __init__(self):
        self._programs: dict[Any, Any] = {}
        self.seconds = 0.0

    @property
    def programs(self) -> int:
        """Return the number of programs compiled so far."""
        return len(self._programs)

    def __call__(self, function: Callable, static: Any, *arguments: Any) -> Any:
        """Return function(static, *arguments), where function is jitted with its first argument static."""
        return self.compiled(function, static, *arguments)(*arguments)

    def compiled(self, function: Callable, static: Any, *arguments: Any) -> Callable:
        """Return the program for the arguments' shapes and dtypes, compiling it if it is not there."""
        leaves, structure = jax.tree.flatten(arguments)
        signature = (function, structure, tuple((x.shape, x.dtype) for x in leaves))
        if signature not in self._programs:
            start = time.perf_counter()
            self._programs[signature] = function.lower(static, *arguments).compile()
            self.seconds += time.perf_counter() - start
        return self._programs[signature]
