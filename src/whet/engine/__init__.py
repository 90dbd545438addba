"""A prompt's whole way, alone or many at once: the one floor where spaces and models meet."""

from whet.adapt.config import TrainingConfig
from whet.adapt.sampling import SamplingParams
from whet.adapt.session import AdaptationTrace, TrainStep
from whet.engine.engine import Engine, RequestHandle
from whet.engine.request import Event
from whet.engine.scheduler import set_niceness
from whet.engine.types import Output, Request

__all__ = [
    "AdaptationTrace",
    "Engine",
    "Event",
    "Output",
    "Request",
    "RequestHandle",
    "SamplingParams",
    "TrainStep",
    "TrainingConfig",
    "set_niceness",
]
