"""The type checker of test runs: beartype everywhere, shapes where a signature has one.

jaxtyping's own way wraps every function twice, at about 30 µs per call: a third of the suite's
time. Here beartype checks each call once (1 µs), and jaxtyping compares the shapes of those calls
whose annotations contain one.
"""

import inspect
import re
import typing

import jaxtyping
from beartype import BeartypeConf, beartype

# an int where a float is expected; an error that code which reads damaged records may catch
_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeError))
_compare_shapes = jaxtyping.jaxtyped
_SHAPE = re.compile(r"jaxtyping|\b(Bool|Float|Int|Shaped|UInt64)\[")


def checked(function):
    """`function` with checks; its annotations stay as they are written."""
    annotations = dict(getattr(function, "__annotations__", {}))
    with_checks = _beartype(function)
    for changed in (function, with_checks):
        if hasattr(changed, "__annotations__"):
            changed.__annotations__ = annotations
    return with_checks


def _check(function):
    annotations = getattr(function, "__annotations__", {}).values()
    if not _resolvable(annotations, function):  # jaxtyping ignores what it cannot resolve
        return _compare_shapes(function, typechecker=checked)
    if not any(_SHAPE.search(repr(annotation)) for annotation in annotations):
        return checked(function)
    if inspect.isgeneratorfunction(function):  # beartype would check it within its caller's shapes
        return _compare_shapes(function, typechecker=checked)
    return _compare_shapes(checked(function), typechecker=None)


def _resolvable(annotations, function):
    """Whether no annotation names what is imported later, or only for type checkers."""
    if any(isinstance(a, str) or "ForwardRef" in repr(a) for a in annotations):
        try:
            typing.get_type_hints(function)
        except Exception:
            return False
    return True


def _jaxtyped(*, typechecker):
    """What jaxtyping's import hook puts around every function and class."""

    def decorate(item):
        if not inspect.isclass(item):
            return _check(item)
        if hasattr(item, "__dataclass_fields__") and "__init__" in vars(item):
            item.__init__ = _check(item.__init__)
        return item

    return decorate


def install():
    """Check the types in whet and studies from now on; call it before they are imported."""
    jaxtyping.jaxtyped = _jaxtyped
    jaxtyping.install_import_hook(["whet", "studies"], "support.checker.checked")
