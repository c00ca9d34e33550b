"""Which devices `auto` gives the Triton kernels to, and what the others are told; no GPU is needed to ask."""

import warnings

import pytest
import torch
from sink_kernels import accelerators, attention_op, reference
from sink_kernels.accelerators import _warn
from sink_kernels.attention import _backend
from sink_kernels.launching import gpu_unsupported, runs_kernels
from sink_kernels.options import Options
from torch._subclasses import FakeTensorMode


@pytest.fixture(autouse=True)
def forget_warnings():
    _warn.cache_clear()


@pytest.fixture
def gpu(monkeypatch):
    """Pretends that there is a GPU of a capability."""

    def of(*capability, hip=None):
        monkeypatch.setattr(accelerators, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.version, "hip", hip)
        return torch.device("cuda", 0)

    return of


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_gpus_from_ampere_on_run_the_kernels(gpu, capability):
    device = gpu(*capability)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert runs_kernels(device)
    assert gpu_unsupported(device) is None


@pytest.mark.parametrize("capability", [(6, 1), (7, 0), (7, 5)])
def test_older_ones_get_the_reference_and_one_line(gpu, capability):
    device = gpu(*capability)
    with pytest.warns(UserWarning, match=rf"need compute capability 8.0, cuda:0 has {capability[0]}.{capability[1]}: "):
        assert not runs_kernels(device)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not runs_kernels(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_here_can_be_planned_for():
    assert gpu_unsupported(torch.device("cuda", 0)) is None


def test_rocm_and_other_accelerators_get_the_reference(gpu):
    assert "never tried on ROCm" in (gpu_unsupported(gpu(9, 4, hip="6.4")) or "")
    assert "never tried on xpu" in (gpu_unsupported(torch.device("xpu")) or "")
    assert gpu_unsupported(torch.device("cpu")) is None
    assert not runs_kernels(torch.device("cpu"))


@pytest.mark.parametrize(("capability", "taken"), [((7, 5), reference), ((9, 0), attention_op)])
def test_auto_follows_the_capability_and_a_named_backend_says_why(gpu, capability, taken):
    gpu(*capability)
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        q = torch.empty(1, 2, 8, 16, device="cuda", dtype=torch.float16)
        assert _backend("auto", q, Options()) is taken
        if taken is reference:
            with pytest.raises(ValueError, match=r"8.0, cuda:0 has 7.5: use backend='auto' or 'reference'"):
                _backend("triton", q, Options())
        else:
            assert _backend("triton", q, Options()) is attention_op


@pytest.mark.parametrize(("capability", "answer"), [((7, 5), 0.0), ((9, 0), 1.0)])
def test_the_question_is_no_break_in_a_compiled_graph(gpu, capability, answer):
    device = gpu(*capability)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: x + runs_kernels(device), fullgraph=True, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert compiled(torch.zeros(1)) == answer
