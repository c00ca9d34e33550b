"""The interpreter of tests/kernels, for what runs kernels here."""

from tests.kernels.conftest import triton_device

__all__ = ["triton_device"]
