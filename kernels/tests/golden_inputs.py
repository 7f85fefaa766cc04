"""Seeded inputs in plain integers: prints elements of K and V as the bits of their dtype.

Usage: golden_inputs.py SEED SET BATCH LONGEST HEADS DIM. For each of K (code 2) and V (code 3) and each of f32, f16,
bf16 and e4m3 it prints one line: the tensor, the dtype, and the bits of elements 0, 1, ... in hexadecimal. It follows the
description in kernels/src/input.rs and nothing else, with integers alone, so that it shows what another language has to
do to agree bit for bit.
"""

import sys

MASK = (1 << 64) - 1


def hash64(key, counter):
    z = (key + (counter + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def field_sum(h):
    return (h & 0xFFFF) + ((h >> 16) & 0xFFFF) + ((h >> 32) & 0xFFFF) + (h >> 48)


def encode(integer, exponent_bits, mantissa_bits):
    """The bits of integer * 2^-15 in a binary format, rounded to nearest, ties to even."""
    sign = 1 if integer < 0 else 0
    magnitude = abs(integer)
    if magnitude == 0:
        return 0
    bias = (1 << (exponent_bits - 1)) - 1
    # Normal numbers only: the smallest element is 2^-15, which f16 holds as a subnormal.
    exponent = magnitude.bit_length() - 1 - 15
    exponent = max(exponent, 1 - bias)
    # The value is mantissa * 2^(exponent - mantissa_bits).
    shift = mantissa_bits - exponent - 15
    if shift >= 0:
        mantissa = magnitude << shift
    else:
        mantissa, rest = magnitude >> -shift, magnitude & ((1 << -shift) - 1)
        half = 1 << (-shift - 1)
        if rest > half or (rest == half and mantissa & 1):
            mantissa += 1
    # Adding the mantissa with its leading one carries into the exponent where rounding overflows or where it is normal.
    bits = ((exponent + bias - 1) << mantissa_bits) + mantissa
    return (sign << (exponent_bits + mantissa_bits)) | bits


FORMATS = {"f32": (8, 23), "f16": (5, 10), "bf16": (8, 7), "e4m3": (4, 3)}


def main():
    seed, input_set, batch, longest, heads, dim = (int(word) for word in sys.argv[1:])
    for code, tensor in ((2, "k"), (3, "v")):
        key = hash64(hash64(seed, code), input_set)
        count = batch * longest * heads * dim
        sums = [field_sum(hash64(key, index)) - 131070 for index in range(count)]
        for dtype, (exponent_bits, mantissa_bits) in FORMATS.items():
            print(tensor, dtype, *(f"{encode(x, exponent_bits, mantissa_bits):x}" for x in sums))


main()
