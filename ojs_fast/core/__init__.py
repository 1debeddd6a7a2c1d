"""Job rules and services; no HTTP."""
