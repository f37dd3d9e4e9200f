"""Tells a reverse proxy which Matrix user a request belongs to."""

__version__ = "0.1.0"
