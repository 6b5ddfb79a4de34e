"""Layers that behave otherwise in training and in evaluation: BatchNorm and dropout."""

from dataclasses import replace

from attacker.batch_norm import batch_norm_layers
from attacker.diagnosis.inquiry import Finding, Inquiry


def mode(inquiry: Inquiry) -> list[Finding]:
    """Try evaluation mode of BatchNorm, of dropout, and of both."""
    training = inquiry.training
    declared = training.declared()
    found: list[Finding] = []
    has_statistics = any(name.endswith("running_mean") for name in training.buffers)
    has_batch_norm = bool(batch_norm_layers(training.model)) and has_statistics
    if has_batch_norm:
        detail = "BatchNorm is in evaluation mode: it normalises by the running statistics, not by the batch's"
        found.append(inquiry.tried("mode", detail, replace(declared, batch_norm_eval=True)))
    if training.draws_dropout:
        detail = "dropout is in evaluation mode: no unit is dropped"
        found.append(inquiry.tried("mode", detail, replace(declared, dropout_off=True)))
    if has_batch_norm and training.draws_dropout:
        both = replace(declared, batch_norm_eval=True, dropout_off=True)
        found.append(inquiry.tried("mode", "BatchNorm and dropout are in evaluation mode", both))
    return found
