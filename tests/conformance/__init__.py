"""A runner for the official conformance cases: `python -m tests.conformance --help`."""
