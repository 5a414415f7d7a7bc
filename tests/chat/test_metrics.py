"""What the server counts, as Prometheus reads it."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from causerie.chat.metrics import Metrics
from causerie.types import CancelCause, FinishReason


def samples(metrics: Metrics) -> dict[str, float]:
    """Every sample by its name and labels, read with Prometheus' own parser."""
    return {
        sample.name.removeprefix("causerie:") + "".join(f"|{value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def test_tokens_are_counted_and_their_gaps_put_in_buckets() -> None:
    metrics = Metrics()
    metrics.tokens(1)
    metrics.tokens(1, 0.004)
    metrics.tokens(2, 0.3)
    metrics.tokens(1, 60.0)
    seen = samples(metrics)
    assert seen["generation_tokens_total"] == 5
    assert seen["inter_token_latency_seconds_count"] == 4
    assert seen["inter_token_latency_seconds_sum"] == pytest.approx(60.304)
    buckets = {
        bound: seen[f"inter_token_latency_seconds_bucket|{bound}"] for bound in ("0.002", "0.005", "0.3", "+Inf")
    }
    assert buckets == {"0.002": 0, "0.005": 1, "0.3": 3, "+Inf": 4}


def test_requests_are_counted_by_how_they_ended() -> None:
    metrics = Metrics()
    for _ in range(3):
        metrics.submitted()
    metrics.finished(FinishReason.STOP, 10, 5, 1.0)
    metrics.finished(FinishReason.CANCELLED, 10, 0, 0.1)
    metrics.cancelled(CancelCause.CLIENT)
    metrics.failed("engine_error")
    metrics.rejected("overloaded")
    seen = samples(metrics)
    assert (seen["requests_total"], seen["prompt_tokens_total"]) == (3, 20)
    assert (seen["request_success_total|stop"], seen["request_success_total|cancelled"]) == (1, 1)
    assert (seen["cancellations_total|client"], seen["cancellations_total|shutdown"]) == (1, 0)
    assert (seen["request_failures_total|engine_error"], seen["admission_rejections_total|overloaded"]) == (1, 1)
    assert seen["e2e_request_latency_seconds_sum"] == 1.1


def test_gauges_are_read_when_somebody_asks() -> None:
    metrics, running = Metrics(), 0
    metrics.watch(running=lambda: running, waiting=lambda: 2, kv_usage=lambda: 0.5)
    running = 7
    seen = samples(metrics)
    assert (seen["num_requests_running"], seen["num_requests_waiting"], seen["kv_cache_usage_perc"]) == (7, 2, 0.5)


def test_two_services_in_one_process_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.submitted()
    assert (samples(first)["requests_total"], samples(second)["requests_total"]) == (1, 0)
