"""Gradients of bfloat16 parameters are summed over processes in float32."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import torch, torch.distributed as dist
from sinks.parallel.ddp import reduce_in_float32
from sinks.parallel.process_exit import exit_process
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
model = torch.nn.Linear(64, 64, bias=False).bfloat16()
torch.nn.init.ones_(model.weight)
parallel = torch.nn.parallel.DistributedDataParallel(model)
parallel.register_comm_hook(None, reduce_in_float32)
x = torch.randn(world, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
parallel(x[rank : rank + 1]).sum().backward()
expected = (x.float().sum(0) / world).bfloat16().expand(64, 64)
in_bfloat16 = sum(row / world for row in x).expand(64, 64)
assert not torch.equal(in_bfloat16, expected)  # or the test could not distinguish them
assert torch.equal(model.weight.grad, expected)
exit_process(0)
"""


def test_the_mean_over_processes_is_rounded_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
