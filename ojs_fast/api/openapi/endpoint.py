"""What a description needs to know of a route."""

from typing import Protocol


class Endpoint(Protocol):
    """A row of the route table."""

    @property
    def method(self) -> str:
        """In capitals."""

    @property
    def path(self) -> str:
        """With `{parameters}`."""

    @property
    def is_open(self) -> bool:
        """Answered without an API key."""
