"""Pixels that are normalised otherwise than declared: not at all, twice, from bytes, by a half, channels reversed."""

from dataclasses import replace

from torch import Tensor

from attacker.diagnosis.inquiry import Finding, Inquiry
from attacker.diagnosis.replay import DeclaredTraining


def normalisation(inquiry: Inquiry) -> list[Finding]:
    """Try what clients feed to a model that was to see ``(pixels - mean) / std``."""
    declared = inquiry.training.declared()
    return [
        inquiry.tried("normalisation", detail, replace(declared, images=images))
        for detail, images in _inputs(inquiry.training).items()
    ]


def _inputs(training: DeclaredTraining) -> dict[str, Tensor]:
    """Return pixels that the declared normalisation, which is part of the model, turns into what the client feeds."""
    pixels, mean, std = training.images, training.mean, training.std
    known = {
        "pixels are not normalised": mean + std * pixels,
        "pixels are normalised twice": (pixels - mean) / std,
        "pixels from 0 to 255 are normalised as if they were from 0 to 1": 255.0 * pixels,
        "pixels from 0 to 255 are not normalised": mean + std * 255.0 * pixels,
        "pixels are scaled to [-1, 1], not normalised by mean and deviation": mean + std * (2.0 * pixels - 1.0),
    }
    return {**known, "the channels are in reverse order": pixels.flip(-3)} if pixels.shape[-3] > 1 else known
