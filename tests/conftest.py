"""Settings and shared fixtures: CPU, no network, strict shapes, compiled things kept between runs."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/ellm/xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
