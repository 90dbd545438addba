"""Many prompts at once, each with its own adapted weights: `Engine`, `Request`, `Output`."""

from whet.errors import require

require("torch", "adapt")

from whet.adapt.config import TrainingConfig
from whet.adapt.decoding.sampling import SamplingParams
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
