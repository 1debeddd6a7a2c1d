"""Load tests and benchmarks; nothing in the server imports this."""
