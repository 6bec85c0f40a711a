"""The tasks, by the name that `config.task` has."""

from videomae_jax.tasks import classify, pretrain, probe
from videomae_jax.tasks.task import TaskModule

TASKS: dict[str, TaskModule] = {
    "pretrain": pretrain,
    "classify": classify,
    "probe": probe,
    "encoder": pretrain,  # of converted checkpoints without a decoder
}
