#!/usr/bin/env bash
# A worker: bash worker.sh QUEUE. One job at a time (start several), heartbeats, directives, a graceful end.
# Settings: OJS_URL, OJS_API_KEY; OJS_VISIBILITY_MS, how long a job stays ours without a heartbeat; OJS_GRACE_S, how long
# a running job may go on after SIGTERM before it is given back. Needs curl and jq.
set -uo pipefail

url=${OJS_URL:-http://127.0.0.1:8080}/ojs/v1
queue=${1:-email}
me=$(hostname)-$$
visibility_ms=${OJS_VISIBILITY_MS:-30000}
grace_s=${OJS_GRACE_S:-25}

# What the jobs do: exit code 0 and a JSON result on standard output, or an error message there; 2 means for good.
email.send() {
  [[ $1 == *@* ]] || { echo "'$1' is no e-mail address"; return 2; }
  echo "sent $2 to $1" >&2
  echo '{"sent": true}'
}

report.make() { # takes $1 seconds
  sleep "$1"
  echo '{"pages": 3}'
}

# post PATH BODY [curl options]: tries once unless told otherwise.
post() {
  curl -sS --fail "$url$1" -H 'Content-Type: application/json' \
    -H "Authorization: Bearer ${OJS_API_KEY:-}" --data-binary "$2" "${@:3}"
}

# tell PATH JOB_ID MEMBERS: end a job at the server, however long that is away. A 409 or 404 is the end of it as well: an
# earlier try arrived after all, or the job is not ours any more.
tell() {
  post "$1" "$(jq -cn --arg id "$2" --arg me "$me" --argjson more "$3" '{job_id: $id, worker_id: $me} + $more')" \
    --retry 100 --retry-connrefused --retry-max-time "$grace_s" >/dev/null || echo "$2: not told" >&2
}

# heartbeat [JOB_ID]: prints what the operator wants of us: running, quiet or terminate.
heartbeat() {
  post /workers/heartbeat "$(jq -cn --arg me "$me" --argjson ms "$visibility_ms" \
    '{worker_id: $me, active_jobs: $ARGS.positional, visibility_timeout_ms: $ms}' --args -- "$@")" | jq -r .state
}

now_ms() { local us=${EPOCHREALTIME//[!0-9]/}; now=$((us / 1000)); } # sets $now

# Bash 5.2 loses a trap that interrupts a command substitution. So signals go to this process, which only waits and writes
# the time into $stop; the work is done by a child, which ends at once when this process is gone.
directive=running beat_at=0
stop=$(mktemp)
abandoned() { ! kill -0 $$ 2>/dev/null; }

# run JOB: the handler in the background; meanwhile three beats per reservation.
run() {
  local job=$1 id type handler=0 output code args
  id=$(jq -r .id <<<"$job") type=$(jq -r .type <<<"$job")
  mapfile -t args < <(jq -r '.args[] | if type == "string" then . else tojson end' <<<"$job")
  output=$(mktemp)
  if [[ $type =~ ^(email\.send|report\.make)$ ]]; then
    (trap '' TERM INT; "$type" "${args[@]}") >"$output" &
  else
    (echo "no handler for $type"; exit 1) >"$output" &
  fi
  handler=$!
  while kill -0 "$handler" 2>/dev/null; do
    now_ms
    if ((now >= beat_at)); then
      beat_at=$((now + visibility_ms / 3))
      directive=$(heartbeat "$id" || echo "$directive")
    fi
    if abandoned; then
      kill -KILL "$handler"
      exit 1
    fi
    if [[ -s $stop ]] && ((EPOCHSECONDS - $(<"$stop") >= grace_s)); then
      kill -KILL "$handler"
      wait "$handler" 2>/dev/null
      tell /workers/nack "$id" '{"requeue": true}'
      rm -f "$output"
      return
    fi
    sleep 0.1
  done
  wait "$handler"
  code=$?
  if ((code == 0)); then
    tell /workers/ack "$id" "$(jq -c '{result: .}' "$output")"
  else
    tell /workers/nack "$id" "$(jq -Rsc --argjson code "$code" '{error: {code: "handler_error", type: "exit \($code)",
      message: (rtrimstr("\n") | if . == "" then "failed" else . end), retryable: ($code != 2)}}' "$output")"
  fi
  rm -f "$output"
}

work() {
  trap '' TERM INT
  pause=0.2
  until [[ -s $stop ]] || abandoned; do
    now_ms
    if ((now >= beat_at)); then
      beat_at=$((now + visibility_ms / 3))
      directive=$(heartbeat || echo "$directive")
    fi
    [[ $directive == terminate ]] && break
    job=''
    if [[ $directive == running ]]; then
      if answer=$(post /workers/fetch "$(jq -cn --arg queue "$queue" --arg me "$me" --argjson ms "$visibility_ms" \
        '{queues: [$queue], count: 1, worker_id: $me, visibility_timeout_ms: $ms}')"); then
        pause=0.2
        job=$(jq -c '.jobs[0] // empty' <<<"$answer")
      else
        pause=$(jq -n "[$pause * 2, 10] | min") # away or busy: wait longer each time
      fi
    fi
    if [[ $job ]]; then run "$job"; else sleep "$pause"; fi
  done
}

work &
trap 'echo "$EPOCHSECONDS" >"$stop"' TERM INT
while kill -0 $! 2>/dev/null; do wait $!; done
rm -f "$stop"
