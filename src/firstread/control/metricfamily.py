# SPDX-License-Identifier: Apache-2.0
"""Metrics as data: what a family is called, counts and means, and where its numbers come from.

Owns the way from such tables to Prometheus' text format. Knows no metric. docs/metrics.md lists all
families; a test compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, Generic, Protocol, TypeVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from firstread.fetch.durations import Distribution

T = TypeVar("T")
Value = float | Distribution | None
Samples = Iterable[tuple[Sequence[str], Value]]
"""Values of labels, and the number; None: it is not known, and left out."""

COUNTER: Final = "counter"
GAUGE: Final = "gauge"
HISTOGRAM: Final = "histogram"
PREFIX: Final = "firstread_"


@dataclass(frozen=True)
class Family(Generic[T]):
    """A family of metrics.

    Args:
        name: without `PREFIX`, and without the ``_total`` of a counter.
        kind: `COUNTER`, `GAUGE` or `HISTOGRAM`.
        unit: of its numbers, for people.
        meaning: a sentence without a full stop.
        samples: takes the facts that the numbers come from.
        labels: names.
    """

    name: str
    kind: str
    unit: str
    meaning: str
    samples: Callable[[T], Samples]
    labels: tuple[str, ...] = ()

    @property
    def exported_name(self) -> str:
        """Return the name in queries; of a histogram without ``_bucket``, ``_sum``, ``_count``."""
        return PREFIX + self.name + ("_total" if self.kind == COUNTER else "")

    def metric(self, facts: T) -> Metric:
        """Return the family with its numbers."""
        made = _MAKERS[self.kind](PREFIX + self.name, self.meaning, labels=self.labels)
        for labels, value in self.samples(facts):
            if isinstance(value, Distribution):
                made.add_metric(labels, _buckets(value), value.seconds)
            elif value is not None:
                made.add_metric(labels, float(value))
        metric: Metric = made
        return metric


class _Maker(Protocol):
    """What the classes of families have in common, and `Metric` has not."""

    def __call__(self, name: str, documentation: str, *, labels: Sequence[str]) -> Any: ...


_MAKERS: Final[Mapping[str, _Maker]] = {
    COUNTER: CounterMetricFamily,
    GAUGE: GaugeMetricFamily,
    HISTOGRAM: HistogramMetricFamily,
}


def _buckets(value: Distribution) -> list[tuple[str, int]]:
    bounds = [*map(str, value.bounds), "+Inf"]
    return list(zip(bounds, accumulate(value.counts), strict=True))


class Families(Collector, Generic[T]):
    """Families of one process.

    Args:
        families: of the process.
        facts: gives what their numbers come from.
    """

    def __init__(self, families: Sequence[Family[T]], facts: Callable[[], T]) -> None:
        self._families, self._facts = families, facts
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def collect(self) -> Iterator[Metric]:
        facts = self._facts()
        for family in self._families:
            yield family.metric(facts)

    def text(self) -> bytes:
        """Return the metrics in the text format."""
        return generate_latest(self._registry)


def one(value: Value) -> Samples:
    """Return the samples of a family without labels."""
    return [((), value)]


def by(counts: Mapping[str, Value], *before: str) -> Samples:
    """Return the samples of a family whose last label is the key.

    Args:
        counts: by that key.
        before: values of the other labels.
    """
    return [((*before, key), value) for key, value in counts.items()]
