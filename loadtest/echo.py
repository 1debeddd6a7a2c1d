"""The echo that single requests are compared with: a plain BlackSheep route on the server's own Granian set-up.

`python -m loadtest.echo` starts it through `ojs_fast.serve.run`, so Granian's options cannot drift from the
server's. That starts an embedded nats-server too, which idles.
"""

import gc
import os
import sys

from blacksheep import Application, Content, Request, Response

from ojs_fast import serve
from ojs_fast.config import Settings

CONTENT_TYPE = b"application/openjobspec+json"


def create_app() -> Application:
    """The factory that Granian calls in its worker."""
    app = Application()

    @app.on_start
    async def tune(_: Application) -> None:
        # As the server's worker does (`ojs_fast.app`): without it the echo needs 8 % more CPU and its p99 at 64
        # connections doubles, which would flatter every ratio.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)

    @app.router.post("/echo")
    async def echo(request: Request) -> Response:
        return Response(200, content=Content(CONTENT_TYPE, await request.read() or b""))

    @app.router.get("/ojs/v1/health")
    async def health() -> Response:
        return Response(200)

    return app


if __name__ == "__main__":
    sys.exit(serve.run(Settings.from_env(os.environ), target="loadtest.echo:create_app"))
