"""Real servers, a real NATS and clients for the tests."""
