"""Every error an export raises on purpose.

    ExportError
    ├── CheckpointError        a file of the checkpoint is missing, damaged or contradicts another
    │   └── TensorError        a tensor is missing, extra or of the wrong shape or type
    ├── UnsupportedModel       the family or a config key that changes the mathematics is not understood
    ├── InvalidOption          an argument of the export is out of its range
    ├── NoAttentionKernel      TensorRT has no attention kernel for the shapes and types of a network
    └── ParityError            the exported artifact does not compute what the checkpoint computes

Each message is one sentence for the user: the offending value and what is allowed.
"""

from __future__ import annotations


class ExportError(Exception):
    """A sentence for the user; never a traceback."""


class CheckpointError(ExportError):
    pass


class TensorError(CheckpointError):
    pass


class UnsupportedModel(ExportError):
    pass


class InvalidOption(ExportError):
    pass


class NoAttentionKernel(ExportError):
    pass


class ParityError(ExportError):
    pass
