"""Generated apical echocardiograms: sector, speckle, and dark cavities between bright walls."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from mllm.dataset.phantoms.heart import CENTER, Heart, Ventricle, ellipse_depth

LABELS = {"cavity": 1, "myocardium": 2, "atrium": 3}
"""CAMUS labels of the cavity of the left ventricle, its myocardium and the left atrium; 0 is background."""
_DYNAMIC_RANGE = 48.0
"""Range from black to white in dB."""
_STEADY = 0.75
"""Fraction of the speckle power that is equal in all frames."""


@dataclass
class Probe:
    """Phased array and its screen of `size` x `size` pixels, with a sector of `depth` mm."""

    size: int = 112
    depth: float = 155.0
    half_angle: float = 0.66
    """Angle from the middle of the sector to its edge in radians."""
    _sampling: tuple[np.ndarray, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        x, y = self.pixels
        radius, angle = np.hypot(x, y), np.arctan2(x, y)
        inside = (radius > 3) & (radius < self.depth) & (np.abs(angle) < self.half_angle)
        rows, columns = self.grid[0].shape
        row = np.clip(radius[inside] / self.depth * rows - 0.5, 0, rows - 1.001)
        column = np.clip((angle[inside] / self.half_angle + 1) / 2 * columns - 0.5, 0, columns - 1.001)
        self._sampling = inside, row, column

    @property
    def spacing(self) -> float:
        """Pixel spacing in mm, vertical and horizontal."""
        return self.depth * 1.02 / self.size

    @property
    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """x and y of all pixel centers in mm, [H, W] each; the probe is at (0, 0)."""
        axis = (np.arange(self.size) + 0.5) * self.spacing
        x, y = np.meshgrid(axis - self.size * self.spacing / 2, axis - 0.01 * self.depth)
        return x, y

    @property
    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """x and y of all samples of all beams in mm, [samples, beams] each."""
        samples, beams = round(1.3 * self.size), self.size
        radius = (np.arange(samples) + 0.5)[:, None] / samples * self.depth
        angle = (((np.arange(beams) + 0.5) / beams) * 2 - 1)[None, :] * self.half_angle
        return radius * np.sin(angle), radius * np.cos(angle)

    def to_pixel(self, points: np.ndarray) -> np.ndarray:
        """Convert points [..., 2] from mm to pixels; pixel (0, 0) extends from 0 to 1 on both axes."""
        return points / self.spacing + np.array([self.size / 2, 0.01 * self.depth / self.spacing])

    def to_screen(self, beams: np.ndarray) -> np.ndarray:
        """Convert values in [0, 1] from beams [samples, beams] to the screen [H, W] uint8, black around the sector."""
        inside, row, column = self._sampling
        r, c = row.astype(int), column.astype(int)
        fr, fc = row - r, column - c
        top = beams[r, c] * (1 - fc) + beams[r, c + 1] * fc
        low = beams[r + 1, c] * (1 - fc) + beams[r + 1, c + 1] * fc
        screen = np.zeros(inside.shape)
        screen[inside] = top * (1 - fr) + low * fr
        return np.rint(np.clip(screen, 0, 1) * 255).astype(np.uint8)


class Echo:
    """Echocardiogram of one heart in one view: images and exact masks at any phase of the beat.

    Images depend on the generator, the probe and the order of calls.
    """

    def __init__(self, heart: Heart, probe: Probe, rng: np.random.Generator, view: str = "4CH") -> None:
        self.heart, self.probe, self.view, self.rng = heart, probe, view, rng
        shape = probe.grid[0].shape
        self._filter = _point_spread(shape)
        self._speckle = self._scatterers(shape)
        beams = np.interp(np.linspace(0, 1, shape[1]), np.linspace(0, 1, 7), rng.uniform(0.45, 1.1, 7))
        self._gain = beams[None, :] * np.exp(-0.35 * np.linspace(0, 1, shape[0]))[:, None]
        self._noise = float(rng.uniform(0.008, 0.02))
        self._haze = float(rng.uniform(0.05, 0.25))
        self._tissue = 0.08 * np.exp(0.6 * _smooth(rng, shape))

    def frame(self, phase: float) -> np.ndarray:
        """Return the image [H, W] uint8 at a phase (0: end diastole, 1: end systole)."""
        x, y = self.probe.grid
        echo = self._echo(x, y, phase) * self._gain
        fresh = self._scatterers(x.shape)
        speckle = math.sqrt(_STEADY) * self._speckle + math.sqrt(1 - _STEADY) * fresh
        sent = echo * speckle + self._noise * self._scatterers(x.shape)
        received = np.fft.ifft2(np.fft.fft2(sent) * self._filter)
        decibels = 20 * np.log10(np.abs(received) + 1e-6)
        return self.probe.to_screen((decibels + _DYNAMIC_RANGE - 8) / _DYNAMIC_RANGE)

    def mask(self, phase: float) -> np.ndarray:
        """Return the mask [H, W] uint8 with the values of `LABELS` at a phase."""
        x, y = self.probe.pixels
        ventricle, wall = self._shape(phase)
        labels = np.zeros(x.shape, np.uint8)
        labels[self._atrium(ventricle, x, y, phase) > 0] = LABELS["atrium"]
        labels[ventricle.depth_inside(x, y, wall) > 0] = LABELS["myocardium"]
        labels[ventricle.depth_inside(x, y) > 0] = LABELS["cavity"]
        return labels

    def tracing(self, phase: float, chords: int = 20) -> np.ndarray:
        """Return the long axis and the chords of the cavity in pixels, [chords + 1, 4] x1 y1 x2 y2."""
        lines = self._shape(phase)[0].chords(chords)
        return self.probe.to_pixel(lines.reshape(-1, 2)).reshape(-1, 4)

    def _shape(self, phase: float) -> tuple[Ventricle, float]:
        volume = self.heart.volume_at(phase)
        return self.heart.ventricle(volume, self.view), self.heart.wall_at(volume)

    def _scatterers(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return fully developed speckle, the sum of many scatterers per sample: complex Gaussian noise."""
        return (self.rng.standard_normal(shape) + 1j * self.rng.standard_normal(shape)) / math.sqrt(2)

    def _atrium(self, ventricle: Ventricle, x: np.ndarray, y: np.ndarray, phase: float) -> np.ndarray:
        """Return the depth of points inside the left atrium in mm; it is largest at end systole."""
        u, v = ventricle.local(x, y)
        fill = 1 + 0.12 * (1 - math.cos(math.pi * phase)) / 2
        width = 0.82 * self.heart.ventricle(self.heart.edv).half_width * fill
        reach = 21.0 * fill
        return np.minimum(ellipse_depth(u - ventricle.length - 0.7 * reach, v, reach, width), u - ventricle.length)

    def _echo(self, x: np.ndarray, y: np.ndarray, phase: float) -> np.ndarray:
        """Return the echo amplitude of each point; about 1 for a bright wall."""
        ventricle, wall = self._shape(phase)
        u, v = ventricle.local(x, y)
        cavity, heart = ventricle.depth_inside(x, y), ventricle.depth_inside(x, y, wall)
        atrium = self._atrium(ventricle, x, y, phase)
        echo = self._tissue.copy()
        if self.view == "4CH":
            echo = _chamber(echo, self._right_ventricle(ventricle, u, v, wall), 0.35)
            width = 0.8 * ventricle.half_width
            right = -(ventricle.half_width + wall + 0.75 * width)
            echo = _chamber(echo, ellipse_depth(u - ventricle.length - 20, v - right, 17, width), 0.3)
        echo = _chamber(echo, atrium, 0.4)
        echo = _blend(echo, heart, 0.32)
        echo = _blend(echo, cavity, 0.006)
        # Borders perpendicular to the beams reflect strongly, borders parallel to them weakly.
        facing = 0.35 + 0.65 * np.abs(u / ventricle.length - CENTER)
        is_above_valve = u < ventricle.length
        echo += 0.5 * facing * np.exp(-((cavity / 1.4) ** 2)) * is_above_valve
        echo += 0.75 * np.exp(-((heart / 1.6) ** 2)) * is_above_valve * (v > 0)
        echo += self._valve(ventricle, u, v, phase)
        return echo + self._haze * np.exp(-np.hypot(x, y) / 14)

    def _right_ventricle(self, ventricle: Ventricle, u: np.ndarray, v: np.ndarray, wall: float) -> np.ndarray:
        """Return the depth of points inside the right ventricle in mm; it is left of the septum on the screen."""
        width = 0.42 * self.heart.ventricle(self.heart.edv).half_width + 4
        length = 0.36 * ventricle.length
        left = -(ventricle.half_width + wall + 0.9 * width)
        return ellipse_depth(u - 0.62 * ventricle.length, v - left - 0.12 * (ventricle.length - u), length, width)

    def _valve(self, ventricle: Ventricle, u: np.ndarray, v: np.ndarray, phase: float) -> np.ndarray:
        """Return the echo of the two leaflets of the mitral valve: closed in systole, open in diastole."""
        ring = ventricle.half_width * 0.79
        opening = 0.0 if phase % 2 <= 1 else math.sin(math.pi * (phase % 2 - 1)) ** 0.5
        inward = np.clip(1 - np.abs(v) / ring, 0, 1)
        leaflet = ventricle.length - 1.0 - 16 * opening * inward
        visible = (np.abs(v) < ring) & (inward < 1 - 0.55 * opening)
        return 0.55 * np.exp(-(((u - leaflet) / (1.3 + opening)) ** 2)) * visible


def _blend(echo: np.ndarray, depth: np.ndarray, value: float) -> np.ndarray:
    """Return the echo with `value` inside of a shape; the edge is about 1 mm wide."""
    weight = np.clip(depth + 0.5, 0, 1)
    return echo * (1 - weight) + value * weight


def _chamber(echo: np.ndarray, depth: np.ndarray, wall: float) -> np.ndarray:
    """Return the echo with a chamber of blood and a wall of 3 mm around it."""
    return _blend(_blend(echo, depth + 3.0, wall), depth, 0.006)


def _point_spread(shape: tuple[int, ...]) -> np.ndarray:
    """Return the transfer function [samples, beams] of the probe: sharp along the beams, blurred across, unit power."""
    rows, columns = (np.fft.fftfreq(length) for length in shape)
    spread = np.exp(-2 * np.pi**2 * ((rows[:, None] * 0.8) ** 2 + (columns[None, :] * 1.1) ** 2))
    return spread / np.sqrt(np.mean(spread**2))


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], scale: float = 6.0) -> np.ndarray:
    """Return smooth noise with a correlation length of about `scale` samples, mean 0 and standard deviation 1."""
    rows, columns = (np.fft.fftfreq(length) for length in shape)
    spread = np.exp(-2 * np.pi**2 * scale**2 * (rows[:, None] ** 2 + columns[None, :] ** 2))
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal(shape)) * spread).real
    return (noise - noise.mean()) / noise.std()
