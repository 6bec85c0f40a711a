"""The tasks, by the value of `config.task`."""

from videomae_jax.tasks import amd, classify, contrast, detect, pretrain, probe
from videomae_jax.tasks.task import TaskModule

TASKS: dict[str, TaskModule] = {
    "pretrain": pretrain,
    "amd": amd,
    "classify": classify,
    "contrast": contrast,
    "probe": probe,
    "detect": detect,
    "encoder": pretrain,  # a converted checkpoint without a decoder
}
