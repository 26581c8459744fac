"""Field arithmetic, and the choice of an implementation."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwfs.erasure import describe, make_coder, selection
from dwfs.erasure.field import inverse, invert, multiply, row_times_matrix
from dwfs.erasure.isal_coder import IsalCoder
from dwfs.erasure.isal_library import candidate_paths, load_library
from dwfs.erasure.zfec_coder import ZfecCoder, generator_matrix
from dwfs.errors import UnsupportedSystemError
from dwfs.types import Geometry

ELEMENT = st.integers(0, 255)


@given(ELEMENT, ELEMENT, ELEMENT)
def test_the_field_is_a_field(one: int, two: int, three: int) -> None:
    assert multiply(one, two) == multiply(two, one)
    assert multiply(one, multiply(two, three)) == multiply(multiply(one, two), three)
    assert multiply(one, two ^ three) == multiply(one, two) ^ multiply(one, three)
    assert multiply(one, 1) == one
    if one:
        assert multiply(one, inverse(one)) == 1


def test_zero_has_no_inverse_and_singular_matrices_neither() -> None:
    with pytest.raises(ZeroDivisionError):
        inverse(0)
    with pytest.raises(ValueError, match="singular"):
        invert(((1, 2), (1, 2)))


def test_any_rows_of_the_generator_invert() -> None:
    matrix = generator_matrix(Geometry(4, 3))
    assert matrix[:4] == tuple(tuple(int(row == column) for column in range(4)) for row in range(4))
    some = tuple(matrix[row] for row in (1, 4, 5, 6))
    product = tuple(row_times_matrix(row, invert(some)) for row in some)
    assert product == matrix[:4]


def test_without_isal_zfec_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "candidate_paths", lambda: ["/nowhere/libisal.so"])
    assert isinstance(make_coder(Geometry(4, 2)), ZfecCoder)
    assert describe().startswith("zfec")
    with pytest.raises(UnsupportedSystemError, match="libisal2"):
        make_coder(Geometry(4, 2), "isa-l")


def test_what_loads_but_is_no_isal_is_passed_over() -> None:
    assert load_library(["libc.so.6"]) is None


@pytest.mark.expect_log("disagrees with zfec")
def test_a_library_that_computes_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Wrong(IsalCoder):
        def encode(self, data: Sequence[memoryview], parity: Sequence[memoryview]) -> None:
            super().encode(data, parity)
            parity[-1][-1] ^= 1

    # Not a reason to skip: ./run installs ISA-L, and zfec would silently serve in all other tests too.
    assert load_library(candidate_paths()) is not None, "libisal2 is installed but not found"
    monkeypatch.setattr(selection, "IsalCoder", Wrong)
    assert isinstance(make_coder(Geometry(4, 2)), ZfecCoder)
    with pytest.raises(UnsupportedSystemError):
        make_coder(Geometry(4, 2), "isa-l")
