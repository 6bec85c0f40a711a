#!/usr/bin/env bash
# Entry point of the container: set the shared environment, then replace this shell by videomae, so
# that it receives SIGTERM and its exit code is the container's.
set -u
if [ -n "${WORKDIR:-}" ]; then
  # shellcheck source=launch/env.sh
  source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
fi
exec videomae "$@"
