"""Settings of all tests: CPU, no network, strict shapes, compiled programs kept between runs."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile more than they compute.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/ellm/xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

import pytest  # noqa: E402

from goals import endpoint  # noqa: E402

# Files that train or compile for long, the longest first. They begin first, so that at the end no
# process works on one of them alone; CI runs them on one Python only.
LONG = (
    *("end_to_end", "ellm_dqn", "ellm_ppo", "crafter", "golden", "mentor", "guidance", "tasks"),
    *("transfer", "repeat", "baselines", "rnd", "apt", "background_runs", "speed", "kill"),
    *("last_steps", "figures", "goal_quality", "pretrained", "housekeep", "teachers"),
    *("open_ended", "service", "store_drill"),
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of long files, and put them first."""
    rank = {f"test_{name}": number for number, name in enumerate(LONG)}
    for item in items:
        if item.path.stem in rank:
            item.add_marker("long")
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONG)))


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_of_other_modules_are_dropped():
    """Compiled programs hold thousands of memory maps, of which a process may have only so many."""
    yield
    jax.clear_caches()


@pytest.fixture
def loopback(monkeypatch):
    """Ask servers on loopback: no waits worth mentioning, no key, no proxy."""
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.002)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for variable in endpoint.KEY_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
