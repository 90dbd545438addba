"""What a server counts, in Prometheus's format; one registry a server, so that two never mix."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self.requests = Counter(
            "whet_requests", "Requests answered", ["route", "status"], registry=own
        )
        self.seconds = Histogram(
            "whet_request_seconds", "Time of a request", ["route"], buckets=SECONDS, registry=own
        )
        self.open = Gauge("whet_requests_open", "Requests being answered", registry=own)
        self.refused = Counter("whet_refused", "Requests refused", ["reason"], registry=own)
        self.steps = Counter("whet_steps", "Gradient steps taken", registry=own)
        self.stopped = Counter(
            "whet_stopped", "Requests by why their steps ended", ["reason"], registry=own
        )
        self.stages = Histogram(
            "whet_stage_seconds", "Time of a stage", ["stage"], buckets=SECONDS, registry=own
        )
        self.cache = Counter("whet_adapter_cache", "Kept adapters asked for", ["hit"], registry=own)
        self.versions = Counter(
            "whet_space_versions", "New versions of a data space", ["space"], registry=own
        )

    def watch(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        Gauge(name, meaning, registry=self.registry).set_function(value)

    def answered(self, route: str, status: int, seconds: float) -> None:
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
