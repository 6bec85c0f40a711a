# shellcheck shell=bash
# What every process of a run gets, on any cluster: source it before `videomae train`.
# Set WORKDIR first. A variable that is set already stays as it is.

# Lines appear when they are printed, whatever collects them.
export PYTHONUNBUFFERED=1
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-3}"
# A restart reads the compiled step instead of compiling it again.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$WORKDIR/compiled}"
# GPUs: all of the memory that `videomae plan` counts on, and gradients sent while others are
# computed. Both are ignored on a TPU, which does the same by itself.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
if [ "${PLATFORM:-}" = gpu ]; then
  export XLA_FLAGS="${XLA_FLAGS:---xla_gpu_enable_latency_hiding_scheduler=true}"
fi
