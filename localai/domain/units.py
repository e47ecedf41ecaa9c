"""Bytes in the units that memory and files are told in."""

KIB = 1024
MIB = 1024**2
GIB = 1024**3
