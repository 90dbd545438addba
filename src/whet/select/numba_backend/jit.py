"""What the compiled form asks of the machine: the one module that imports numba and LLVM.

Machine code on disk is renewed when the file of its function changes, not when a function it calls
does: `BUILT_ON` of a module changes with the modules that it calls, and a test says when to.
"""

from typing import Any, no_type_check

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic


def compiled(function: Any, **options: Any) -> Any:
    """`function` as machine code without the GIL, kept on disk where some folder can be written."""
    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache: compile each time
        return njit(**options)(function)


def summing(function: Any) -> Any:
    """`compiled`, with sums in the order that fills the registers, fixed when compiled.

    Only for sums along a row. A loop over rows treats its last few by other instructions, which
    must give the same bits.
    """
    return compiled(function, fastmath={"reassoc", "contract", "nsz"})


@no_type_check
@intrinsic
def cast(context, number, like):
    """A stored number in the type of `like`; float16 comes as bits, as numba has no such type."""

    def generate(context, builder, signature, arguments):
        bits, (stored, wanted) = arguments[0], signature.args
        if stored == types.uint16:
            bits = builder.bitcast(bits, ir.HalfType())
        if stored == wanted:
            return bits
        kind = context.get_value_type(wanted)
        shorter = stored == types.float64
        return builder.fptrunc(bits, kind) if shorter else builder.fpext(bits, kind)

    return like(number, like), generate


@no_type_check
@intrinsic
def fetch(context, rows, j, byte):
    """Ask for the line of memory at `byte` of row j, which may lie beyond the end."""

    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.bitcast(array.data, ir.IntType(8).as_pointer())
        stride = cgutils.unpack_tuple(builder, array.strides)[0]
        place = builder.add(builder.mul(stride, arguments[1]), arguments[2])
        number = ir.IntType(32)
        prefetch = builder.module.declare_intrinsic(
            "llvm.prefetch",
            [pointer.type],
            ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number]),
        )
        reading, keep, of_data = number(0), number(3), number(1)
        builder.call(prefetch, [builder.gep(pointer, [place]), reading, keep, of_data])
        return context.get_dummy_value()

    return types.void(rows, types.intp, types.intp), generate


@no_type_check
@intrinsic
def full_registers(context):
    """Compile the calling function apart, for registers as wide as the processor's.

    LLVM stops at 256 bits by itself, which halves the speed of a product that lies in cache.
    """

    def generate(context, builder, signature, arguments):
        marks = builder.function.attributes
        set.add(marks, "noinline")
        set.add(marks, '"prefer-vector-width"="512"')  # unknown to llvmlite, known to LLVM
        return context.get_dummy_value()

    return types.void(), generate
