"""Names of the array types that modules hand to one another."""

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
"""Values from 0 to 255: one image (H, W, C), several (N, H, W, C), or a gray image (H, W)."""

Float32Array = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]

Size = tuple[int, int]
"""Height and width, in pixels."""
