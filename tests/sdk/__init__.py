"""The official SDKs' wire behaviour, field by field: what they send, and what they need to read."""
