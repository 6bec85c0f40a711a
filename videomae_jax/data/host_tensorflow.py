"""TensorFlow, which reads files here: import `tf` from this module, and from nowhere else."""

import os

# Its start-up messages are about devices that it is not to use.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import tensorflow as tf  # noqa: E402

# It must not take the memory of JAX's devices.
tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")
