"""Two hosts, each a network namespace with an address of its own, train one run through torchrun."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sinks.record import RunFolder
from tests.cli.small import SMALL, fit

FIRST, SECOND, PORT = "10.77.0.1", "10.77.0.2", "29577"
# The first host is the namespace the script runs in; the second belongs to a process that only waits.
NETWORK = f"""
set -e
ip link set lo up
unshare --net sleep 600 &
second=$!
trap 'kill $second' EXIT
until [ "$(readlink /proc/$second/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
ip link add first type veth peer name second netns $second
ip address add {FIRST}/24 dev first
ip link set first up
there() {{ nsenter --target $second --net "$@"; }}
there ip address add {SECOND}/24 dev second
there ip link set second up
there ip link set lo up
"""


def in_two_hosts(script: str, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a shell script on the first host; `there COMMAND` in it runs a command on the second."""
    command = ["unshare", "--user", "--map-root-user", "--net", "bash", "-c", NETWORK + script]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)


@pytest.fixture(scope="module", autouse=True)
def _namespaces() -> None:
    missing = [tool for tool in ("unshare", "nsenter", "ip") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"no network namespaces here: {', '.join(missing)} is not installed")
    tried = in_two_hosts(f"there bash -c 'exec 3<>/dev/tcp/{FIRST}/1' 2>&1 | grep -q refused", 30)
    if tried.returncode != 0:
        pytest.skip(f"no network namespaces here: {tried.stderr.strip() or tried.stdout.strip()}")


@pytest.mark.slow
def test_two_hosts_train_what_one_process_trains(tmp_path: Path) -> None:
    folder = tmp_path / "two"
    arguments = [*SMALL, "--trainer.precision=32-true"]
    distributed = ["--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp", "--data.batch_size=2"]
    sinks = shlex.join(["-m", "sinks", "fit", *arguments, *distributed, "--run.dir", str(folder)])

    def torchrun(node: int, interface: str) -> str:
        options = f"--nnodes=2 --nproc-per-node=1 --node-rank={node} --master-addr={FIRST} --master-port={PORT}"
        python = shlex.quote(sys.executable)
        return f"env GLOO_SOCKET_IFNAME={interface} {python} -m torch.distributed.run {options} {sinks}"

    done = in_two_hosts(f"there {torchrun(1, 'second')} & other=$!\n{torchrun(0, 'first')}\nwait $other", 300)
    assert done.returncode == 0, done.stdout + done.stderr
    two, one = RunFolder(folder), fit(tmp_path / "one", "--trainer.precision=32-true")
    for key in ("train/loss", "validation/loss", "validation/attention/first_token_mass"):
        np.testing.assert_allclose(two.series(key)[1], one.series(key)[1], rtol=1e-5, err_msg=key)
    assert two.summary()["steps"] == 6
    assert len(list(folder.glob("events.*"))) == 1
