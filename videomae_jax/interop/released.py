"""The models that others released and that can be read here: what they are, and where.

All facts were read, in November 2026, in the pages that `source` names; no file itself was had.
`unverified` says what was concluded or is uncertain. Scores are those of the authors.
"""

from typing import Any, NamedTuple

from videomae_jax.errors import UserError, did_you_mean
from videomae_jax.interop.hub import PREFIX, Address, parse_address

MODELS_PREFIX = "models:"
# Forms of files; tests/interop/test_released.py reads random weights in each of them.
FORMS = {
    "transformers": "a folder of transformers",
    "original": "a .pth of the original: the model, optimizer and arguments",
    "deepspeed": "a .pth of the original that DeepSpeed wrote: the model under 'module'",
    "half": "a .pth of V2: float16",
    "v2-folder": "a folder with code of its own, which is not run; names begin with 'model.'",
    "mmaction2": "a .pth of MMAction2",
    "detector": "a .pth of the original's action detectors",
}
NC, UNKNOWN = "CC-BY-NC-4.0", "not stated"


class Released(NamedTuple):
    """A released model.

    address: on the hub, or "" if it has none. page: where to get it without one. form: a key of
    `FORMS`. task: "pretrain", "classify", "detect" or "encoder". size: a key of `vit.SIZES`.
    classes: 0 without a head. clip: of its training. size_mb: of the file, None if unknown. scores:
    by data set and metric, in percent; those of a pre-trained model after fine-tuning. protocol:
    of the scores, clips x crops.
    """

    name: str
    address: str
    page: str
    form: str
    task: str
    size: str
    trained: str
    classes: int
    clip: str
    size_mb: float | None
    sha256: str
    licence: str
    scores: dict[str, float]
    protocol: str
    source: str
    unverified: str


def find_released(name: str) -> Released:
    """Return a released model; raise UserError for an unknown name."""
    if name not in RELEASED:
        raise UserError(
            f"model {name!r} is unknown: `videomae models` lists the names"
            + did_you_mean(name, RELEASED)
        )
    return RELEASED[name]


def address_of(path: str) -> str:
    """Return the address on the hub that models:NAME means, and any other path as it is.

    Raises UserError for an unknown name, and for a model that is not on the hub.
    """
    if not path.startswith(MODELS_PREFIX):
        return path
    model = find_released(path.removeprefix(MODELS_PREFIX))
    if not model.address:
        raise UserError(
            f"{path} has no address for programs: download it from {model.page} and give the file"
        )
    return model.address


def heads_of(address: Address) -> int | None:
    """Return the attention heads of the released model at an address; None if there is none."""
    # Not at the top: it imports JAX, which a list of names does not need.
    from videomae_jax.models.vit import SIZES

    for model in RELEASED.values():
        if model.address:
            known = parse_address(model.address)
            if (known.repository, known.path) == (address.repository, address.path):
                return SIZES[model.size].encoder.heads
    return None


V1 = "github.com/MCG-NJU/VideoMAE, MODEL_ZOO.md of 5cefe18"
V2 = "github.com/OpenGVLab/VideoMAEv2, docs/MODEL_ZOO.md of 3db1c9a"
AVA = "github.com/MCG-NJU/VideoMAE-Action-Detection, MODEL_ZOO.md of 26cbda8"
AMD = "github.com/MCG-NJU/AMD, docs/MODEL_ZOO.md of 7f5bdb8"
OLDER = "the card on the hub has the authors' older number, {}; that it is this file is inferred"
DRIVE = "https://drive.google.com/file/d/{}/view"
MCG, V2_FILES = "MCG-NJU/", "OpenGVLab/VideoMAE2@706cc172d65ebd4dedbee3f9c0183a93df9fa125"
K400, SSV2, UCF = "K400 top-1", "SSv2 top-1", "UCF101 top-1"
VIEWS = {K400: "5x3", SSV2: "2x3", UCF: "5x3"}
CLASSES = {K400: 400, SSV2: 174, UCF: 101}
DATA = {K400: "Kinetics-400", SSV2: "Something-Something V2", UCF: "UCF101"}


def _released(name: str, **facts: Any) -> Released:
    """Return a model with the values that most of them have."""
    common: dict[str, Any] = dict(
        address="",
        page="",
        classes=0,
        clip="16 x 224 x 224",
        size_mb=None,
        sha256="",
        licence=NC,
        scores={},
        protocol="",
        unverified="",
    )
    return Released(name, **common | facts)


def _v1(
    name: str,
    metric: str,
    epochs: int,
    score: float,
    *,
    hub: str = "",
    drive: str = "",
    **facts: Any,
) -> Released:
    """Return a VideoMAE of the original project. hub: its repository. drive: an id without one."""
    tuned = name.endswith("-ft")
    common = dict(
        form="transformers" if hub else "deepspeed" if tuned else "original",
        task="classify" if tuned else "pretrain",
        size=name.split("-")[1],
        trained=f"{DATA[metric]}, {epochs} epochs without labels"
        + (", then fine-tuned" if tuned else ""),
        address=hub and f"{PREFIX}{MCG}{hub}",
        page="" if hub else DRIVE.format(drive),
        classes=CLASSES[metric] if tuned else 0,
        scores={metric: score},
        protocol=f"{VIEWS[metric]} views{'' if tuned else ', after fine-tuning on the same data'}",
        source=f"{V1}; huggingface.co/MCG-NJU/{hub}" if hub else V1,
        unverified="" if hub else "the form of the file: inferred from others of the project",
    )
    return _released(name, **common | facts)


def _v2(name: str, file: str, task: str, trained: str, **facts: Any) -> Released:
    """Return a VideoMAE V2 of the repository with all of its files."""
    common = dict(
        address=f"{PREFIX}{V2_FILES}/{file}",
        form="half",
        task=task,
        size=name.split("-")[1],
        trained=trained,
        licence="Apache-2.0",
        source=f"{V2}; huggingface.co/OpenGVLab/VideoMAE2",
    )
    return _released(name, **common | facts)


def _v2_encoder(size: str, hub: str, **facts: Any) -> Released:
    hub = f"OpenGVLab/VideoMAEv2-{hub}"
    common = dict(
        address=PREFIX + hub,
        form="v2-folder",
        task="encoder",
        size=size,
        trained="UnlabeledHybrid (1.35 M videos) without labels",
        source=f"huggingface.co/{hub}",
        unverified="which training it is: its card says 800 epochs",
    )
    return _released(f"videomaev2-{size}", **common | facts)


def _ava(size: str, labels: bool, score: float, drive: str) -> Released:
    """Return an action detector of AVA. labels: whether Kinetics' labels were used before."""
    name = f"videomae-{size}-ava{'-labels' if labels else ''}"
    return _released(
        name,
        form="detector",
        task="detect",
        size=size,
        trained=f"AVA 2.2, from VideoMAE on Kinetics-400{', with its labels' if labels else ''}",
        page=DRIVE.format(drive),
        classes=80,
        scores={"AVA 2.2 mAP": score},
        protocol="16 frames, stride 4",
        source=AVA,
    )


def _amd(size: str, metric: str, score: float, drive: str) -> Released:
    return _released(
        f"amd-{size}-{metric.split()[0].lower()}-ft",
        form="deepspeed",
        task="classify",
        size=size,
        trained=f"{DATA[metric]}, distilled from VideoMAE-L for 800 epochs, then fine-tuned",
        page=DRIVE.format(drive),
        classes=CLASSES[metric],
        licence=UNKNOWN,
        scores={metric: score},
        protocol=f"{VIEWS[metric]} views",
        source=AMD,
        unverified="the form of the file: its code is derived from the original's",
    )


def _mmaction2(name: str, size: str, file: str, score: float, **facts: Any) -> Released:
    return _released(
        name,
        form="mmaction2",
        task="classify",
        size=size,
        trained="Kinetics-400; converted from a file of the authors",
        page=f"https://download.openmmlab.com/mmaction/v1.0/recognition/{file}",
        classes=400,
        licence=UNKNOWN,
        scores={K400: score},
        protocol="of MMAction2's own measurement, short side 320",
        source="github.com/open-mmlab/mmaction2, configs/recognition/*/metafile.yml",
        **facts,
    )


_ALL = (
    _v2(
        "videomaev2-s-k710-distilled",
        "distill/vit_s_k710_dl_from_giant.pth",
        "classify",
        "Kinetics-710, distilled from ViT-g",
        classes=710,
        size_mb=44.334609,
        sha256="24fb71687fa3671b8387cadfbcbab0f72af695692e93cf1ecc82caa888626172",
        scores={"K710 top-1": 77.6, K400: 83.7, "K600 top-1": 83.1},
        protocol="5x3 views; K400 and K600 without further training",
        unverified="float16: inferred from the size, two bytes a number and a rest of 28,037",
    ),
    _v2(
        "videomaev2-b-k710-distilled",
        "distill/vit_b_k710_dl_from_giant.pth",
        "classify",
        "Kinetics-710, distilled from ViT-g",
        classes=710,
        size_mb=173.574417,
        sha256="8141a6955e0700d11bf15928fe6d61e5cfe482606fed8cfdddb1b922c0fd88ec",
        scores={"K710 top-1": 81.5, K400: 86.6, "K600 top-1": 85.9},
        protocol="5x3 views; K400 and K600 without further training",
        unverified="float16: inferred from the size, two bytes a number and a rest of 28,037",
    ),
    _v1("videomae-s-k400", K400, 1600, 79.0, drive="1nU-H1u3eJ-VuyCveU7v-WIOcAVxs5Hww"),
    _v1(
        "videomae-b-k400",
        K400,
        1600,
        81.5,
        hub="videomae-base",
        size_mb=377,
        sha256="2e0c3f4bc73c6d287b96c30975b43d60c9fc004c548150f252278f1becd89a7d",
    ),
    _v1("videomae-b-k400-e800", K400, 800, 80.0, hub="videomae-base-short"),
    _v1(
        "videomae-l-k400",
        K400,
        1600,
        85.2,
        hub="videomae-large",
        size_mb=1370,
        sha256="c7549bea23c22ab1ab0433c2371e7c9060cf93d209ea1894a87c874a99334a60",
    ),
    _v1(
        "videomae-h-k400",
        K400,
        1600,
        86.6,
        drive="1AJQR1Rsi2N1pDn9tLyJ8DQrUREiBA1bO",
        task="encoder",
        unverified="that it has no decoder: reported, not seen",
    ),
    _v1("videomae-s-ssv2", SSV2, 2400, 66.8, drive="1p_I1aaONOeUvRmRQw1UT3-L2H8XJClHu"),
    _v1("videomae-b-ssv2", SSV2, 2400, 70.8, hub="videomae-base-ssv2"),
    _v1("videomae-b-ssv2-e800", SSV2, 800, 69.6, hub="videomae-base-short-ssv2"),
    _v1("videomae-b-ucf101", UCF, 3200, 91.3, drive="1BHev4meNgKM0o_8DMRbuzAsKSP3IpQ3o"),
    _v1(
        "videomae-s-k400-ft",
        K400,
        1600,
        79.0,
        hub="videomae-small-finetuned-kinetics",
        size_mb=88.2,
        unverified="its config.json may say 16 heads; the 6 of the original are used",
    ),
    _v1(
        "videomae-b-k400-ft",
        K400,
        1600,
        81.5,
        hub="videomae-base-finetuned-kinetics",
        size_mb=346,
        unverified=OLDER.format(80.9),
    ),
    _v1("videomae-b-k400-e800-ft", K400, 800, 80.0, hub="videomae-base-short-finetuned-kinetics"),
    _v1("videomae-l-k400-ft", K400, 1600, 85.2, hub="videomae-large-finetuned-kinetics"),
    _v1("videomae-h-k400-ft", K400, 1600, 86.6, hub="videomae-huge-finetuned-kinetics"),
    _v1(
        "videomae-s-ssv2-ft",
        SSV2,
        2400,
        66.8,
        hub="videomae-small-finetuned-ssv2",
        size_mb=87.8,
        unverified="its config.json may say 16 heads; the 6 of the original are used",
    ),
    _v1(
        "videomae-b-ssv2-ft",
        SSV2,
        2400,
        70.8,
        hub="videomae-base-finetuned-ssv2",
        size_mb=346,
        sha256="b960dafd7b3051e8be4ce7ca1bcbc051012eee2a0767f22dd6b7ca77507b82fb",
    ),
    _v1("videomae-b-ssv2-e800-ft", SSV2, 800, 69.6, hub="videomae-base-short-finetuned-ssv2"),
    _v1("videomae-b-ucf101-ft", UCF, 3200, 91.3, drive="1MSyon6fPpKz7oqD6WDGPFK4k_Rbyb6fw"),
    _v2_encoder("b", "Base", size_mb=345),
    _v2_encoder("l", "Large", size_mb=1220),
    _v2_encoder("h", "Huge"),
    _v2_encoder(
        "g",
        "giant",
        size_mb=4110,
        sha256="a231169cd13307aeb29bc56259a494ef273bfd9b7232f881ac4e8d7e39713add",
    ),
    _v2(
        "videomaev2-g-pretrained",
        "mae-g/vit_g_hybrid_pt_1200e.pth",
        "pretrain",
        "UnlabeledHybrid (1.35 M videos), 1200 epochs without labels",
        form="original",
        size_mb=4105.433973,
        sha256="5773c881d303426f2f0e906df9842c4ca95fba6a5901849a3e8d9d1ed8f79b5f",
        scores={K400: 87.2, SSV2: 77.0},
        protocol="after fine-tuning, 5x3 and 2x3 views",
        unverified="that it has the decoder: its size is that of both",
    ),
    _v2(
        "videomaev2-g-k710-ft",
        "mae-g/vit_g_hybrid_pt_1200e_k710_ft.pth",
        "classify",
        "UnlabeledHybrid without labels, then fine-tuned on Kinetics-710",
        classes=710,
        size_mb=2030,
        sha256="4c1b3fb76612bd5b767b82578833189c3fc83d351a9a25f0dcb2d9e2776ed8b3",
        scores={"K710 top-1": 83.8},
        protocol="5x3 views",
        unverified="float16: inferred from the size of the file",
    ),
    _v2(
        "videomaev2-g-ssv2-ft",
        "mae-g/vit_g_hybrid_pt_1200e_ssv2_ft.pth",
        "classify",
        "UnlabeledHybrid without labels, then fine-tuned on Something-Something V2",
        classes=174,
        size_mb=2020,
        sha256="5a210a92f035dff30c53b46157b612e7a1a5d3c99700e1b2d71da5c399ca7e70",
        scores={SSV2: 77.0},
        protocol="2x3 views",
        unverified="float16: inferred from the size of the file",
    ),
    _ava("s", False, 22.5, "1gFJ8NnPPinpDO_caBg4CXR6fTDPOCVw_"),
    _ava("s", True, 28.4, "1b9Lp64IF8vjhh19mjDdyoSSiZk6cFfKb"),
    _ava("b", False, 26.7, "19OG6aW-JKYtcgNiBLE4VXD6oAKAfklCB"),
    _ava("b", True, 31.8, "1-YgaSSM9xWc4V_HjVG-FH0LMA6KV-Qdh"),
    _amd("s", K400, 80.1, "1dJZKPHD9bYUl0UKH2qLca5JSTengJ8nq"),
    _amd("b", K400, 82.2, "1zVMMVQoODUa_OlC40d8lvI1fgZPoqPjd"),
    _amd("s", SSV2, 70.2, "1ynDyu3K_INoZjaNLzFIaYCo6kjBOwG__"),
    _amd("b", SSV2, 73.3, "1zc3ITIp4rR-dSelH0KaqMA9ahyju7sV2"),
    _mmaction2(
        "mmaction2-b-k400",
        "b",
        "videomae/vit-base-p16_videomae-k400-pre_16x4x1_kinetics-400_20221013-860a3cd3.pth",
        81.3,
    ),
    _mmaction2(
        "mmaction2-l-k400",
        "l",
        "videomae/vit-large-p16_videomae-k400-pre_16x4x1_kinetics-400_20221013-229dbb03.pth",
        85.3,
    ),
    _mmaction2(
        "mmaction2-v2-b-k400",
        "b",
        "videomaev2/vit-base-p16_videomaev2-vit-g-dist-k710-pre_16x4x1_kinetics-400/"
        "vit-base-p16_videomaev2-vit-g-dist-k710-pre_16x4x1_kinetics-400_20230510-3e7f93b2.pth",
        86.6,
        size_mb=173,
        sha256="3e7f93b2be64c7c1cbe4587a1561d7c7a277eab3bad7f87dad7a4b52ec76f367",
        unverified="float16: inferred from the size of the file",
    ),
)
RELEASED = {model.name: model for model in _ALL}
