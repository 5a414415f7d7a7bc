"""Sampling parameters as every protocol spells them: one table of names and ranges."""

from __future__ import annotations

from dataclasses import dataclass

from causerie.errors import InvalidRequest, ModelNotFound, UnsupportedParameter
from causerie.types import SamplingParams
from causerie.wire.fields import Fields, kind, shown

MAX_TOKENS = 2**31 - 1
"""Highest output limit that is understood at all; the service lowers it to what the context window leaves."""
MAX_CHOICES = 128
MAX_STOPS = 16
MAX_STOP_LENGTH = 1024
"""In characters."""
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGPROBS = 20
MAX_TOP_K = 1_000_000
MAX_MODEL_LENGTH = 1024
MAX_SEED = 2**63 - 1
GREEDY_BELOW = 1e-5
"""Engines compute in float32, where a logit over less than this temperature is no number; vLLM draws the same line."""
LEAST_TOP_P = 1e-6
"""As little as keeps the most likely token alone, and is still no zero in float32."""
LEAST_REPETITION_PENALTY = 0.01

SAMPLING_NAMES = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "min_tokens",
    "ignore_eos",
    "stop_token_ids",
    "stop",
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What requests are measured against: this server's model and settings."""

    model: str
    default_max_tokens: int
    """Output limit of a request that names none."""
    max_choices: int
    """Largest ``n``: what can run at once."""
    vocab_size: int
    context_window: int
    max_logprobs: int = MAX_LOGPROBS
    """The most alternatives per token that the engine can report."""


def check_model(fields: Fields, limits: Limits) -> None:
    """Take ``model``: absent, "default" or the served name. Raises ModelNotFound."""
    model = fields.text("model", MAX_MODEL_LENGTH)
    if model not in (None, "", "default", limits.model):
        raise ModelNotFound(f"The model {shown(model)} is not served here. Served: '{limits.model}'.", param="model")


def take_sampling(
    fields: Fields,
    limits: Limits,
    *,
    stop_token_ids: frozenset[int] = frozenset(),
    logprobs: int | None = None,
    limit_names: tuple[str, ...] = ("max_tokens", "max_completion_tokens"),
    json_schema: str | None = None,
) -> SamplingParams:
    """Every scalar sampling parameter out of ``fields``. Raises InvalidRequest that names the first bad one.

    ``limit_names`` is what the protocol calls the output limit.
    """
    temperature = fields.number("temperature", 0, 2, 1.0)
    top_k = fields.integer("top_k", -1, MAX_TOP_K)
    max_tokens = _take_max_tokens(fields, limit_names)
    return SamplingParams(
        max_tokens=limits.default_max_tokens if max_tokens is None else max_tokens,
        temperature=temperature if temperature >= GREEDY_BELOW else 0.0,
        top_p=max(LEAST_TOP_P, fields.number("top_p", 0, 1, 1.0, above=True)),
        top_k=max(0, top_k or 0),
        min_p=fields.number("min_p", 0, 1, 0.0),
        repetition_penalty=fields.number("repetition_penalty", LEAST_REPETITION_PENALTY, 10, 1.0),
        presence_penalty=fields.number("presence_penalty", -2, 2, 0.0),
        frequency_penalty=fields.number("frequency_penalty", -2, 2, 0.0),
        seed=fields.integer("seed", -MAX_SEED - 1, MAX_SEED),
        min_tokens=fields.integer("min_tokens", 0, MAX_TOKENS) or 0,
        ignore_eos=fields.boolean("ignore_eos"),
        stop_token_ids=stop_token_ids,
        logprobs=logprobs,
        json_schema=json_schema,
    )


def _take_max_tokens(fields: Fields, names: tuple[str, ...]) -> int | None:
    given = {name: value for name in names if (value := fields.integer(name, 1, MAX_TOKENS)) is not None}
    if len(set(given.values())) > 1:
        both = " and ".join(f"'{name}' ({value})" for name, value in given.items())
        raise InvalidRequest(f"{both} are the same limit; give one.", param=names[-1])
    return next(iter(given.values()), None)


def take_n(fields: Fields, limits: Limits) -> int:
    """The number of choices, 1 if it is not named."""
    n = fields.integer("n", 1, min(MAX_CHOICES, limits.max_choices))
    return 1 if n is None else n


def take_logprobs(fields: Fields, name: str, limits: Limits) -> int | None:
    """How many alternatives per token are wanted, under the ``name`` that the protocol has for it.

    Raises InvalidRequest, and UnsupportedParameter for more than the engine reports.
    """
    wanted = fields.integer(name, 0, MAX_LOGPROBS)
    if wanted is not None and wanted > limits.max_logprobs:
        raise UnsupportedParameter(
            f"'{name}' is {wanted}, but this model's engine reports at most {limits.max_logprobs} alternatives per "
            "token; the sampled token's own log-probability needs none.",
            param=fields.param(name),
        )
    return wanted


def take_stop(fields: Fields) -> tuple[str, ...]:
    """``stop``: one string or several."""
    value = fields.take("stop")
    if value is None:
        return ()
    return check_stops([value] if isinstance(value, str) else value)


def check_stops(values: object) -> tuple[str, ...]:
    """Stop strings within their limits. Raises InvalidRequest."""
    if not isinstance(values, list):
        raise InvalidRequest(f"'stop' must be a string or an array of strings, not {kind(values)}.", param="stop")
    if len(values) > MAX_STOPS:
        raise InvalidRequest(f"'stop' has {len(values)} strings; at most {MAX_STOPS} are allowed.", param="stop")
    for index, value in enumerate(values):
        if not isinstance(value, str) or not 0 < len(value) <= MAX_STOP_LENGTH:
            param = f"stop[{index}]" if len(values) > 1 else "stop"
            raise InvalidRequest(f"'{param}' must be a string of 1 to {MAX_STOP_LENGTH} characters.", param=param)
    return tuple(dict.fromkeys(values))


def check_token_ids(values: object, name: str, limits: Limits, max_count: int) -> tuple[int, ...]:
    """An array of ids of this model's vocabulary. Raises InvalidRequest."""
    if not isinstance(values, list) or len(values) > max_count:
        raise InvalidRequest(f"'{name}' must be an array of at most {max_count} token ids.", param=name)
    size = limits.vocab_size
    for value in values:
        if type(value) is not int or not 0 <= value < size:
            raise InvalidRequest(f"'{name}' must hold token ids from 0 to {size - 1}.", param=name)
    return tuple(values)
