"""Before anything imports triton: without a GPU its kernels run in the interpreter."""

import os
import signal
import sys

import pytest
import torch

if not torch.cuda.is_available():
    assert "triton" not in sys.modules, "triton was imported before the interpreter could be chosen"
    os.environ.setdefault("TRITON_INTERPRET", "1")

torch.set_num_threads(1)

# A shell starts what runs in its background without SIGINT, of which some tests take the effect.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
