"""The tasks, by the value of `config.task`."""

from videomae_jax.tasks import classify, contrast, detect, pretrain, probe
from videomae_jax.tasks.task import TaskModule

TASKS: dict[str, TaskModule] = {
    "pretrain": pretrain,
    "classify": classify,
    "contrast": contrast,
    "probe": probe,
    "detect": detect,
    "encoder": pretrain,  # a converted checkpoint without a decoder
}
