"""How much of the study is run, and with which settings.

Times are seconds of one core, or of the GPU: a run has the steps that fit into them, by the time
of a step that is measured first.
"""

from dataclasses import dataclass, field, replace
from typing import Any

VIDEOMAE, MOCO = "VideoMAE", "MoCo v3"
SCRATCH, LONG = "scratch", "scratch, equal time"
STUDENT, TAUGHT = "student", "student, teacher"
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Grid:
    """Clips of 16 frames in square patches. source: the size of the videos before a crop.

    tubelet: frames of a token.
    """

    pixels: int
    patch: int
    source: int
    tubelet: int = 4

    def options(self) -> dict[str, Any]:
        """Return the changes to a recipe."""
        return {
            "model.patch": (self.tubelet, self.patch, self.patch),
            "clip.frames": 16,
            "clip.height": self.pixels,
            "clip.width": self.pixels,
            "clip.source_height": self.source,
            "clip.source_width": self.source,
        }


@dataclass(frozen=True)
class Form:
    """How long it takes: times of the runs, and how many.

    curve: of pre-training, from short to long; the last is that of all other runs. mask: its kind
    and ratio. masks: of runs at a grid of their own that only compare masks. shares: of the labels,
    for pre-trained models and for scratch in the same time. rates: learning rates by arm; of
    several, the best on a part of the training clips is taken. probe: of a linear probe; 0 for
    none, and no nearest neighbours either. student: of a smaller model, alone and with the
    fine-tuned VideoMAE as its teacher; 0 for none.
    """

    device: str
    workers: int
    seeds: int
    grid: Grid
    mask: tuple[str, float]
    curve: tuple[float, ...]
    finetune: float
    probe: float
    steps: dict[str, tuple[int, int]]  # of two runs, whose difference is the time of steps
    pretrain_rates: dict[str, tuple[float, ...]]
    rates: dict[str, tuple[float, ...]]
    shares: tuple[float, ...] = ()
    masks: tuple[tuple[str, float], ...] = ()
    mask_grid: Grid | None = None
    mask_steps: dict[str, tuple[int, int]] = field(default_factory=dict)  # as steps, at mask_grid
    mask_pretrain: float = 0.0
    mask_finetune: float = 0.0
    contrast: bool = True
    student: float = 0.0
    start: float = 12.0  # of each command, beside its steps: what the estimate takes
    changes: dict[str, Any] = field(default_factory=dict)  # of every recipe


# Tubes on tokens of 4 frames leave 4 of 16 places: much less is learned (docs/measured.md).
SMALL, RANDOM = Grid(32, 8, 40, tubelet=2), ("random", 0.75)
LARGE, PAPER = Grid(80, 8, 100), Grid(112, 8, 112)
# (kind, ratio): a frame mask hides whole tokens in time, 4 of them here.
MASKS = (("tube", 0.9), ("tube", 0.75), ("random", 0.9), ("frame", 0.75))
# So many that their difference takes longer than the start of a run varies.
STEPS = {
    "pretrain": (50, 550),
    "contrast": (10, 60),
    "classify": (20, 140),
    "linear": (20, 220),
    "student": (20, 320),
    "taught": (20, 140),
}
LARGE_STEPS = {"pretrain": (20, 140), "classify": (10, 50)}
ONE = (2e-3,)
# In every arm. With the paper's positions these small models take much longer to learn that a place
# at another time is the same place.
POSITIONS = {"model.positions": "3d"}
MAIN = Form(
    device="cpu",
    workers=2,
    seeds=3,
    grid=SMALL,
    mask=RANDOM,
    curve=(240.0,),
    finetune=80.0,
    probe=0.0,
    steps=STEPS,
    pretrain_rates={VIDEOMAE: (4e-3,), MOCO: ONE},
    rates={arm: (4e-3,) for arm in (VIDEOMAE, MOCO, SCRATCH)} | {LONG: (2e-3, 4e-3)},
    shares=(0.1,),
    contrast=False,
    changes=POSITIONS,
)
FORMS = {
    # A few steps of every kind of run: finds mistakes of the study itself.
    "micro": Form(
        device="cpu",
        workers=2,
        seeds=1,
        grid=Grid(16, 8, 16),
        mask=RANDOM,
        curve=(0.01, 0.02),
        finetune=0.02,
        probe=0.02,
        steps={kind: (1, 2) for kind in STEPS},
        pretrain_rates={VIDEOMAE: ONE, MOCO: ONE},
        rates={VIDEOMAE: (1e-3, 2e-3), MOCO: ONE, SCRATCH: ONE, LONG: ONE},
        shares=(0.25,),
        masks=(("frame", 0.75),),
        mask_grid=Grid(16, 8, 16),
        mask_pretrain=0.02,
        mask_finetune=0.02,
        changes={
            "model.encoder.width": 16,
            "model.encoder.mlp_width": 16,
            "model.encoder.depth": 1,
            "model.encoder.heads": 1,
        },
    ),
    # The first claim of the paper alone, on both label sets.
    "main": MAIN,
    "short": replace(MAIN, curve=(100.0,), finetune=40.0, probe=15.0, shares=()),
    "evening": replace(
        MAIN,
        curve=(300.0,),
        finetune=60.0,
        probe=20.0,
        pretrain_rates={VIDEOMAE: (4e-3,), MOCO: (5e-4,)},
        shares=(),
        contrast=True,
        student=40.0,
    ),
    "full": replace(
        MAIN,
        seeds=5,
        curve=(60.0, 200.0, 600.0),
        finetune=120.0,
        probe=30.0,
        pretrain_rates={VIDEOMAE: (2e-3, 4e-3), MOCO: (5e-4, 2e-3)},
        rates={arm: (2e-3, 4e-3) for arm in (VIDEOMAE, MOCO, SCRATCH, LONG)},
        shares=(0.25, 0.1),
        masks=MASKS,
        mask_grid=LARGE,
        mask_steps=LARGE_STEPS,
        mask_pretrain=600.0,
        mask_finetune=200.0,
        contrast=True,
    ),
    "gpu": Form(
        device="gpu",
        workers=6,
        seeds=3,
        grid=PAPER,
        mask=("tube", 0.9),
        curve=(40.0,),
        finetune=15.0,
        probe=10.0,
        steps={kind: (50, 1050) for kind in STEPS},
        pretrain_rates={VIDEOMAE: (1e-3,), MOCO: (5e-4,)},
        rates={arm: (1e-3,) for arm in (VIDEOMAE, MOCO, SCRATCH, LONG)},
        masks=MASKS,
        mask_grid=PAPER,
        mask_pretrain=40.0,
        mask_finetune=15.0,
        start=20.0,
    ),
}
FEED = {
    "data.memory_gb": 2.0,
    "data.threads": 1,
    "data.holdout": 0.0,
    "base_lr": 0.0,
    "log_every": 50,
    "eval_every": 1_000_000,
    "keep_checkpoints": 1,
}
# In every arm: with AdamW, training from scratch learns little in this time (docs/measured.md).
MUON = {"optimizer.kind": "muon", "optimizer.b1": 0.95, "optimizer.b2": 0.99}
PRETRAIN = {
    "normalized_targets": False,  # flat backgrounds: see configs/demo.py
    "batch_size": 16,
    "min_lr": 1e-5,
} | MUON
CONTRAST = {"batch_size": 32} | MUON
# Crops and flips only: these runs are short.
CLASSIFY = {
    "clip.sampling": "sparse",
    "augment.operations": 0,
    "augment.erase": 0.0,
    "augment.mixup": 0.0,
    "augment.cutmix": 0.0,
    "augment.min_area": 0.5,
    "layer_decay": 1.0,  # in every arm: after a short pre-training the lower layers learn too
    "repeats": 1,
    "batch_size": 32,
    "min_lr": 1e-6,
} | MUON
STUDENT_MODEL = {
    "model.encoder.width": 64,
    "model.encoder.mlp_width": 256,
    "model.encoder.depth": 2,
    "model.encoder.heads": 2,
}
LINEAR = {"clip.sampling": "sparse", "augment.min_area": 0.5, "batch_size": 32, "min_lr": 0.0}
