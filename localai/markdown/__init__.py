"""Markdown as it arrives, shown on a terminal."""
