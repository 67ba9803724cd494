"""Many numbers as one short text, which a store keeps as a raw answer."""

import base64
from collections.abc import Sequence

import numpy as np

UNIT = 0.01  # nats; finer differences mean nothing
LARGEST = 2**15 - 1
MISSING = -LARGEST - 1


def pack_scores(scores: Sequence[float]) -> str:
    """Write scores [n] in nats, NaN for a missing one, as base64 of little-endian int16 hundredths.

    Beyond 327 they are cut off.
    """
    values = np.asarray(scores, np.float64)
    hundredths = (np.clip(values, -LARGEST * UNIT, LARGEST * UNIT) / UNIT).round()
    return base64.b64encode(
        np.where(np.isnan(values), MISSING, hundredths).astype("<i2").tobytes()
    ).decode()


def unpack_scores(text: str) -> np.ndarray:
    """Read what `pack_scores` wrote, float64 [n]; of any other text nothing, [0]."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        return np.zeros(0)
    if len(data) % 2:
        return np.zeros(0)
    hundredths = np.frombuffer(data, "<i2").astype(np.float64)
    return np.where(hundredths == MISSING, np.nan, hundredths * UNIT)
