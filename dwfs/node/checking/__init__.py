"""The parts of `dwfs check`: each compares two things that should agree, and notes where they don't."""
