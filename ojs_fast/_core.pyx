# cython: language_level=3
"""The compiled, pure core of ojs-fast: what runs once per job.

Owns the state machine, backoff arithmetic, priority order, times and ids, JSON scanning, the record
and its serialization, PubAck parsing and the timer heap. Must not know: I/O, asyncio, NATS clients,
HTTP, any other module of the project. Split by topic:
"""

include "_core_states.pxi"    # the 8 states and every legal transition
include "_core_backoff.pxi"   # retry delays, priority order
include "_core_time.pxi"      # RFC 3339, ISO 8601 durations, UUIDv7
include "_core_nats.pxi"      # PubAck and ack-subject parsing
include "_core_heap.pxi"      # timer heap
include "_core_json.pxi"      # validation and member spans without decoding
include "_core_text.pxi"      # bytes under construction: numbers, times, JSON strings
include "_core_record.pxi"    # a job's record: layout, splicing, transitions
include "_core_envelope.pxi"  # enqueue requests: field rules, record
include "_core_limits.pxi"    # limits on the start of jobs: options.rate_limit, overrides
include "_core_wire.pxi"      # NATS client protocol: parsing and framing
