"""Images as PNG sheets: all of one update in one lossless picture, each at its own size, row by row."""

import io
import math
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

_MOST_COLUMNS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetView:
    """How a sheet is cut up: image n stands in row n // columns and column n % columns."""

    num_images: int
    columns: int
    width: int
    height: int


def sheet_view(images: Tensor) -> SheetView:
    """Return how the sheet of images (N, C, H, W) is cut up."""
    num_images, _, height, width = images.shape
    columns = max(1, min(_MOST_COLUMNS, math.ceil(math.sqrt(num_images))))
    return SheetView(num_images=num_images, columns=columns, width=width, height=height)


def draw_sheet(images: Tensor) -> bytes:
    """Return images as one PNG.

    Args:
        images: (N, C, H, W), C 1 or 3, uint8 or pixels in [0, 1]; what is not finite becomes black. N may be 0.
    """
    cut = sheet_view(images)
    rows = max(1, math.ceil(cut.num_images / cut.columns))
    channels = images.shape[1]
    sheet = torch.zeros(channels, rows * cut.height, cut.columns * cut.width, dtype=torch.uint8)
    for index, image in enumerate(_to_bytes(images)):
        top, left = index // cut.columns * cut.height, index % cut.columns * cut.width
        sheet[:, top : top + cut.height, left : left + cut.width] = image
    pixels = sheet[0] if channels == 1 else sheet.permute(1, 2, 0)
    stream = io.BytesIO()
    Image.fromarray(pixels.contiguous().numpy()).save(stream, format="PNG")
    return stream.getvalue()


def _to_bytes(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images
    return (images.float().nan_to_num(0.0, 0.0, 0.0).clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
