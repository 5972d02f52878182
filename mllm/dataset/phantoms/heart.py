"""Model of a beating left ventricle with exact volumes: shape in two apical views over one beat."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

VIEWS = ("4CH", "2CH")
"""The apical four-chamber and two-chamber views, which are perpendicular to each other."""
CENTER = 0.62
"""Position of the greatest width along the long axis, from the apex (0) to the mitral valve (1)."""
FULLNESS = 1 - (CENTER**3 + (1 - CENTER) ** 3) / (3 * CENTER**2)
"""Mean squared width along the long axis divided by the squared greatest width."""
LENGTHWISE = 0.25
"""Exponent of the length as a function of the volume; the two widths account for the rest in equal parts."""


@dataclass(frozen=True)
class Ventricle:
    """Cavity in one view at one time: an ellipse that ends at the mitral valve, in mm.

    x points to the right and y away from the probe, which is at (0, 0).
    """

    apex: tuple[float, float]
    tilt: float
    """Angle of the long axis from vertical to the right, in radians."""
    length: float
    """Distance from the apex to the middle of the mitral valve."""
    half_width: float
    """Half of the greatest width."""

    @property
    def axis(self) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors [2] from the apex to the valve and to the right of it."""
        sin, cos = math.sin(self.tilt), math.cos(self.tilt)
        return np.array([sin, cos]), np.array([cos, -sin])

    def local(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the coordinates of points along the long axis, from the apex, and to the right of it, in mm."""
        along, across = self.axis
        dx, dy = x - self.apex[0], y - self.apex[1]
        return dx * along[0] + dy * along[1], dx * across[0] + dy * across[1]

    def depth_inside(self, x: np.ndarray, y: np.ndarray, wall: float = 0.0) -> np.ndarray:
        """Return the depth of points inside the cavity, enlarged by `wall` mm, in mm; negative outside.

        Both shapes end at the plane of the mitral valve. The depth is a first-order approximation near the border.
        """
        u, v = self.local(x, y)
        return np.minimum(
            ellipse_depth(u - CENTER * self.length, v, CENTER * self.length + wall, self.half_width + wall),
            self.length - u,
        )

    def half_widths(self, along: np.ndarray) -> np.ndarray:
        """Return half of the width in mm at positions along the long axis, from the apex (0) to the valve (1)."""
        return self.half_width * np.sqrt(np.maximum(1 - ((along - CENTER) / CENTER) ** 2, 0))

    def chords(self, count: int = 20) -> np.ndarray:
        """Return the long axis and the chords of `count` discs, apex first: [count + 1, 4] x1 y1 x2 y2 in mm.

        A chord passes through the middle of its disc. This is the format of tracings in EchoNet-Dynamic.
        """
        along, across = self.axis
        positions = (np.arange(count) + 0.5) / count
        middles = np.array(self.apex) + positions[:, None] * self.length * along
        reach = self.half_widths(positions)[:, None] * across
        long_axis = np.concatenate([self.apex, np.array(self.apex) + self.length * along])
        return np.vstack([long_axis, np.hstack([middles - reach, middles + reach])])


def ellipse_depth(u: np.ndarray, v: np.ndarray, a: float, b: float) -> np.ndarray:
    """Return the depth of points inside an ellipse with semi-axes `a` and `b`, to first order; negative outside."""
    radius = np.sqrt((u / a) ** 2 + (v / b) ** 2)
    slope = np.sqrt((u / a**2) ** 2 + (v / b**2) ** 2)
    return (1 - radius) * radius / np.maximum(slope, 1e-9)


@dataclass(frozen=True)
class Heart:
    """Left ventricle of one patient: volumes in mL and position relative to the probe."""

    edv: float
    """End-diastolic volume."""
    esv: float
    """End-systolic volume."""
    slenderness: float = 1.8
    """Ratio of the length to the mean width at end diastole."""
    flatness: float = 1.0
    """Ratio of the widths in the two-chamber view and the four-chamber view."""
    wall: float = 9.5
    """Thickness of the myocardium at end diastole, in mm."""
    apex: tuple[float, float] = (6.0, 26.0)
    tilt: float = -0.1

    @property
    def ef(self) -> float:
        """The ejection fraction in percent."""
        return 100 * (self.edv - self.esv) / self.edv

    @property
    def measures(self) -> dict[str, float]:
        """EF in percent, EDV and ESV in mL."""
        return {"EF": self.ef, "EDV": self.edv, "ESV": self.esv}

    def ventricle(self, volume: float, view: str = "4CH") -> Ventricle:
        """Return the cavity with exactly a `volume` in mL.

        The volume of a stack of ellipses is pi * half width (4CH) * half width (2CH) * length * `FULLNESS`.
        """
        relaxed = (4e3 * self.edv * self.slenderness**2 / (math.pi * FULLNESS)) ** (1 / 3)
        length = relaxed * (volume / self.edv) ** LENGTHWISE
        area = 1e3 * volume / (math.pi * FULLNESS * length)
        half_width = math.sqrt(area / self.flatness if view == "4CH" else area * self.flatness)
        return Ventricle(self.apex, self.tilt, length, half_width)

    def wall_at(self, volume: float) -> float:
        """Return the thickness of the myocardium in mm at a volume in mL, for constant mass and a round heart.

        The equation is solved by bisection.
        """
        cavity, relaxed = self.ventricle(volume), self.ventricle(self.edv)

        def mass(ventricle: Ventricle, wall: float) -> float:
            width = ventricle.half_width
            return (width + wall) ** 2 * (ventricle.length + wall) - width**2 * ventricle.length

        low, high, target = 0.0, 40.0, mass(relaxed, self.wall)
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if mass(cavity, middle) < target else (low, middle)
        return low

    def volume_at(self, phase: float) -> float:
        """Return the volume in mL at a phase: 0 and 2 are end diastole, 1 end systole.

        Filling is fast at first, then slow.
        """
        phase = phase % 2
        if phase <= 1:
            fraction = 0.5 + 0.5 * math.cos(math.pi * phase)
        else:
            fraction = 0.5 - 0.5 * math.cos(math.pi * (phase - 1) ** 0.75)
        return self.esv + (self.edv - self.esv) * fraction


def draw_heart(rng: np.random.Generator, round_heart: bool = True) -> Heart:
    """Return a random patient: 65 percent have a normal EF, the others a reduced EF and a larger, rounder heart.

    EF is 15 to 75 percent, EDV 55 to 240 mL. With `round_heart` the widths in both views are equal, as methods with a
    single view assume.
    """
    ef = rng.normal(60, 5) if rng.random() < 0.65 else rng.uniform(16, 52)
    ef = float(np.clip(ef, 15, 75))
    edv = float(np.clip(105 * np.exp(rng.normal(0, 0.22)) + 1.2 * max(0.0, 55 - ef), 55, 240))
    return Heart(
        edv=edv,
        esv=edv * (1 - ef / 100),
        slenderness=float(rng.normal(1.85, 0.06) - 0.006 * max(0.0, 55 - ef)),
        flatness=1.0 if round_heart else float(rng.uniform(0.85, 1.1)),
        wall=float(rng.uniform(8, 11)),
        apex=(float(rng.uniform(0, 14)), float(rng.uniform(23, 29))),
        tilt=float(rng.uniform(-0.25, 0.05)),
    )
