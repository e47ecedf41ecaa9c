"""Readers of the stores that other programs keep models in: they look, and change nothing.

Each takes its folder, so that a captured tree is a test; what a store says (names, hashes) is only a claim.
"""
