"""dwfs: an encrypted, erasure-coded filesystem on a handful of disks."""

__version__ = "0.1.0"
