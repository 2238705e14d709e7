"""ICC profiles for color spaces that a file gives as numbers (cICP, nclx, gAMA and cHRM)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

__all__ = ["Chromaticities", "gamma_profile", "numbered_profile"]

Matrix = tuple[tuple[float, float, float], ...]
Vector = tuple[float, float, float]


class Chromaticities(NamedTuple):
    """The x and y of white, red, green and blue."""

    white: tuple[float, float]
    red: tuple[float, float]
    green: tuple[float, float]
    blue: tuple[float, float]


_D65 = (0.3127, 0.3290)
_SRGB = Chromaticities(_D65, (0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
_PAL = _SRGB._replace(green=(0.290, 0.600))
_NTSC = Chromaticities(_D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070))
_PRIMARIES: dict[int, Chromaticities] = {
    1: _SRGB,
    2: _SRGB,  # unspecified
    4: Chromaticities((0.310, 0.316), (0.67, 0.33), (0.21, 0.71), (0.14, 0.08)),
    5: _PAL,
    6: _NTSC,
    7: _NTSC,
    8: Chromaticities((0.310, 0.316), (0.681, 0.319), (0.243, 0.692), (0.145, 0.049)),
    9: Chromaticities(_D65, (0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: Chromaticities((0.314, 0.351), (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    12: Chromaticities(_D65, (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    22: Chromaticities(_D65, (0.630, 0.340), (0.295, 0.605), (0.155, 0.077)),
}

_SRGB_CURVE = 13
# Like browsers, show the curves of television (1, 6, 11, 14, 15) as sRGB.
_LIKE_SRGB = frozenset({1, 2, 6, 7, 11, 13, 14, 15})
_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
_PQ, _SMPTE_428, _HLG = 16, 17, 18

_TABLE = 4096
_WHITE_NITS = 203.0
"""Brightness of white paper in HDR, by ITU-R BT.2408."""
_PEAK = 1000.0 / _WHITE_NITS
_USUAL_GAMMA = 1 / 2.2
_LIKE_USUAL = 0.05
"""The greatest relative difference from the gamma of sRGB; libpng has the same threshold."""

# Bradford's matrix from XYZ to cone responses, and the white of all ICC profiles.
_BRADFORD: Matrix = (
    (0.8951, 0.2664, -0.1614),
    (-0.7502, 1.7135, 0.0367),
    (0.0389, -0.0685, 1.0296),
)
_D50: Vector = (0.9642, 1.0, 0.8249)


def numbered_profile(primaries: int, transfer: int) -> bytes | None:
    """Make an ICC profile from two numbers of ITU-T H.273; `None` means sRGB or unknown."""
    chromaticities = _PRIMARIES.get(primaries)
    curve = _curve(transfer)
    if chromaticities is None or curve is None:
        return None
    if chromaticities == _SRGB and transfer in _LIKE_SRGB:
        return None
    return _matrix_profile(chromaticities, curve)


def gamma_profile(gamma: float | None, chromaticities: Sequence[float] | None) -> bytes | None:
    """Make an ICC profile from the gAMA and cHRM chunks of a PNG; `None` means sRGB."""
    if not gamma or gamma <= 0:
        return None
    primaries = _SRGB
    if chromaticities is not None and len(chromaticities) == 8:  # noqa: PLR2004 - four pairs
        pairs: Any = zip(chromaticities[::2], chromaticities[1::2], strict=True)
        primaries = Chromaticities(*pairs)
        if not all(y > 0 and x + y <= 1 for x, y in primaries):
            primaries = _SRGB
    near = all(
        abs(one - other) < 0.001  # noqa: PLR2004 - chunks round to five places
        for pair, usual in zip(primaries, _SRGB, strict=True)
        for one, other in zip(pair, usual, strict=True)
    )
    usual_gamma = abs(gamma / _USUAL_GAMMA - 1) < _LIKE_USUAL
    if usual_gamma and near:
        return None
    curve = _srgb_curve() if usual_gamma else _gamma_curve(1 / gamma)
    return _matrix_profile(primaries, curve)


def _curve(transfer: int) -> bytes | None:
    if transfer in _LIKE_SRGB:
        return _srgb_curve()
    if transfer in _GAMMAS:
        return _gamma_curve(_GAMMAS[transfer])
    if transfer == _SMPTE_428:
        return _gamma_curve(2.6)
    if transfer == _PQ:
        return _table_curve(_pq_light)
    if transfer == _HLG:
        return _table_curve(_hlg_light)
    return None


def _srgb_curve() -> bytes:
    values = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    return b"para\0\0\0\0\0\x03\0\0" + b"".join(map(_fixed, values))


def _gamma_curve(gamma: float) -> bytes:
    return b"para\0\0\0\0\0\0\0\0" + _fixed(gamma)


def _table_curve(light: Callable[[float], float]) -> bytes:
    """Write a curve as a table, with light above white paper toned down."""
    values = [_toned(light(index / (_TABLE - 1))) for index in range(_TABLE)]
    words = b"".join(round(min(1.0, value) * 65535).to_bytes(2, "big") for value in values)
    return b"curv\0\0\0\0" + _TABLE.to_bytes(4, "big") + words


def _toned(light: float) -> float:
    """Map light up to the peak to at most 1, as browsers do."""
    return light * (1 + light / _PEAK**2) / (1 + light)


def _pq_light(signal: float) -> float:
    root = signal ** (1 / 78.84375)
    share = max(0.0, root - 0.8359375) / (18.8515625 - 18.6875 * root)
    return float(10_000 / _WHITE_NITS * share ** (1 / 0.1593017578125))


def _hlg_light(signal: float) -> float:
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    low = signal <= 0.5  # noqa: PLR2004 - where the square root ends and the logarithm begins
    scene = signal**2 / 3 if low else (math.exp((signal - c) / a) + b) / 12
    return float(scene**1.2 * _PEAK)


def _matrix_profile(colors: Chromaticities, curve: bytes) -> bytes:
    """Write an ICC profile of three primaries and one curve."""
    tags = {
        b"desc": b"desc\0\0\0\0\0\0\0\x01\0" + bytes(78),
        b"cprt": b"text\0\0\0\0\0",
        b"wtpt": _xyz(_D50),
    }
    for name, column in zip((b"r", b"g", b"b"), zip(*_to_d50(colors), strict=True), strict=True):
        tags[name + b"XYZ"] = _xyz(column)
        tags[name + b"TRC"] = curve
    table, body = len(tags).to_bytes(4, "big"), b""
    start = 128 + 4 + 12 * len(tags)
    for tag, content in tags.items():
        table += tag + (start + len(body)).to_bytes(4, "big") + len(content).to_bytes(4, "big")
        body += content + bytes(-len(content) % 4)
    size = start + len(body)
    header = size.to_bytes(4, "big") + b"\0\0\0\0\x04\x30\0\0mntrRGB XYZ " + bytes(12) + b"acsp"
    header += bytes(28) + b"".join(map(_fixed, _D50))
    return header.ljust(128, b"\0") + table + body


def _to_d50(colors: Chromaticities) -> Matrix:
    """Compute the matrix from linear RGB to XYZ, adapted to the white of ICC profiles."""
    unscaled = _transposed(tuple(_to_xyz(*pair) for pair in colors[1:]))
    white = _to_xyz(*colors.white)
    scale = _times(_inverse(unscaled), white)
    to_xyz = tuple(tuple(v * s for v, s in zip(row, scale, strict=True)) for row in unscaled)
    ours, theirs = _times(_BRADFORD, white), _times(_BRADFORD, _D50)
    gains = [t / o for t, o in zip(theirs, ours, strict=True)]
    adapted = tuple(
        tuple(gain * v for v in row) for gain, row in zip(gains, _BRADFORD, strict=True)
    )
    return _product(_product(_inverse(_BRADFORD), adapted), to_xyz)


def _to_xyz(x: float, y: float) -> Vector:
    return (x / y, 1.0, (1 - x - y) / y)


def _times(matrix: Any, vector: Sequence[float]) -> Vector:
    a, b, c = (sum(m * v for m, v in zip(row, vector, strict=True)) for row in matrix)
    return (a, b, c)


def _transposed(matrix: Any) -> Matrix:
    return tuple(zip(*matrix, strict=True))


def _product(left: Any, right: Any) -> Matrix:
    columns = [_times(left, column) for column in _transposed(right)]
    return _transposed(columns)


def _inverse(matrix: Any) -> Matrix:
    (a, b, c), (d, e, f), (g, h, i) = matrix
    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    if not determinant:  # three primaries on one line
        return ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    rows = (
        (e * i - f * h, c * h - b * i, b * f - c * e),
        (f * g - d * i, a * i - c * g, c * d - a * f),
        (d * h - e * g, b * g - a * h, a * e - b * d),
    )
    return tuple((x / determinant, y / determinant, z / determinant) for x, y, z in rows)


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_fixed, values))


def _fixed(value: float) -> bytes:
    clipped = max(-32767.0, min(32767.0, value))
    return round(clipped * 65536).to_bytes(4, "big", signed=True)
