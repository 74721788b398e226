"""The choice of the implementation, its reasons, and imports on machines that lack something."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import backend, choose, set_default

ROOT = Path(__file__).resolve().parents[2]
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def compiled(monkeypatch):
    """Triton is there and would compile, as for a user."""
    monkeypatch.setattr(backend, "_TRITON_INSTALLED", True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card 9000")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


# ---- the choice ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("compiled")
def test_auto():
    assert choose(GPU).impl == "triton"
    assert "Card 9000" in choose(GPU).reason
    assert choose(CPU) == ("torch", "PyTorch's own kernels, because Triton needs a GPU and the tensors are on 'cpu'")


def test_auto_without_triton(monkeypatch):
    monkeypatch.setattr(backend, "_TRITON_INSTALLED", False)
    for device in (CPU, GPU):
        assert choose(device) == ("torch", "PyTorch's own kernels, because Triton is not installed")


def test_auto_never_runs_the_interpreter(monkeypatch):
    monkeypatch.setattr(backend, "_TRITON_INSTALLED", True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose(CPU) == ("torch", "PyTorch's own kernels, because Triton's interpreter is for tests only")
    assert choose(CPU, "triton").impl == "triton"


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    ("tensors", "obstacle"),
    [
        ({"dtype": torch.float64}, "our kernels take numbers of 16 and 32 bits, not torch.float64"),
        ({"head_dim": 257}, "our kernels take head dims to 256, not 257"),
    ],
)
def test_tensors_that_our_kernels_do_not_take(tensors, obstacle):
    """`auto` goes to PyTorch; who asks for Triton is told why not."""
    assert choose(GPU, **tensors) == ("torch", f"PyTorch's own kernels, because {obstacle}")
    with pytest.raises(ValueError, match=f"impl='triton' cannot run here: {obstacle}"):
        choose(GPU, "triton", **tensors)
    assert choose(GPU, dtype=torch.bfloat16, head_dim=256).impl == "triton"


@pytest.mark.usefixtures("compiled")
def test_attention_needs_the_shared_memory_of_ampere(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert choose(GPU).impl == "triton"  # cross-entropy runs
    assert choose(GPU, head_dim=64).impl == "torch"
    with pytest.raises(ValueError, match="wants the shared memory of Ampere, which a Card 9000 lacks"):
        choose(GPU, "triton", head_dim=64)


@pytest.mark.parametrize("impl", ["torch", "eager"])
@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_asked_for(impl, device):
    assert choose(device, impl) == (impl, "as asked for")


@pytest.mark.usefixtures("compiled")
def test_triton_where_it_cannot_run(monkeypatch):
    assert choose(GPU, "triton").impl == "triton"
    with pytest.raises(ValueError, match="impl='triton' cannot run here: Triton needs a GPU"):
        choose(CPU, "triton")
    monkeypatch.setattr(backend, "_TRITON_INSTALLED", False)
    with pytest.raises(ValueError, match="impl='triton' cannot run here: Triton is not installed"):
        choose(GPU, "triton")


def test_default():
    set_default("eager")
    assert choose(CPU).impl == "eager"
    assert choose(CPU, "torch").impl == "torch"
    assert choose(CPU, "auto").impl == "torch"


def test_the_kernels_follow_the_default():
    """They look once, and again after it changed."""
    asked = CPU, None, torch.float32
    for impl, expected in (("eager", "eager"), ("auto", "torch")):
        set_default(impl)
        assert backend.implementation(*asked) == backend.implementation(*asked) == expected
    assert backend.implementation.cache_info().hits == 1


@pytest.mark.parametrize("time", ["first", "again"])
def test_a_default_is_forgotten_behind_the_test_that_set_it(time):
    """And so is what was chosen by it: see tests/conftest.py."""
    asked = CPU, None, torch.float32
    assert backend.implementation(*asked) == "torch", time
    set_default("eager")
    assert backend.implementation(*asked) == "eager"


@pytest.mark.parametrize("call", [set_default, lambda impl: choose(CPU, impl)])
def test_unknown(call):
    with pytest.raises(ValueError, match="impl='cuda' is not one of auto, triton, torch, eager"):
        call("cuda")


# ---- imports -------------------------------------------------------------------------------------


def python(code: str, *path: Path, cwd: Path) -> subprocess.CompletedProcess:
    """Run `code` in a fresh interpreter that finds packages in `path` first."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


WITHOUT_TRITON = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError("No module named 'triton'", name="triton")

import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "triton" else real(name, package)
sys.meta_path.insert(0, Blocked())

import importlib, pathlib
for package in ("kernels", "minillm"):
    for file in sorted(pathlib.Path(package).rglob("*.py")):
        if file.parent.name != "gpu":
            importlib.import_module(".".join(file.with_suffix("").parts).removesuffix(".__init__"))
import train_sft, train_rl

import torch
from kernels import choose, linear_cross_entropy
assert choose(torch.device("cpu")).reason.endswith("because Triton is not installed")
hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
linear_cross_entropy(hidden, weight, torch.tensor([0, 1, 4])).sum().backward()
assert hidden.grad.any()
assert not any(name.partition(".")[0] == "triton" for name in sys.modules)
"""


def test_everything_imports_without_triton():
    run = python(WITHOUT_TRITON, ROOT, cwd=ROOT)
    assert run.returncode == 0, run.stderr


def test_importing_the_kernels_imports_no_gpu_kernels():
    names = python("import sys, kernels; print(*sys.modules)", ROOT, cwd=ROOT).stdout.split()
    ours = [name for name in names if name.partition(".")[0] == "kernels"]
    assert 1 < len(ours) <= 16
    assert not any(name.startswith("kernels.gpu") for name in ours)
    assert not {"triton", "torch._dynamo"} & set(names)  # the latter takes a second


STEP = """
import sys, torch
from kernels import Packing, attention, linear_cross_entropy

def step():
    x, weight = torch.randn(44, 4, 8, dtype=DTYPE, requires_grad=True), torch.randn(70, 32, requires_grad=True)
    y = attention(x, x, x, causal=True, packing=Packing.from_lengths([5, 9, 30])).reshape(44, 32)
    linear_cross_entropy(y, weight, torch.arange(44), token_weights=1 / 44).backward()

def watch(frame, event, _):
    if event == "call" and "/kernels/" in frame.f_code.co_filename:
        entered.add(frame.f_code.co_filename.rpartition("/kernels/")[2])

entered = set()
step()
sys.setprofile(watch)
step()
sys.setprofile(None)
print(*entered)
"""


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.bfloat16"])
def test_a_training_step_enters_few_files(dtype):
    """So that a reader who follows it needs no others."""
    run = python(STEP.replace("DTYPE", dtype), ROOT, cwd=ROOT)
    public = {"attention.py", "packing.py", "linear_cross_entropy.py", "arguments.py"}
    assert run.stdout.split(), run.stderr
    assert set(run.stdout.split()) <= public | {"cpu/attention.py", "cpu/cross_entropy.py"}


@pytest.fixture
def other_kernels(tmp_path):
    """A package as a distribution called `kernels` would install it."""
    package = tmp_path / "site" / "kernels"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "9.9"\n')
    return package.parent


def test_ours_before_another_package_called_kernels(other_kernels, tmp_path):
    run = python("import minillm, kernels; print(kernels.__version__)", ROOT, other_kernels, cwd=tmp_path)
    assert run.stdout.strip() == "0.0.0", run.stderr


def test_ours_behind_another_package_called_kernels(other_kernels, tmp_path):
    run = python("import minillm", other_kernels, ROOT, cwd=tmp_path)
    assert run.returncode == 1
    message = run.stderr.strip().splitlines()[-1]
    assert message.startswith(f"ImportError: another package named 'kernels' ({other_kernels / 'kernels'}) hides")
    assert f"PYTHONPATH={ROOT}" in message
