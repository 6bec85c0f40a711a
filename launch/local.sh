#!/usr/bin/env bash
# Train on this machine, and restart after interruptions: one process, or several of one run.
#
#   launch/local.sh PROCESSES WORKDIR --config=FILE [--config.KEY=VALUE ...]
#
# Ctrl-C and SIGTERM reach every process: all save and exit. Exit codes: see README.md.
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
    distributed=()
    if [ "$processes" -gt 1 ]; then
      distributed=(--coordinator "127.0.0.1:$port" --processes "$processes" --process-id "$i")
    fi
    videomae train "--workdir=$WORKDIR" "${distributed[@]}" "$@" &
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
    # 1 means do not restart; it overrides the codes that it caused in the other processes.
    if [ "$one" -eq 1 ] || { [ "$one" -ne 0 ] && [ "$code" -ne 1 ]; }; then code=$one; fi
  done
  if [ -n "$stopped" ] || { [ "$code" -ne 42 ] && [ "$code" -lt 127 ]; }; then exit "$code"; fi
  # A signal ends the pause as it ends a process.
  sleep "${PAUSE:-10}" &
  pids=($!)
  echo "launch: exit code $code, starting again from $WORKDIR" >&2
  if [ -z "$stopped" ]; then wait "${pids[0]}"; fi
  if [ -n "$stopped" ]; then exit "$code"; fi
done
exit "$code"
