"""What the compiled core allows (`_core_*.pxi`), where it keeps its bounds as C integers.

They stand here a second time; the boundary values that `tests/fuzz/test_schemathesis.py` sends keep both the same.
"""

import re

JOB_TYPE = re.compile(r"[a-z][a-z0-9_\-]*(\.[a-z][a-z0-9_\-]*)*")
QUEUE_NAME = re.compile(r"[a-z0-9][a-z0-9\-.]*")
LIMIT_KEY = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._:\-]*")
UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
MAX_JOB_TYPE = 255
MAX_QUEUE_NAME = 128
MAX_LIMIT_KEY = 255
MAX_META_BYTES = 65_536
MAX_JOB_MS = 31_536_000_000  # of `timeout_ms` and `visibility_timeout_ms`
MAX_JOB_SECONDS = 31_536_000  # of `timeout` and `visibility_timeout`
MAX_RESULT_TTL_S = 3_153_600_000
MAX_INTERVAL_MS = 3_153_600_000_000
MAX_ATTEMPTS = 1_000_000
MAX_COEFFICIENT = 1_000_000
BACKOFF_STRATEGIES = ("none", "constant", "linear", "exponential", "polynomial")
EXHAUSTIONS = ("discard", "dead_letter")
MAX_CONCURRENCY = 10_000
MAX_STARTS = 1_000_000_000
PERIODS = ("second", "minute", "hour", "day")
ON_LIMIT = ("wait", "reschedule", "drop")
