#!/usr/bin/env bash
# What a container runs: videomae with the shared environment, in place of this shell, so that
# SIGTERM reaches it and its exit code is the container's.
set -u
if [ -n "${WORKDIR:-}" ]; then
  # shellcheck source=launch/env.sh
  source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
fi
exec videomae "$@"
