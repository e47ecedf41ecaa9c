"""The words that every other module speaks in: frozen dataclasses and protocols, which do no work of their own.

Units stand in the names: `_bytes`, `_gbps` (10^9 bytes per second), `_tps` (tokens per second), `_ms`.
What is unknown is `None`, never 0.
"""
