#!/usr/bin/env bash
# Train on TPUs of a GKE cluster through XPK, which creates the JobSet:
#
#   launch/xpk.sh NAME TYPE SLICES IMAGE CONFIG gs://BUCKET/runs/NAME [--config.KEY=VALUE ...]
#
# TYPE: v5litepod-64, v5p-128, v6e-256, tpu7x-128. From the environment: CLUSTER; STORAGE, the name
# of an `xpk storage` for a work directory or data that are not in a bucket. --dry-run as the first
# argument prints the command instead. XPK itself restarts on 42 and on 127 to 255 only.
set -euo pipefail
run=()
if [ "${1:-}" = --dry-run ]; then
  run=(printf '%q ')
  shift
fi
if [ $# -lt 6 ]; then
  sed -n '4s/^# *//p' "$0" >&2
  exit 1
fi
name=$1 type=$2 slices=$3 image=$4 config=$5 workdir=$6
shift 6
printf -v train '%q ' launch/entrypoint.sh train "--config=$config" "--workdir=$workdir" "$@"
options=(--cluster "${CLUSTER:?set CLUSTER}" --workload "$name" --tpu-type "$type")
options+=(--num-slices "$slices" --docker-image "$image" --max-restarts 1000)
[ -z "${STORAGE:-}" ] || options+=(--storage "$STORAGE")
options+=(--command "export WORKDIR=$(printf %q "$workdir"); $train")
"${run[@]}" xpk workload create "${options[@]}"
