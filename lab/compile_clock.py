"""See and time compilation, so that it never happens unnoticed in the loop."""

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"
PARTS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    COMPILED,
)


class CompileClock:
    """Count what JAX traces and compiles in this process from now on.

    `seconds` spent, and `programs` compiled.
    """

    def __init__(self):
        self.seconds = 0.0
        self.programs = 0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, duration: float, **_) -> None:
        """Add one event of JAX's monitoring."""
        if event in PARTS:
            self.seconds += duration
            self.programs += event == COMPILED
