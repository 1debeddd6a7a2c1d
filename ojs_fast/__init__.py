"""ojs-fast: an Open Job Spec server over NATS JetStream."""

__version__ = "0.1.0"
