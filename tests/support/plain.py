"""How tests reach servers on loopback with httpx: without a proxy, and without the certificates of all authorities.

Loading those takes 0.1 s of CPU time for each client, also for plain HTTP.
"""

from __future__ import annotations

import ssl
from typing import Any

PLAIN: dict[str, Any] = {"trust_env": False, "verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)}
