#!/usr/bin/env bash
# Train on Cloud TPU VMs through queued resources.
#
#   launch/tpu_vm.sh create NAME TYPE      ask for a slice, e.g. v5litepod-64, v5p-128, v6e-256
#   launch/tpu_vm.sh run NAME CONFIG gs://BUCKET/runs/NAME [--config.KEY=VALUE ...]
#   launch/tpu_vm.sh status NAME
#   launch/tpu_vm.sh logs NAME [WORKER]
#   launch/tpu_vm.sh delete NAME
#
# --dry-run before the verb prints the gcloud commands instead. From the environment: PROJECT and
# ZONE; SPOT=1 for preemptible machines; SLICES, the number of slices; RUNTIME, the TPU software
# version (default: that of TYPE); SOURCE, what pip installs on the machines (a URL or a path there);
# MOUNT, a command that mounts a file system on a machine, for a work directory or data that are not
# in a bucket. The service account of the machines needs the roles in docs/buckets.md on BUCKET.
# After a preemption, the same two commands, create and run, resume the run.
set -euo pipefail

usage() {
  sed -n '4,8s/^# *//p' "$0" >&2
  exit 1
}

dry=
if [ "${1:-}" = --dry-run ]; then
  dry=yes
  shift
fi
[ $# -ge 2 ] || usage
verb=$1
name=$2
shift 2
: "${PROJECT:?set PROJECT}" "${ZONE:?set ZONE}"
slices=${SLICES:-1}
location=(--project "$PROJECT" --zone "$ZONE")

# Print words so that a shell reads them back; unlike those of printf %q, people can read them too.
quote() {
  local word words='' mark="'" escaped="'\\''"
  for word; do
    case $word in
      *[!A-Za-z0-9_.,:=/@%+-]*) words+=" '${word//$mark/$escaped}'" ;;
      *) words+=" $word" ;;
    esac
  done
  echo "${words# }"
}

call() {
  if [ -n "$dry" ]; then
    quote gcloud "$@"
  else
    gcloud "$@"
  fi
}

# As cloud.google.com/tpu/docs/runtimes has them.
runtime_of() { # type
  case $1 in
    v[234]-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo "set RUNTIME, the TPU software version of $1" >&2 && exit 1 ;;
  esac
}

# The machines of slice I of several are called NAME-I.
each_slice() {
  if [ "$slices" -eq 1 ]; then
    echo "$name"
  else
    for ((i = 0; i < slices; i++)); do echo "$name-$i"; done
  fi
}

on_workers() { # slice, workers, command
  call compute tpus tpu-vm ssh "$1" "${location[@]}" --worker="$2" --command "$3"
}

case $verb in
  create)
    [ $# -eq 1 ] || usage
    runtime=${RUNTIME:-$(runtime_of "$1")}
    options=(--accelerator-type "$1" --runtime-version "$runtime")
    [ "${SPOT:-0}" = 0 ] || options+=(--spot)
    if [ "$slices" -eq 1 ]; then
      options+=(--node-id "$name")
    else
      options+=(--node-prefix "$name" --node-count "$slices")
    fi
    call compute tpus queued-resources create "$name" "${location[@]}" "${options[@]}"
    ;;
  run)
    [ $# -ge 2 ] || usage
    config=$1 workdir=$2
    shift 2
    : "${SOURCE:?set SOURCE}"
    train=$(quote videomae train "--config=$config" "--workdir=$workdir" "$@")
    # Restart on 42 (saved) and on the codes of a crash, as README.md says.
    loop="${MOUNT:-true}
pip install -q \"jax[tpu]\" gcsfs $(quote "$SOURCE") || exit 1
export PYTHONUNBUFFERED=1 EPATH_USE_TF=false WORKDIR=$(quote "$workdir") JAX_COMPILATION_CACHE_DIR=$(quote "$workdir/compiled")
while true; do $train; code=\$?; echo \"launch: exit code \$code\"
[ \$code -eq 42 ] || [ \$code -ge 127 ] || exit \$code; sleep 30; done"
    for slice in $(each_slice); do
      on_workers "$slice" all "nohup bash -c $(quote "$loop") > videomae.log 2>&1 &"
    done
    ;;
  status)
    call compute tpus queued-resources describe "$name" "${location[@]}" --format 'value(state.state)'
    ;;
  logs)
    slice=$(each_slice | head -n 1)
    on_workers "$slice" "${1:-0}" 'tail -n 100 -F videomae.log'
    ;;
  delete)
    call compute tpus queued-resources delete "$name" "${location[@]}" --force --quiet
    ;;
  *) usage ;;
esac
