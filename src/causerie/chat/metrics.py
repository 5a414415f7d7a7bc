"""What the server counts, for Prometheus: vLLM's metric names where it has one, under our own prefix.

One ``Metrics`` belongs to one service and is written on its event loop only. The per-token method touches
plain integers; everything is put into Prometheus' shape when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from causerie.types import CancelCause, FinishReason

PREFIX = "causerie:"

_FIRST_TOKEN_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
)  # fmt: skip
_GAP_BUCKETS = (
    0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5,
)  # fmt: skip
_REQUEST_BUCKETS = (
    0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960,
)  # fmt: skip
_TOKEN_BUCKETS = tuple(base * 10**power for power in range(6) for base in (1, 2, 5))


class Metrics:
    """Counters, histograms and gauges of one service.

    For each request either ``rejected`` or ``submitted`` is called; a submitted one ends with one
    ``finished``, whatever its end was, and with ``cancelled`` or ``failed`` beside it where that says why.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._tokens = _TokenCollector()
        self._registry.register(self._tokens)
        self._submitted = self._counter("requests", "Requests that were taken in.")
        self._rejections = self._counter("admission_rejections", "Requests refused at the door.", "reason")
        self._ended = self._counter("request_success", "Requests that ended, by how.", "finished_reason")
        self._failures = self._counter("request_failures", "Requests that failed, by error code.", "code")
        self._cancellations = self._counter("cancellations", "Requests ended before their own end.", "cause")
        self._cache_misses = self._counter(
            "conversation_cache_misses", "Turns that did not find what was computed of their conversation.", "cause"
        )
        for cause in CancelCause:
            self._cancellations.labels(cause.value)
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of requests that ended.")
        self._queue_time = self._histogram("request_queue_time_seconds", "Time spent waiting.", _REQUEST_BUCKETS)
        self._first_token = self._histogram(
            "time_to_first_token_seconds",
            "Time from a request's arrival to its first token.",
            _FIRST_TOKEN_BUCKETS,
        )
        self._latency = self._histogram("e2e_request_latency_seconds", "Time of whole requests.", _REQUEST_BUCKETS)
        self._prompt_size = self._histogram("request_prompt_tokens", "Prompt tokens per request.", _TOKEN_BUCKETS)
        self._answer_size = self._histogram(
            "request_generation_tokens", "Generated tokens per request.", _TOKEN_BUCKETS
        )

    def watch(
        self, *, running: Callable[[], float], waiting: Callable[[], float], kv_usage: Callable[[], float]
    ) -> None:
        """Read the gauges from these whenever somebody asks; ``kv_usage`` is a share from 0 to 1."""
        for name, help_text, read in (
            ("num_requests_running", "Requests that the engine is working on.", running),
            ("num_requests_waiting", "Requests that wait for their turn.", waiting),
            ("kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1.", kv_usage),
        ):
            Gauge(PREFIX + name, help_text, registry=self._registry).set_function(read)

    def submitted(self) -> None:
        """A request was taken in."""
        self._submitted.inc()

    def rejected(self, code: str) -> None:
        """A request was refused before it was queued; ``code`` is the error's."""
        self._rejections.labels(code).inc()

    def queue_time(self, seconds: float) -> None:
        """A request's turn came after ``seconds``."""
        self._queue_time.observe(seconds)

    def first_token(self, seconds: float) -> None:
        """A request's first token came ``seconds`` after its arrival."""
        self._first_token.observe(seconds)

    def tokens(self, count: int, gap_seconds: float | None = None) -> None:
        """``count`` tokens came together, ``gap_seconds`` after their choice's last; None for the first ones."""
        self._tokens.add(count, None if gap_seconds is None else gap_seconds / count)

    def finished(self, reason: FinishReason, prompt_tokens: int, completion_tokens: int, seconds: float) -> None:
        """A request that was submitted ended, after ``seconds``; ``completion_tokens`` of all its choices."""
        self._ended.labels(reason.value).inc()
        self._prompt_tokens.inc(prompt_tokens)
        self._prompt_size.observe(prompt_tokens)
        self._answer_size.observe(completion_tokens)
        self._latency.observe(seconds)

    def cache_missed(self, cause: str) -> None:
        """A turn had to be read anew, in part or whole; ``cause`` is a ``text.turns.Miss``."""
        self._cache_misses.labels(cause).inc()

    def cancelled(self, cause: CancelCause) -> None:
        """A request was ended before its own end."""
        self._cancellations.labels(cause.value).inc()

    def failed(self, code: str) -> None:
        """A request that was submitted failed; ``code`` is the error's."""
        self._failures.labels(code).inc()

    def render(self) -> bytes:
        """The text exposition (Prometheus' format 0.0.4)."""
        return generate_latest(self._registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, help_text, labels, registry=self._registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, help_text, registry=self._registry, buckets=buckets)


class _TokenCollector(Collector):
    """Tokens and the gaps between them, counted without locks or objects."""

    def __init__(self) -> None:
        self._total = 0
        self._counts = [0] * (len(_GAP_BUCKETS) + 1)
        self._seconds = 0.0

    def add(self, count: int, gap_seconds: float | None) -> None:
        self._total += count
        if gap_seconds is not None:
            self._counts[bisect_left(_GAP_BUCKETS, gap_seconds)] += count
            self._seconds += gap_seconds * count

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(PREFIX + "generation_tokens", "Generated tokens.", value=self._total)
        yield HistogramMetricFamily(
            PREFIX + "inter_token_latency_seconds",
            "Time between a choice's tokens.",
            buckets=list(zip(_bounds(_GAP_BUCKETS), accumulate(self._counts), strict=True)),
            sum_value=self._seconds,
        )


def _bounds(buckets: Iterable[float]) -> list[str]:
    return [*(str(float(bound)) for bound in buckets), "+Inf"]
