"""Tensors to PNG pictures inside the page, as data URIs.

Small images keep every pixel and are enlarged by the browser without smoothing; images above `LARGEST_SIDE` are reduced
to it, because the page shows thumbnails and must stay small.
"""

import base64
import io
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

SHOWN_SIDE = 84
"""About the side of a shown picture, in CSS pixels: three times 28."""
LARGEST_SIDE = 112


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture for an ``<img>``.

    Attributes:
        source: A ``data:image/png`` URI.
        width: Shown width in CSS pixels, a whole multiple of the image's own wherever it is smaller than shown.
        height: Shown height in CSS pixels.
        pixelated: True if every pixel is shown as a square.
    """

    source: str
    width: int
    height: int
    pixelated: bool


def draw_picture(image: Tensor) -> Picture:
    """Encode one image.

    Args:
        image: (C, H, W), C 1 or 3, uint8 in [0, 255] or floats in [0, 1]; values that are not finite become black.
    """
    pixels = _to_bytes(image)
    picture = Image.fromarray(pixels[0].numpy() if pixels.shape[0] == 1 else pixels.permute(1, 2, 0).numpy())
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    factor = _enlargement(max(picture.size))
    return Picture(
        source=encode_png(picture),
        width=round(picture.width * factor),
        height=round(picture.height * factor),
        pixelated=factor == int(factor),
    )


def encode_png(picture: Image.Image) -> str:
    """Return a picture as a ``data:image/png`` URI."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _to_bytes(image: Tensor) -> Tensor:
    if image.dtype == torch.uint8:
        return image.cpu().contiguous()
    floats = image.detach().cpu().float().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return (floats.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)


def _enlargement(side: int) -> float:
    """Return a whole factor, so that all pixels look equally large; images that are large enough are shrunk."""
    return round(SHOWN_SIDE / side) if side * 1.5 <= SHOWN_SIDE else SHOWN_SIDE / side
