"""The public Python interface: load a model, read a clip, evaluate, predict and extract."""

import functools
import os
import tempfile
import warnings
from typing import TYPE_CHECKING, Any, cast

import jax
import numpy as np

from videomae_jax.data.videos import Videos
from videomae_jax.errors import UserError
from videomae_jax.inference.network import (
    build_network,
    check_classifier,
    check_detector,
    outputs,
)
from videomae_jax.inference.network import predict as predict_patches
from videomae_jax.interop.checkpoint_files import (
    Checkpoint,
    left_out_of,
    load_checkpoint,
    save_checkpoint,
)
from videomae_jax.models.detector import VideoDetector
from videomae_jax.models.mae import VideoMAE
from videomae_jax.models.tokens import Triple, video_grid

if TYPE_CHECKING:
    from videomae_jax.data.sampling import Choose
    from videomae_jax.inference.detect import Boxes, Detection
    from videomae_jax.inference.evaluate import Evaluation, MultiLabelEvaluation
    from videomae_jax.inference.evaluate_boxes import BoxEvaluation
    from videomae_jax.inference.predict import VideoClasses

# Functions import what only they need: TensorFlow and PyAV are slow to import, and a model that
# gets arrays needs neither.
__all__ = [
    "Model",
    "UserError",
    "evaluate",
    "evaluate_detector",
    "extract",
    "load",
    "predict",
    "read_clip",
]

File = str | os.PathLike[str]


def load(
    path: File,
    *,
    task: str | None = None,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
    frames: int | None = None,
    image_size: int | None = None,
    inflate: str | None = None,
    tubelet: int | None = None,
    channels: int | None = None,
    ema: bool = False,
    dtype: str = "auto",
    merge_tokens: int = 0,
) -> "Model":
    """Load a model.

    Args:
        path: a work directory, one of its checkpoints, a .pth, a .safetensors, or a folder of
            transformers; or one of these on the hub, "hf://OWNER/NAME[@REVISION][/PATH]"; or a
            model of `videomae models`, "models:NAME".
        task: "detect" or "classify", only needed for a file with a head whose names do not say
            it: an action detector of other classes than those of AVA.
        num_heads, decoder_num_heads: attention heads, only needed for model sizes that are not
            published.
        frames, image_size: frames and side of the training clips, for files without a config.
        inflate: for an image model: "mean" spreads the patch embedding over all frames of a
            patch, "centre" puts it on the middle one.
        tubelet: for an image model: frames of a patch.
        channels: change the patch embedding to this number of channels.
        ema: load the moving average of the weights, if the run kept one.
        dtype: of the computation; "auto" is float32 on CPUs and bfloat16 elsewhere.
        merge_tokens: of a classifier: merge so many tokens in each block, which is faster and
            changes the results, see docs/evaluation.md.

    Returns:
        The model, with float32 weights on the default device.

    Raises:
        UserError: the checkpoint is missing, damaged, incomplete or ambiguous.

    Example:
        >>> model = vm.load("runs/demo")
        >>> model.features(model.read_clip("holiday.mp4")).shape
        (1, 192)
    """
    checkpoint = load_checkpoint(
        str(path),
        task=task,
        num_heads=num_heads,
        decoder_num_heads=decoder_num_heads,
        frames=frames,
        image_size=image_size,
        inflate=inflate,
        tubelet=tubelet,
        channels=channels,
        ema=ema,
    )
    return Model(checkpoint, dtype=dtype, source=str(path), merge_tokens=merge_tokens)


def read_clip(
    path: File,
    *,
    frames: int = 16,
    stride: int = 4,
    size: int | tuple[int, int] = 224,
    start: int | None = None,
    channels: int = 3,
) -> np.ndarray:
    """Read one clip of a video, cropped and resized as evaluation does.

    Args:
        path: a video file.
        frames: frames of the clip, F.
        stride: the distance between them, in frames of the video.
        size: the side of the square clip in pixels, or (height, width).
        start: the first frame, from 0; None reads the clip in the middle of the video.
        channels: 3 for RGB, 1 for grey.

    Returns:
        uint8 [F, H, W, C], 0 to 255. If the video is too short for the clip, the last frame
        that the stride reaches is repeated.

    Raises:
        UserError: the file cannot be read, or an argument is out of range.

    Example:
        >>> clip = vm.read_clip("holiday.mp4", frames=16, stride=4, size=224)
        >>> clip.shape
        (16, 224, 224, 3)
    """
    from videomae_jax.data.sampling import middle_indices, pretrain_indices

    height, width = (size, size) if isinstance(size, int) else size
    given = dict(frames=frames, stride=stride, height=height, width=width)
    for name, value in given.items():
        if value < 1:
            raise UserError(f"{name} {value}: use 1 or more")

    def choose(count: int) -> np.ndarray:
        if start is None:
            return middle_indices(count, frames=frames, stride=stride)
        _check_start(start, count, path)
        return pretrain_indices(count, start=start, frames=frames, stride=stride)

    return _read_crop(path, choose, height=height, width=width, channels=channels)


def _choose_by_time(
    path: File, *, frames: int, stride: int, rate: float, start: int | None
) -> "Choose":
    """Return the choice of frames as of a video of `rate` frames per second, see `read_clip`."""
    from videomae_jax.data.sampling import ByTime, key_frame_offsets, nearest_frames

    def choose(seconds: np.ndarray) -> np.ndarray:
        count = len(seconds) - 1
        if start is None:
            away = key_frame_offsets(frames=frames, stride=stride)
            return nearest_frames(seconds, seconds[count // 2] + away / rate)
        _check_start(start, count, path)
        return nearest_frames(seconds, seconds[start] + stride * np.arange(frames) / rate)

    return ByTime(choose)


def _choose_sparse(*, frames: int) -> "Choose":
    """Return the choice of frames spread over the whole video."""
    from videomae_jax.data.sampling import sparse_views

    return lambda count: sparse_views(count, frames=frames, views=1)[0]


def _check_start(start: int, count: int, path: File) -> None:
    if not 0 <= start < count:
        raise UserError(f"start {start}: {path} has frames 0 to {count - 1}")


def _read_crop(
    path: File, choose: "Choose", *, height: int, width: int, channels: int
) -> np.ndarray:
    """Return chosen frames, cropped and resized as evaluation does: uint8 [F, H, W, C]."""
    from videomae_jax.data.decode import UnreadableVideo
    from videomae_jax.data.decode import read_clip as read_frames
    from videomae_jax.data.resize import resize_crop
    from videomae_jax.data.sampling import center_crop_box

    try:
        video = read_frames(os.fspath(path), choose, channels=channels)
    except UnreadableVideo as error:
        raise UserError(f"cannot read {path}: {error}") from None
    box = center_crop_box(video.shape[2], video.shape[1], target_width=width, target_height=height)
    return np.ascontiguousarray(resize_crop(video, box=box, width=width, height=height))


class Model:
    """A trained model, made by `load`.

    Methods take videos, uint8 [B, F, H, W, C], 0 to 255, and normalize them with the mean and
    std of the model. F, H and W may be any multiples of the patch; position embeddings are
    computed for the grid of the clip, unless `config.model.position_grid` sets one. The first
    call with a shape compiles. All results are float32. Methods raise UserError for a video of
    a wrong type or shape.

    Attributes:
        config: the config of the run, or one derived from the file.
        params: the parameters, float32, on the default device.
        labels: names of the classes, () if unknown.
        report: how the tensors of a foreign file were read, as text; "" for a work directory.

    Example:
        >>> model = vm.load("runs/finetune")
        >>> model.logits(model.read_clip("holiday.mp4")).argmax()
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: str = "auto",
        source: str = "the model",
        merge_tokens: int = 0,
    ):
        self._source = source
        self.config, self.labels = checkpoint.config, checkpoint.labels
        self.report = checkpoint.report
        self.params = jax.device_put(checkpoint.params)
        self._network = build_network(self.config, dtype=dtype, merge_tokens=merge_tokens)
        self._outputs = jax.jit(self._output, static_argnames="name")
        if isinstance(self._network, VideoMAE):
            self._predict = jax.jit(
                functools.partial(predict_patches, self._network),
                static_argnames=("masked", "normalized"),
            )

    def __repr__(self) -> str:
        return f"<{self.config.name}: {self.config.clip.frames} frames>"

    def read_clip(self, path: File, *, start: int | None = None) -> np.ndarray:
        """Read one clip as the model was trained on, uint8 [1, F, H, W, C].

        path, start: see the function `read_clip`. The clip of a model with sparse sampling
        (`config.clip.sampling`) spans the whole video, and has no start. That of a detector has
        `config.clip.rate` frames per second before the stride, whatever the rate of the video.
        """
        clip, channels = self.config.clip, len(self._network.mean)
        size = dict(height=clip.height, width=clip.width)
        if "rate" in clip:
            timing = dict(frames=clip.frames, stride=clip.stride, rate=clip.rate)
            choose = _choose_by_time(path, start=start, **timing)
            return _read_crop(path, choose, channels=channels, **size)[None]
        if clip.get("sampling") == "sparse":
            if start is not None:
                raise UserError(
                    f"start {start}: clips of {self._source} span whole videos, leave it out"
                )
            choose = _choose_sparse(frames=clip.frames)
            return _read_crop(path, choose, channels=channels, **size)[None]
        video = read_clip(
            path,
            frames=clip.frames,
            stride=clip.stride,
            size=(clip.height, clip.width),
            start=start,
            channels=channels,
        )
        return video[None]

    def tokens(self, video: Any) -> jax.Array:
        """Return all tokens, [B, N, D], with no patch masked.

        They are in the order of time, then rows, then columns, after the final norm of the
        encoder. A fine-tuned model has no such norm: it normalizes the mean of the tokens.
        """
        if self._network.merge_tokens:
            raise UserError("this model merges tokens: load it without merge_tokens")
        return self._outputs(self.params, self._check(video), name="tokens")

    def features(self, video: Any) -> jax.Array:
        """Return one vector for each clip, [B, D].

        It is the mean of `tokens`. For a fine-tuned model it is the input of the head: that mean
        after the norm `fc_norm`.
        """
        return self._outputs(self.params, self._check(video), name="features")

    def logits(self, video: Any) -> jax.Array:
        """Return the logits of a fine-tuned model, [B, classes].

        Their softmax are the probabilities of the classes; for a model of several labels a video
        (`config.model.multi_label`) their sigmoid.
        """
        if isinstance(self._network, VideoDetector):
            raise UserError(f"{self._source} has scores of boxes, not of videos: use detect")
        if "head" not in self.params:
            raise UserError(
                f"a model of task {self.config.task!r} has no classes: use features, or load a "
                "fine-tuned one"
            )
        return self._outputs(self.params, self._check(video), name="logits")

    def detect(
        self,
        video: File,
        boxes: "Boxes",
        *,
        every: float = 1.0,
        min_score: float | None = None,
        batch_size: int | None = None,
    ) -> "list[Detection]":
        """Name the actions of each person in a video, as `videomae predict --boxes` does.

        Args:
            video: a video file.
            boxes: around persons: a file of boxes, rows or an array of (second, x1, y1, x2, y2)
                or (second, x1, y1, x2, y2, score), or "whole", one box, the whole image. The
                corners of rows are fractions of the width and the height. score: of the person.
            every: seconds between the key times; each has the boxes nearest to it, at most half
                of this away.
            min_score: leave out persons of a lower score; None: as in the recipe.
            batch_size: clips on all devices, None for 4 on each.

        Returns:
            For each box, in the order of time, (seconds, box, person, actions): box is (x1, y1,
            x2, y2) as fractions, person the score of the person, actions the score (0 to 1) of
            each class, which the person's score does not change.

        Raises:
            UserError: the model is not a detector, the video cannot be read, or it has no boxes.

        Example:
            >>> model = vm.load("runs/detect")
            >>> found = model.detect("holiday.mp4", [(2.0, 0.1, 0.2, 0.4, 0.9)])
            >>> found[0].actions["walk"]
            0.93
        """
        from videomae_jax.inference.detect import detect

        check_detector(self.config, self._source)
        moments = detect(
            cast(VideoDetector, self._network),
            self.params,
            self.config,
            os.fspath(video),
            boxes,
            source=self._source,
            every=every,
            min_score=min_score,
            batch_size=batch_size,
        )
        return [found for moment in moments for found in moment.detections]

    def reconstruct(self, video: Any, masked: Any) -> tuple[jax.Array, jax.Array]:
        """Predict the masked patches; return (prediction [B, T, M, P], loss, a scalar).

        masked: bool [B, S], the patches masked in every time step, the same number M in each
        row. The predictions are in raster order. With config.normalized_targets, prediction and
        targets are normalized per patch and channel (paper section 3.1).
        """
        if "decoder" not in self.params:
            raise UserError(
                f"a model of task {self.config.task!r} has no decoder, it reconstructs nothing: "
                "load a pre-trained one"
            )
        video = self._check(video)
        masked, count = _check_mask(masked, video, self._network.patch)
        return self._predict(
            self.params,
            video,
            masked,
            masked=count,
            normalized=self.config.normalized_targets,
        )

    def save(self, path: File, *, format: str = "native") -> None:
        """Write the model to a new file or folder.

        format: "native", a work directory; "mcg", a .pth with the original's names;
        "safetensors", one file with the same names; "hf", a folder for transformers;
        "stablehlo", a folder with the function from a video to features and logits, for
        jax.export, and "onnx", a file with the same function: `load` reads neither.
        Warns about each setting of the model that the format cannot hold.
        """
        checkpoint = Checkpoint(self.params, self.config, self.labels, self.report)
        save_checkpoint(str(path), checkpoint, to=format)
        for line in left_out_of(self.config, format):
            warnings.warn(f"{path}: {line}", stacklevel=2)

    def _output(self, params: Any, video: jax.Array, *, name: str) -> jax.Array:
        return outputs(self._network, params, video)[name]

    def _check(self, video: Any) -> Any:
        """Return the video as an array; raise UserError if its type or shape is wrong."""
        video = video if isinstance(video, jax.Array) else np.asarray(video)
        shape, channels = list(video.shape), len(self._network.mean)
        if video.ndim != 5:
            hint = "video[None] is a batch of one" if video.ndim == 4 else "B clips of F frames"
            raise UserError(f"video is {shape}: give [B, F, H, W, C]; {hint}")
        if video.dtype != np.uint8:
            raise UserError(f"video is {video.dtype}: give uint8, 0 to 255, not normalized")
        if shape[-1] != channels:
            raise UserError(f"video is {shape}, {shape[-1]} channels last: give {channels}")
        if not shape[0]:
            raise UserError(f"video is {shape}, no clips: give 1 or more")
        video_grid(video, self._network.patch)  # raises for a side that no patches fill
        return video


def _check_mask(masked: Any, video: Any, patch: Triple) -> tuple[np.ndarray, int]:
    """Return the mask as an array, and the number of patches that each row masks."""
    masked = np.asarray(masked)
    _, rows, columns = video_grid(video, patch)
    clips, patches = len(video), rows * columns
    if masked.dtype != np.bool_ or masked.shape != (clips, patches):
        raise UserError(
            f"masked is {masked.dtype} {list(masked.shape)}: give bool {[clips, patches]}, "
            "one row of patches per clip"
        )
    counts = masked.sum(axis=1)
    least, most = int(counts.min()), int(counts.max())
    if least != most:
        raise UserError(f"masked hides {least} to {most} patches: hide as many in every clip")
    if not 0 < most < patches:
        raise UserError(f"masked hides {most} of {patches} patches: hide 1 to {patches - 1}")
    return masked, most


def evaluate(
    model: Model | File,
    videos: Videos | File,
    *,
    views: str | None = None,
    batch_size: int | None = None,
    out: File | None = None,
) -> "Evaluation | MultiLabelEvaluation":
    """Measure a classifier on labelled videos, as `videomae evaluate` does.

    A detector has its own function, `evaluate_detector`: its arguments and results are others.

    Args:
        model: a fine-tuned model, or its path.
        videos: a list, a folder or packed records, with labels.
        views: "SxC", S clips over time by C crops; None: the views of the recipe.
        batch_size: videos on all devices, None for one on each.
        out: a folder for the scores, the list of unreadable videos and the confusion matrix. The
            same call resumes from the scores in it.

    Returns:
        top1 and top5 (0 to 1, with 95 % intervals), an accuracy for each class, the confusion
        matrix and probabilities float32 [n, classes]; see `inference.evaluate.Evaluation`. For a
        model of several labels a video: map and hit (0 to 1), an average precision for each class
        and probabilities, see `MultiLabelEvaluation`. For a type checker, narrow the
        result by `isinstance`.

    Raises:
        UserError: the model has no classes or not those of the labels, or an argument is out of
            range.

    Example:
        >>> vm.evaluate("runs/finetune", "val.csv", views="2x3").top1.value
        0.83
    """
    from videomae_jax.inference.evaluate import evaluate as evaluate_model

    model = _open_model(model)
    check_classifier(model.config, model._source)  # before a file of boxes is read as a list
    found = evaluate_model(
        model._network,
        model.params,
        model.config,
        _open_videos(videos),
        source=model._source,
        views=views,
        batch_size=batch_size,
        out=None if out is None else os.fspath(out),
    )
    assert found is not None  # only `stopped`, which is not given, makes it None
    return found


def evaluate_detector(
    model: Model | File,
    annotations: File,
    *,
    boxes: File | None = None,
    min_score: float | None = None,
    protocol: str = "published",
    evaluated: File | None = None,
    excluded: File | None = None,
    videos: File | None = None,
    start: float | None = None,
    batch_size: int | None = None,
    out: File | None = None,
) -> "BoxEvaluation":
    """Measure a detector on annotated key frames, as `videomae evaluate` does.

    `evaluate` is the same for classifiers.

    Args:
        model: a detector, or its path.
        annotations: a file of boxes with actions, see docs/detection.md.
        boxes: a file of boxes of a person detector. None gives the model the annotated boxes,
            which is an upper bound.
        min_score: lowest score of a person in `boxes`; None: as in the recipe.
        protocol: how mAP is computed, "published", "official" or "mmaction2", see
            docs/evaluation.md.
        evaluated: a list of the classes that count; None: as in the recipe, of AVA the usual 60.
        excluded: a csv of key frames (video, second) that do not count; None: all count, also
            those that the recipe leaves out.
        videos: the folder of the videos; None: as in the recipe.
        start: the second of the annotations at which the video files begin; None: as in the
            recipe.
        batch_size: key frames on all devices, None for one on each.
        out: a folder for the scores, the detections, the precision of each class and the list of
            unreadable videos. The same call resumes from the scores in it, also with another
            protocol.

    Returns:
        map (0 to 1), the average precision of each class and the scores of each box; see
        `inference.evaluate_boxes.BoxEvaluation`.

    Raises:
        UserError: the model is not a detector, a file cannot be read, the boxes are of other
            videos, or an argument is out of range.

    Example:
        >>> vm.evaluate_detector("runs/detect", "val.csv", boxes="val_boxes.csv").map
        0.31
    """
    from videomae_jax.inference.evaluate_boxes import evaluate_files

    model = _open_model(model)

    def text(path: File | None) -> str | None:
        return None if path is None else os.fspath(path)

    found = evaluate_files(
        model._network,
        model.params,
        model.config,
        os.fspath(annotations),
        source=model._source,
        boxes=text(boxes),
        min_score=min_score,
        protocol=protocol,
        evaluated=text(evaluated),
        excluded=text(excluded),
        videos=text(videos),
        start=start,
        batch_size=batch_size,
        out=text(out),
    )
    assert found is not None  # only `stopped`, which is not given, makes it None
    return found


def predict(
    model: Model | File, videos: Videos | File, *, top: int | None = None
) -> "list[VideoClasses]":
    """Name the actions in videos, as `videomae predict` does.

    Args:
        model: a fine-tuned model, or its path.
        videos: a video, a list or a folder.
        top: how many classes to return; None for up to 5, or, of a model of several labels a
            video, those with a probability above 0.5.

    Returns:
        For each video, in order, its most likely classes, (name, probability 0 to 1), and those
        of each window. `error` is the reason if the video cannot be read.

    Raises:
        UserError: the model has no classes, or not `top` of them.

    Example:
        >>> vm.predict("runs/finetune", "holiday.mp4")[0].top[0]
        Likely(name='walk', probability=0.93)
    """
    from videomae_jax.inference.predict import predict as predict_classes

    model, videos = _open_model(model), _open_videos(videos)
    found = predict_classes(
        model._network, model.params, model.config, videos, source=model._source, top=top
    )
    order = {path: position for position, path in enumerate(videos.paths)}
    return sorted(found, key=lambda video: order[video.video])


def extract(
    model: Model | File,
    videos: Videos | File,
    *,
    out: File | None = None,
    pool: str = "clip",
    window: int | None = None,
    stride: int | None = None,
    hop: int | None = None,
    batch_size: int | None = None,
) -> dict[str, np.ndarray] | None:
    """Compute features of videos, window by window, as `videomae extract` does.

    Args:
        model: a model of any kind, or its path.
        videos: a video, a list or a folder.
        out: a new .npz or .parquet file, or a new folder of one .npy a video, with a name that
            ends in "/"; None returns the arrays, which must fit in memory.
        pool: "clip", the mean of all tokens [D]; "time", the mean of each time step [T, D];
            "tokens", all tokens [N, D].
        window, stride: frames of a window and the distance between them, None: as in training.
        hop: frames between the starts of two windows, None: windows do not overlap.
        batch_size: windows on all devices, None for 8 on each.

    Returns:
        Without `out`, a row for each of n windows: video int64 [n], the position of its path in
        paths; start and end float64 [n], seconds; first_frame and last_frame int64 [n]; features
        float32 [n, ...]. With `out`, None; the file has the same arrays.

    Raises:
        UserError: no video can be read, or an argument is out of range.

    Example:
        >>> vm.extract("runs/demo", "holiday.mp4", hop=32)["features"].shape
        (9, 192)
    """
    from videomae_jax.inference.extract import extract as extract_features

    model, videos = _open_model(model), _open_videos(videos)
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "features.npz") if out is None else os.fspath(out)
        extract_features(
            model._network,
            model.params,
            model.config,
            videos,
            out=file,
            pool=pool,
            window=window,
            stride=stride,
            hop=hop,
            batch_size=batch_size,
        )
        if out is not None:
            return None
        with np.load(file) as arrays:
            return dict(arrays)


def _open_model(model: Model | File) -> Model:
    return model if isinstance(model, Model) else load(model)


def _open_videos(videos: Videos | File) -> Videos:
    from videomae_jax.data.sources import read_videos

    return videos if isinstance(videos, Videos) else read_videos(videos)
