"""Compilation to machine code: the one module that imports numba and LLVM.

Numba renews a function's machine code on disk when the function's own file changes, but not when a
function that it calls does. `BUILT_ON` in each module is a hash of the modules that it calls; a
test fails if it is not current.
"""

from typing import Any, no_type_check

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic


def compiled(function: Any, **options: Any) -> Any:
    """Compile `function` to machine code that releases the GIL, cached on disk where possible."""
    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no writable cache folder: compile in every process
        return njit(**options)(function)


def compiled_sum(function: Any) -> Any:
    """Compile `function` with sums reordered to fill the registers, in an order fixed when compiled.

    Only for sums along a row. A loop over rows handles its last few with other instructions, which
    must give the same bits.
    """
    return compiled(function, fastmath={"reassoc", "contract", "nsz"})


@no_type_check
@intrinsic
def cast(context, number, like):
    """Convert a stored number to the type of `like`; numba lacks float16, which is passed as bits."""

    def generate(context, builder, signature, arguments):
        bits, (stored, target) = arguments[0], signature.args
        if stored == types.uint16:
            bits = builder.bitcast(bits, ir.HalfType())
        if stored == target:
            return bits
        kind = context.get_value_type(target)
        narrower = stored == types.float64
        return builder.fptrunc(bits, kind) if narrower else builder.fpext(bits, kind)

    return like(number, like), generate


@no_type_check
@intrinsic
def prefetch(context, rows, j, byte):
    """Prefetch the cache line at `byte` of row j, which may lie beyond the end of the array."""

    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.bitcast(array.data, ir.IntType(8).as_pointer())
        stride = cgutils.unpack_tuple(builder, array.strides)[0]
        offset = builder.add(builder.mul(stride, arguments[1]), arguments[2])
        number = ir.IntType(32)
        instruction = builder.module.declare_intrinsic(
            "llvm.prefetch",
            [pointer.type],
            ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number]),
        )
        read, high_locality, data_cache = number(0), number(3), number(1)
        address = builder.gep(pointer, [offset])
        builder.call(instruction, [address, read, high_locality, data_cache])
        return context.get_dummy_value()

    return types.void(rows, types.intp, types.intp), generate


@no_type_check
@intrinsic
def use_widest_registers(context):
    """Compile the calling function separately, for registers as wide as the processor's.

    By default LLVM stops at 256 bits, which halves the speed of a product that lies in the cache.
    """

    def generate(context, builder, signature, arguments):
        attributes = builder.function.attributes
        set.add(attributes, "noinline")
        set.add(attributes, '"prefer-vector-width"="512"')  # llvmlite does not know it; LLVM does
        return context.get_dummy_value()

    return types.void(), generate
