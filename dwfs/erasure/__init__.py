"""Erasure coding: k equal shards in, m parity shards out, and back from any k of them.

`zfec` defines the bytes; Intel's ISA-L, fed zfec's own matrix, makes the same bytes many times
faster. Users say `make_coder(geometry)` and get the fastest implementation that has just proved, on
this machine, that it agrees with zfec.
"""

from dwfs.erasure.selection import CoderChoice, describe, make_coder

__all__ = ["CoderChoice", "describe", "make_coder"]
