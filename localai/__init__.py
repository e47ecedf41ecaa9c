"""Language models that run on your own computer, from the command line."""

__version__ = "0.1.0"
