"""Every test runs on eight emulated CPU devices, and a deprecated call is a failure."""

import os

# Before anything imports TensorFlow: its start-up notes would drown a failure's report.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling takes most of the time of these small models: a third of all is saved.
FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST}"
# JAX runs before a test calls `videomae train`, and could no longer be connected to others.
os.environ["JAX_NUM_PROCESSES"] = "1"

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
