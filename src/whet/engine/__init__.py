"""A prompt's whole way, alone or many at once: the one floor where spaces and models meet."""

from whet.adapt.decode import Sampling
from whet.engine.engine import Engine, Handle
from whet.engine.lockstep import give_way
from whet.engine.query import Answer, Query, Step, Trace, Training
from whet.engine.way import Event

__all__ = [
    "Answer",
    "Engine",
    "Event",
    "Handle",
    "Query",
    "Sampling",
    "Step",
    "Trace",
    "Training",
    "give_way",
]
