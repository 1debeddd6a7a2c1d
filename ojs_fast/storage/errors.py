"""What storage can say besides yes."""


class StorageError(Exception):
    """Root of what storage raises."""


class KeyTaken(StorageError):
    """A create found the key in use."""


class RevisionConflict(StorageError):
    """A replace found another revision than the expected one: somebody else wrote first."""


class Unavailable(StorageError):
    """NATS did not take the write or answer the read in time; the outcome of a write is unknown."""


class AccessDenied(Unavailable):
    """NATS does not let us in: TLS or credentials. The message says what to correct."""


class BatchRefused(StorageError):
    """NATS takes no atomic batch of this size. The message says what it allows."""


class TopologyError(StorageError):
    """NATS is too old, or holds streams of our names that do not fit. The message says what to do."""
