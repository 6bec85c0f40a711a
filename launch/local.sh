#!/usr/bin/env bash
# Train on this machine, through interruptions: one process, or several that train together.
#
#   launch/local.sh PROCESSES WORKDIR --config=FILE [--config.KEY=VALUE ...]
#
# Ctrl-C and SIGTERM reach every process: all save and end. Exit codes as in README.md.
set -u
if [ $# -lt 3 ]; then
  sed -n '4s/^# *//p' "$0" >&2
  exit 1
fi
processes=$1
export WORKDIR=$2
shift 2
folder=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/env.sh
source "$folder/env.sh"
port=${PORT:-29400}
tries=${RESTARTS:-100}

stopped=
pids=()
trap 'stopped=yes; kill -TERM "${pids[@]}" 2>/dev/null' TERM INT

for ((try = 0; try <= tries; try++)); do
  pids=()
  for ((i = 0; i < processes; i++)); do
    together=()
    if [ "$processes" -gt 1 ]; then
      together=(--coordinator "127.0.0.1:$port" --processes "$processes" --process-id "$i")
    fi
    videomae train "--workdir=$WORKDIR" "${together[@]}" "$@" &
    pids+=($!)
  done
  code=0
  for pid in "${pids[@]}"; do
    wait "$pid"
    one=$?
    # A signal ends `wait` before the process: wait again for its own code.
    while kill -0 "$pid" 2>/dev/null; do
      wait "$pid"
      one=$?
    done
    # 1 says do not restart; it counts before what it did to the others.
    if [ "$one" -eq 1 ] || { [ "$one" -ne 0 ] && [ "$code" -ne 1 ]; }; then code=$one; fi
  done
  if [ -n "$stopped" ] || { [ "$code" -ne 42 ] && [ "$code" -lt 127 ]; }; then exit "$code"; fi
  echo "launch: exit code $code, starting again from $WORKDIR" >&2
  sleep "${PAUSE:-10}"
done
exit "$code"
