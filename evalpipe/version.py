"""The version of the package: below everything, so that a stage can record it without importing the public API."""

__version__ = "0.1.0"
