"""The server without events, metrics and access log, for `loadtest.observed` to compare with; no way to run one."""

import os
import sys
from typing import Any

from ojs_fast import app, serve
from ojs_fast.config import Settings
from ojs_fast.core.events import Events
from ojs_fast.core.metrics import Histogram


def _nothing(*_: Any, **__: Any) -> None:
    pass


def create_app() -> app.OjsApplication:
    """The factory that Granian calls in its worker."""
    Events.job = _nothing  # type: ignore[method-assign]
    Histogram.observe = _nothing  # type: ignore[method-assign]
    return app.create_app()


if __name__ == "__main__":
    sys.exit(serve.run(Settings.from_env(os.environ), target="loadtest.bare:create_app"))
