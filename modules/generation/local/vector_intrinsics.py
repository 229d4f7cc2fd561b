"""Numba intrinsics for kernels over raw addresses: vectors of float32 read from and written to float32, float16 and bfloat16.

Addresses are int64. An element is counted in numbers of its own kind, KINDS. Imports numba.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false
# pyright: reportCallIssue=false
# Numba's intrinsics are typed by numba, not by Python.

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
KINDS = {"float32": 0, "float16": 1, "bfloat16": 2}
_FAST = ("reassoc", "contract", "nsz", "arcp", "afn")
_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_ELEMENTS = (_FLOAT, ir.HalfType(), ir.IntType(16))


def _pointer(builder: Any, address: Any, at: Any, size: int) -> Any:
    """The address of element `at`."""
    place = builder.add(address, builder.mul(at, ir.Constant(ir.IntType(64), size)))
    return builder.inttoptr(place, ir.PointerType())


def _wide(builder: Any, value: Any, kind: int, count: int) -> Any:
    """`count` elements of that kind as a vector of float32."""
    if kind == 0:
        return value
    if kind == 1:
        return builder.fpext(value, ir.VectorType(_FLOAT, count))
    ints = builder.zext(value, ir.VectorType(_INT, count))
    return builder.bitcast(builder.shl(ints, _splat(16, count)), ir.VectorType(_FLOAT, count))


def _narrow(builder: Any, value: Any, kind: int, count: int) -> Any:
    """A vector of float32 as elements of that kind, rounded to nearest, ties to even."""
    if kind == 0:
        return value
    if kind == 1:
        return builder.fptrunc(value, ir.VectorType(ir.HalfType(), count))
    ints = builder.bitcast(value, ir.VectorType(_INT, count))
    odd = builder.and_(builder.lshr(ints, _splat(16, count)), _splat(1, count))
    ints = builder.add(ints, builder.add(odd, _splat(0x7FFF, count)))
    return builder.trunc(builder.lshr(ints, _splat(16, count)), ir.VectorType(ir.IntType(16), count))


def _splat(value: int, count: int) -> Any:
    return ir.Constant(ir.VectorType(_INT, count), [value] * count)


def _spread(builder: Any, value: Any, count: int) -> Any:
    """A vector of `count` times the same float32."""
    kind = ir.VectorType(_FLOAT, count)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_INT, 0))
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(_INT, count), [0] * count))


def _load(builder: Any, address: Any, at: Any, kind: int, count: int) -> Any:
    size = (4, 2, 2)[kind]
    pointer = _pointer(builder, address, at, size)
    return _wide(builder, builder.load(pointer, align=size, typ=ir.VectorType(_ELEMENTS[kind], count)), kind, count)


def _store(builder: Any, value: Any, address: Any, at: Any, kind: int, count: int) -> None:
    size = (4, 2, 2)[kind]
    builder.store(_narrow(builder, value, kind, count), _pointer(builder, address, at, size), align=size)


_I = types.int64
_F = types.float32


def _literals(*values: Any) -> bool:
    return all(isinstance(value, types.IntegerLiteral) for value in values)


@intrinsic(prefer_literal=True)
def read_int(typing, address, at):
    """The int64 at place `at`."""

    def code(context, builder, signature, args):
        return builder.load(_pointer(builder, *args, 8), align=8, typ=ir.IntType(64))

    return _I(_I, _I), code


@intrinsic
def write_int(typing, address, at, value):
    def code(context, builder, signature, args):
        builder.store(args[2], _pointer(builder, args[0], args[1], 8), align=8)
        return context.get_dummy_value()

    return types.void(_I, _I, _I), code


@intrinsic
def take(typing, address, at):
    """Add 1 to the int64 at place `at`, seen by all threads at once; returns what it was."""

    def code(context, builder, signature, args):
        return builder.atomic_rmw("add", _pointer(builder, *args, 8), ir.Constant(ir.IntType(64), 1), "acq_rel")

    return _I(_I, _I), code


@intrinsic
def read_float(typing, address, at):
    """The float32 at place `at`."""

    def code(context, builder, signature, args):
        return builder.load(_pointer(builder, *args, 4), align=4, typ=_FLOAT)

    return _F(_I, _I), code


@intrinsic
def write_float(typing, address, at, value):
    def code(context, builder, signature, args):
        builder.store(args[2], _pointer(builder, args[0], args[1], 4), align=4)
        return context.get_dummy_value()

    return types.void(_I, _I, _F), code


@intrinsic
def as_float(typing, bits):
    """float32 of these bits."""

    def code(context, builder, signature, args):
        return builder.bitcast(builder.trunc(args[0], _INT), _FLOAT)

    return _F(_I), code


@intrinsic(prefer_literal=True)
def copy(typing, source, source_kind, target, target_kind, count, factor):
    """target[:count] = factor · source[:count], from one kind of number to the other."""
    if not _literals(source_kind, target_kind, count):
        return None
    kinds, size = (source_kind.literal_value, target_kind.literal_value), count.literal_value

    def code(context, builder, signature, args):
        zero = ir.Constant(ir.IntType(64), 0)
        value = builder.fmul(_load(builder, args[0], zero, kinds[0], size), _spread(builder, args[5], size))
        _store(builder, value, args[2], zero, kinds[1], size)
        return context.get_dummy_value()

    return types.void(_I, source_kind, _I, target_kind, count, _F), code


@intrinsic(prefer_literal=True)
def rotate(typing, source, cos, sin, target, target_kind, kind, count):
    """target = source · cos + (second half of source, first half) · sin: `count` numbers, read as `kind`."""
    if not _literals(target_kind, kind, count):
        return None
    own, into, size = kind.literal_value, target_kind.literal_value, count.literal_value

    def code(context, builder, signature, args):
        zero = ir.Constant(ir.IntType(64), 0)
        x, by_cos, by_sin = (_load(builder, args[index], zero, own, size) for index in range(3))
        places = [(place + size // 2) % size for place in range(size)]
        turned = builder.shuffle_vector(x, x, ir.Constant(ir.VectorType(_INT, size), places))
        value = builder.fadd(builder.fmul(x, by_cos, flags=_FAST), builder.fmul(turned, by_sin, flags=_FAST), flags=_FAST)
        _store(builder, value, args[3], zero, into, size)
        return context.get_dummy_value()

    return types.void(_I, _I, _I, _I, target_kind, kind, count), code


@intrinsic(prefer_literal=True)
def dots(typing, query, key, kind, count, groups, scores, at, apart):
    """scores[at + g · apart] = query[g, :count] · key[:count] for all g < groups. The key is read once."""
    if not _literals(kind, count, groups):
        return None
    own, size, many = kind.literal_value, count.literal_value, groups.literal_value

    def code(context, builder, signature, args):
        vector = ir.VectorType(_FLOAT, size)
        total = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_FLOAT, (_FLOAT, vector)), f"llvm.vector.reduce.fadd.v{size}f32"
        )
        read = _load(builder, args[1], ir.Constant(ir.IntType(64), 0), own, size)
        place = args[6]
        for group in range(many):
            asked = _load(builder, args[0], ir.Constant(ir.IntType(64), group * size), 0, size)
            product = builder.fmul(asked, read, flags=_FAST)
            score = builder.call(total, (ir.Constant(_FLOAT, -0.0), product), fastmath=_FAST)
            builder.store(score, _pointer(builder, args[5], place, 4), align=4)
            place = builder.add(place, args[7])
        return context.get_dummy_value()

    return types.void(_I, _I, kind, count, groups, _I, _I, _I), code


@intrinsic(prefer_literal=True)
def add_values(typing, values, kind, count, groups, weights, at, apart, sums, tokens):
    """sums[g, :count] += weights[at + g · apart + t] · values[t, :count] for all g < groups and t < tokens."""
    if not _literals(kind, count, groups, tokens):
        return None
    own, size, many, together = (part.literal_value for part in (kind, count, groups, tokens))

    def code(context, builder, signature, args):
        def number(value):
            return ir.Constant(ir.IntType(64), value)

        read = [_load(builder, args[0], number(token * size), own, size) for token in range(together)]
        place = args[5]
        for group in range(many):
            total = _load(builder, args[7], number(group * size), 0, size)
            for token in range(together):
                weight = builder.load(_pointer(builder, args[4], builder.add(place, number(token)), 4), align=4, typ=_FLOAT)
                product = builder.fmul(read[token], _spread(builder, weight, size), flags=_FAST)
                total = builder.fadd(total, product, flags=_FAST)
            _store(builder, total, args[7], number(group * size), 0, size)
            place = builder.add(place, args[6])
        return context.get_dummy_value()

    return types.void(_I, kind, count, groups, _I, _I, _I, _I, tokens), code


@intrinsic
def power_of_two(typing, exponent):
    """2^exponent as float32, for -127 < exponent < 128."""

    def code(context, builder, signature, args):
        whole = builder.add(args[0], ir.Constant(_INT, 127))
        return builder.bitcast(builder.shl(whole, ir.Constant(_INT, 23)), _FLOAT)

    return _F(types.int32), code
