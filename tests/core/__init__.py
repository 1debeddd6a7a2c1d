"""Services of a node inside the test, on a real NATS, with a clock that the test moves."""
