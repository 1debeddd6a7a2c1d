"""What docker/Dockerfile runs, for tests that run it without Docker."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

DOCKERFILE = Path(__file__).resolve().parents[2] / "docker" / "Dockerfile"


def health_check() -> list[str]:
    """The command of the health check; it reads OJS_PORT and OJS_TLS_CERT."""
    found = re.search(r"^HEALTHCHECK .*\\\n\s+CMD (\[.*\])$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    program, *arguments = json.loads(found.group(1))
    assert program == "python"
    return [sys.executable, *arguments]
