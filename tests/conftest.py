"""Every test runs on eight emulated CPU devices, and a deprecated call is a failure."""

import os

# Before anything imports TensorFlow: its start-up notes would drown a failure's report.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
os.environ["JAX_PLATFORMS"] = "cpu"
# JAX runs before a test calls `videomae train`, and could no longer be connected to others.
os.environ["JAX_NUM_PROCESSES"] = "1"

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
