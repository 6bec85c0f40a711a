# shellcheck shell=bash
# The environment of every process of a run, on any cluster. Set WORKDIR, then source this file
# before `videomae train`. Variables that are already set are kept.

# Do not buffer output: logs show each line at once.
export PYTHONUNBUFFERED=1
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-3}"
# JAX opens a cache in a bucket through gcsfs or s3fs, as videomae does, not through TensorFlow.
export EPATH_USE_TF="${EPATH_USE_TF:-false}"
# A restart loads the compiled step from this cache.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$WORKDIR/compiled}"
# GPUs: the fraction of memory that `videomae plan` assumes, and communication of gradients that
# overlaps with computation. A TPU ignores both and overlaps by default.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
if [ "${PLATFORM:-}" = gpu ]; then
  export XLA_FLAGS="${XLA_FLAGS:---xla_gpu_enable_latency_hiding_scheduler=true}"
fi
