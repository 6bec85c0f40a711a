"""Draw labelled videos of stick figures, to try the program where no videos are."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from videomae_jax.data.encode import FilmWriter
from videomae_jax.paths import make_folder, writing

ACTIONS = ("bow", "jump", "kick", "squat", "walk", "wave")
HEIGHT = 96  # of a film in pixels
RATE = 16  # frames a second
# Lengths of a figure, whose height is 1. It stands on y = 0.
HIP, LEG, BODY, ARM, HEAD = 0.5, 0.25, 0.3, 0.17, 0.08
LIMB = 0.04  # half the thickness of arms and legs
SCALE = 2  # films are drawn larger and shrunk, which smooths lines

Point = tuple[float, float]


def draw_clips(folder: Path, count: int, *, seed: int) -> list[Path]:
    """Write `count` films of one figure each, two seconds long, into a folder for each action.

    Returns their paths. Size, colours, place, speed and direction of the figures are random.
    """
    rng = np.random.default_rng(seed)
    paths = []
    for index in range(count):
        action = ACTIONS[index % len(ACTIONS)]
        path = _new_folder(folder / action) / f"{index // len(ACTIONS):03d}.mp4"
        figure = _Figure(rng, action, x=rng.uniform(0.45, 0.55), scale=rng.uniform(0.75, 0.85))
        _write(path, [figure], _background(rng, HEIGHT), seconds=2)
        paths.append(path)
    return paths


def draw_scenes(folder: Path, count: int, *, seed: int) -> list[Path]:
    """Write `count` films of one to three figures, three seconds long, and their boxes.

    boxes.csv has a row for each figure at seconds 1 and 2, with its action. Returns the paths of
    the films.
    """
    rng = np.random.default_rng(seed)
    paths, rows = [], []
    width = HEIGHT * 2
    for index in range(count):
        path = _new_folder(folder) / f"{index:03d}.mp4"
        places = rng.permutation(3)[: rng.integers(1, 4)]
        figures = [
            _Figure(
                rng,
                str(rng.choice(ACTIONS)),
                x=(place + 0.5) * 2 / 3 + rng.uniform(-0.1, 0.1),
                scale=rng.uniform(0.5, 0.7),
            )
            for place in places
        ]
        _write(path, figures, _background(rng, width), seconds=3)
        paths.append(path)
        for second in (1, 2):
            for person, figure in enumerate(figures, 1):
                left, top, right, bottom = figure.box(second)
                corners = np.clip([left / 2, top, right / 2, bottom], 0, 1).round(3)
                rows.append([path.name, second, *corners, figure.action, person])
    with open(folder / "boxes.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["video", "timestamp", "x1", "y1", "x2", "y2", "action", "person"])
        table.writerows(rows)
    return paths


def _new_folder(folder: Path) -> Path:
    with writing(folder):
        make_folder(folder)
    return folder


def _background(rng: np.random.Generator, width: int) -> Image.Image:
    """Return a wall with a few panels and a floor."""
    size = width * SCALE, HEIGHT * SCALE
    wall = rng.integers(170, 240) + rng.integers(-12, 13, 3)
    image = Image.new("RGB", size, tuple(wall.tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        x, y = int(rng.integers(0, size[0])), int(rng.integers(0, size[1] // 2))
        side = rng.integers(10, 70, 2).tolist()
        colour = tuple((wall + rng.integers(-25, 15)).tolist())
        draw.rectangle((x, y, x + side[0], y + side[1]), fill=colour)
    floor = tuple((wall - rng.integers(30, 60)).tolist())
    draw.rectangle((0, size[1] * 0.8, size[0], size[1]), fill=floor)
    return image


class _Figure:
    """A figure that repeats one action. x, scale: its place and size, the film's height is 1."""

    def __init__(self, rng: np.random.Generator, action: str, *, x: float, scale: float):
        self.action, self.x, self.scale = action, x, scale
        self.side = rng.choice((-1, 1))  # the direction it faces
        self.speed, self.phase = rng.uniform(0.8, 1.2), rng.uniform(0, 1)  # cycles a second
        self.ground = rng.uniform(0.9, 0.94)
        self.colours = [tuple(rng.integers(0, 130, 3).tolist()) for _ in range(2)]
        self.skin = tuple((np.array((236, 188, 150)) * rng.uniform(0.3, 0.8)).astype(int).tolist())

    def limbs(self, seconds: float) -> list[tuple[list[Point], Any]]:
        """Return the lines of the figure with their colours, the head last, as a point."""
        turn = 2 * math.pi * (seconds * self.speed + self.phase)
        pose = _pose(self.action, turn)
        hip = (pose["step"], HIP - pose["crouch"] + pose["lift"])
        neck = _from(hip, math.pi - pose["lean"], BODY)
        shirt, trousers = self.colours
        lines = []
        for foot in pose["feet"]:
            ankle = (foot[0] + pose["step"], foot[1] + pose["lift"])
            lines.append(([hip, _knee(hip, ankle), ankle], trousers))
        lines.append(([hip, neck], shirt))
        for angle, bend in pose["arms"]:
            elbow = _from(neck, angle - pose["lean"], ARM)
            lines.append(([neck, elbow, _from(elbow, angle - pose["lean"] + bend, ARM)], shirt))
        lines.append(([_from(neck, math.pi - pose["lean"], HEAD * 1.6)], self.skin))
        return [([self._place(point) for point in line], colour) for line, colour in lines]

    def box(self, seconds: float) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom; the height of the film is 1."""
        x, y = np.array([point for line, _ in self.limbs(seconds) for point in line]).T
        margin = HEAD * self.scale
        return x.min() - margin, y.min() - margin, x.max() + margin, y.max() + margin / 2

    def draw(self, draw: ImageDraw.ImageDraw, seconds: float) -> None:
        """Draw the figure at a time."""
        unit = HEIGHT * SCALE
        for line, colour in self.limbs(seconds):
            radius = unit * self.scale * (HEAD if len(line) == 1 else LIMB)
            points = [(x * unit, y * unit) for x, y in line]
            draw.line(points, fill=colour, width=round(2 * radius))
            for x, y in points:
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    def _place(self, point: Point) -> Point:
        return (
            self.x + self.side * point[0] * self.scale,
            self.ground - point[1] * self.scale,
        )


def _pose(action: str, turn: float) -> dict[str, Any]:
    """Return what an action does to the standing figure. turn: its phase, in radians.

    An angle is that of a line from straight down, positive to the front.
    """
    swing, up = math.sin(turn), (1 - math.cos(turn)) / 2
    pose: dict[str, Any] = dict(step=0.0, crouch=0.0, lift=0.0, lean=0.0)
    pose |= dict(feet=[(-0.06, 0.0), (0.06, 0.0)], arms=[(-0.2, 0.1), (0.2, 0.2)])
    if action == "bow":
        pose |= dict(lean=1.4 * up)
    elif action == "jump":
        pose |= dict(lift=0.15 * up, arms=[(-0.3 - 1.8 * up, 0), (0.3 + 1.8 * up, 0)])
    elif action == "kick":
        pose["feet"] = [(-0.06, 0.0), (0.06 + 0.38 * up, 0.4 * up)]
    elif action == "squat":
        pose |= dict(crouch=0.28 * up, arms=[(1.5 * up, 0), (0.2 + 1.4 * up, 0)])
    elif action == "walk":
        height = 0.06 * math.cos(turn)
        pose["feet"] = [(0.18 * swing, max(0, height)), (-0.18 * swing, max(0, -height))]
        pose |= dict(step=0.12 * math.sin(turn / 4), crouch=0.02)
        pose["arms"] = [(-0.6 * swing, 0.4), (0.6 * swing, 0.4)]
    elif action == "wave":
        pose["arms"] = [(-0.2, 0.1), (2.4, 0.7 * math.sin(2 * turn))]
    return pose


def _from(point: Point, angle: float, length: float) -> Point:
    return point[0] + length * math.sin(angle), point[1] - length * math.cos(angle)


def _knee(hip: Point, ankle: Point) -> Point:
    """Return the knee of a leg of two parts of length LEG, bent to the front."""
    across, down = ankle[0] - hip[0], ankle[1] - hip[1]
    distance = math.hypot(across, down)
    bend = math.sqrt(max(0, LEG**2 - distance**2 / 4)) / distance
    return (hip[0] + ankle[0]) / 2 - down * bend, (hip[1] + ankle[1]) / 2 + across * bend


def _write(path: Path, figures: list[_Figure], background: Image.Image, *, seconds: int) -> None:
    size = background.width // SCALE, HEIGHT
    with FilmWriter(path, height=HEIGHT, width=size[0], rate=RATE) as film:
        for index in range(seconds * RATE):
            image = background.copy()
            for figure in figures:
                figure.draw(ImageDraw.Draw(image), index / RATE)
            picture = np.asarray(image.resize(size, Image.Resampling.BOX))
            film.add(picture, start=index / RATE, end=(index + 1) / RATE)
