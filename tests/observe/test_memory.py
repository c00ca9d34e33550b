"""Attention statistics need no T x T memory."""

import subprocess
import sys

import pytest

SCRIPT = """
from pathlib import Path
import torch
from sinks.families import Gated
from sinks.models.decoder import Architecture
from sinks.observe import Reader, sites_of

torch.set_num_threads(1)
model = Gated(11, 4096, architecture=Architecture(d_model=32, n_layers=1, n_heads=4, ffn_hidden=32), norm_rank=4)
model.configure_model()
reader = Reader(sites_of(model))

def read(length):
    with reader.reading(), torch.no_grad():
        model(torch.zeros(1, length, dtype=torch.int64))
    reader.summarize()

def memory(name):
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return 1024 * int(line.split()[1])

read(64), read(64)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
before = memory("VmRSS")
read(4096)
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_peak_memory_at_4096_tokens_is_far_below_a_matrix_of_weights() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    weights = 4 * 4096 * 4096 * 4  # bytes of four heads' T x T float32
    assert 0 < int(done.stdout.split()[-1]) < weights / 4
