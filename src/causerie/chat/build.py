"""From settings to a service: resolve the model, choose the engine, load the text side."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from causerie.chat.archive import Archive
from causerie.chat.service import ChatService
from causerie.chat.store import Retention
from causerie.chat.stores import make_store
from causerie.config import Settings
from causerie.engines.base import Engine, EngineConfig
from causerie.engines.scripted import ScriptedEngine
from causerie.errors import ConfigError
from causerie.models.folder import ModelFolder
from causerie.models.precision import PRECISIONS
from causerie.models.progress import Progress
from causerie.models.resolve import resolve
from causerie.text.model import TextModel

if TYPE_CHECKING:
    from causerie.engines.openvino import OpenVINOEngine

_BURST_TOKENS = 2048
"""New prompt tokens that one step of OpenVINO reads: room for a burst of 64 short prompts. One that is let in more
slowly decodes in small batches for longer: it reached 0.80 of the raw engine's tokens/s with 256, 0.92 with 1,024."""

_SCRIPTED_PACE = 0.03
"""Seconds between the scripted engine's steps, so that an interface has something to show."""


def build_service(settings: Settings, *, progress: Progress | None = None) -> ChatService:
    """A service for what ``settings`` name. Fetches and converts the model where that was not done before.

    Blocking, for minutes the first time. Raises ModelUnavailable, MissingExtra or ConfigError.
    """
    folder = find_model(settings, progress=progress)
    text, name = build_text(folder)
    engine, why = build_engine(settings, folder, text)
    return ChatService(engine, text, name, settings, engine_reason=why)


def build_archive(service: ChatService, settings: Settings) -> Archive:
    """The archive of ``service``, on the settings' store, which ``start`` opens. Raises ConfigError."""
    max_bytes = int(settings.store_max_gib * 2**30)
    store = make_store(settings.store, max_bytes, port=settings.port)
    return Archive(service, store, Retention(settings.store_max_age, max_bytes))


def find_model(settings: Settings, *, progress: Progress | None = None) -> ModelFolder | None:
    """The folder of the settings' model, fetched and converted if need be; None for the scripted engine."""
    if settings.engine == "scripted":
        return None
    form = PRECISIONS[settings.precision].form
    return resolve(settings.model, form=form, engine=settings.engine, progress=progress)


def build_engine(settings: Settings, folder: ModelFolder | None, text: TextModel) -> tuple[Engine, str]:
    """An engine that was not started yet, and why it is this one."""
    if folder is None:
        engine = ScriptedEngine(step_seconds=_SCRIPTED_PACE, ids_per_step=4, max_sequences=settings.max_batch_size)
        return engine, "asked for"
    name, why = choose_engine(settings, folder)
    make = openvino_engine if name == "openvino" else transformers_engine
    return make(folder, settings, text), why


def build_text(folder: ModelFolder | None) -> tuple[TextModel, str]:
    """The model's side of text, and its name. The scripted engine has the bytes for a vocabulary."""
    if folder is None:
        return TextModel.bytes(), "scripted"
    text = TextModel.load(
        folder.path,
        eos_token_ids=folder.eos_token_ids,
        bos_token_id=folder.bos_token_id,
        fingerprint=folder.fingerprint,
    )
    return text, folder.name


def scripted_service(settings: Settings, engine: ScriptedEngine | None = None) -> ChatService:
    """A service without a model: the scripted engine, and the byte vocabulary that goes with it."""
    text, name = build_text(None)
    return ChatService(engine or ScriptedEngine(), text, name, settings, engine_reason="asked for")


def choose_engine(settings: Settings, folder: ModelFolder) -> tuple[str, str]:
    """The engine's name, and why it is that one. Raises ConfigError where the wanted one cannot load the folder."""
    fits = "openvino" if folder.format == "openvino" else "transformers"
    if settings.engine == "auto":
        form = "an OpenVINO model" if fits == "openvino" else "a safetensors model"
        return fits, f"{folder.name} is {form}"
    if settings.engine != fits:
        raise ConfigError(
            f"The {settings.engine} engine cannot load {folder.name}: its weights are {folder.format}. "
            f"Use --engine {fits} or --engine auto.",
            param="engine",
        )
    return settings.engine, "asked for"


def openvino_engine(folder: ModelFolder, settings: Settings, text: TextModel | None = None) -> OpenVINOEngine:
    from causerie.engines.openvino import OpenVINOEngine

    return OpenVINOEngine(
        engine_config(folder, settings, text),
        prompt_tokens_per_step=max(settings.prefill_piece, _BURST_TOKENS),
        properties=PRECISIONS[settings.precision].properties,
    )


def transformers_engine(folder: ModelFolder, settings: Settings, text: TextModel | None = None) -> Engine:
    from causerie.engines.transformers import TransformersEngine

    return TransformersEngine(engine_config(folder, settings, text), step_tokens=settings.prefill_piece)


def engine_config(folder: ModelFolder, settings: Settings, text: TextModel | None = None) -> EngineConfig:
    """``text`` is the same model's, for holding answers to a schema."""
    return EngineConfig(
        folder=folder.path,
        context_window=folder.context_window,
        eos_token_ids=folder.eos_token_ids,
        kv_bytes_per_token=folder.kv_bytes_per_token,
        kv_cache_bytes=int(settings.kv_cache_gib * 2**30),
        max_sequences=settings.max_batch_size,
        vocabulary=partial(text.vocabulary, folder.vocab_size) if text is not None and text.has_vocabulary else None,
    )
