"""Arithmetic in GF(2^8) modulo x^8 + x^4 + x^3 + x^2 + 1 (0x11d): the field of zfec and ISA-L.

Only small matrices (at most 16 x 16) pass through here, when a decoding matrix is made; bulk data is
multiplied in native code. Addition is XOR. Products go through logarithms to the generator 2.
"""

from __future__ import annotations

from typing import Final

POLYNOMIAL: Final = 0x11D
GROUP_ORDER: Final = 255  # non-zero elements

Matrix = tuple[tuple[int, ...], ...]


def _powers() -> tuple[int, ...]:
    """2^0 .. 2^509: doubled, so that the sum of two logarithms needs no reduction."""
    powers = []
    value = 1
    for _ in range(2 * GROUP_ORDER):
        powers.append(value)
        value <<= 1
        if value & 0x100:
            value ^= POLYNOMIAL
    return tuple(powers)


_EXPONENTIAL: Final = _powers()
_LOGARITHM: Final = {value: power for power, value in enumerate(_EXPONENTIAL[:GROUP_ORDER])}


def multiply(left: int, right: int) -> int:
    """The product of two field elements."""
    if left == 0 or right == 0:
        return 0
    return _EXPONENTIAL[_LOGARITHM[left] + _LOGARITHM[right]]


def inverse(value: int) -> int:
    """The multiplicative inverse. Raises ZeroDivisionError for 0."""
    if value == 0:
        raise ZeroDivisionError("0 has no inverse in GF(256)")
    return _EXPONENTIAL[GROUP_ORDER - _LOGARITHM[value]]


def row_times_matrix(row: tuple[int, ...], matrix: Matrix) -> tuple[int, ...]:
    """The vector-matrix product `row · matrix`."""
    assert len(row) == len(matrix)
    product = [0] * len(matrix[0])
    for coefficient, line in zip(row, matrix, strict=True):
        for column, value in enumerate(line):
            product[column] ^= multiply(coefficient, value)
    return tuple(product)


def invert(matrix: Matrix) -> Matrix:
    """The inverse of a square matrix, by Gauss-Jordan elimination.

    Raises ValueError if it is singular (which no k rows of an MDS code's generator are).
    """
    size = len(matrix)
    work = [
        [*row, *(1 if column == index else 0 for column in range(size))]
        for index, row in enumerate(matrix)
    ]
    for column in range(size):
        pivot = next((row for row in range(column, size) if work[row][column]), None)
        if pivot is None:
            raise ValueError("the matrix is singular")
        work[column], work[pivot] = work[pivot], work[column]
        scale = inverse(work[column][column])
        work[column] = [multiply(scale, value) for value in work[column]]
        for row in range(size):
            factor = work[row][column]
            if row != column and factor:
                work[row] = [
                    value ^ multiply(factor, pivotal)
                    for value, pivotal in zip(work[row], work[column], strict=True)
                ]
    return tuple(tuple(row[size:]) for row in work)
