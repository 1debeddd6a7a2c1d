#!/usr/bin/env bash
# Enqueue jobs: bash producer.sh QUEUE COUNT. Prints their ids. Settings: OJS_URL, OJS_API_KEY. Needs curl and jq.
set -euo pipefail

url=${OJS_URL:-http://127.0.0.1:8080}/ojs/v1
queue=${1:-email} count=${2:-10}

# curl waits and tries again when the server is away, and when it says 429 or 503 (as long as Retry-After says).
# With the same Idempotency-Key there is one job, however often it was tried.
for ((number = 0; number < count; number++)); do
  jq -cn --arg to "user$number@example.com" --arg queue "$queue" \
    '{type: "email.send", args: [$to, "welcome"], options: {queue: $queue, retry: {max_attempts: 5}}}' |
    curl -sS --fail --retry 10 --retry-all-errors --retry-max-time 60 "$url/jobs" \
      -H 'Content-Type: application/json' -H "Authorization: Bearer ${OJS_API_KEY:-}" \
      -H "Idempotency-Key: $$-$number-$RANDOM$RANDOM" --data-binary @- |
    jq -r .job.id
done
