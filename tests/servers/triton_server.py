"""Triton, the binary that NVIDIA's wheel `nvidia-pytriton` carries."""

import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from processes import ENVIRONMENTS, Served, free_ports, running

ENVIRONMENT = ENVIRONMENTS / "triton"


def _packages() -> Path:
    return next(ENVIRONMENT.glob("lib/python3.*/site-packages"))


def _backends(folder: Path) -> Path:
    """Lay out the backends: Python's own, and one in Python that runs ONNX graphs."""
    packages = _packages()
    carried = packages / "pytriton" / "tritonserver"
    version = packages.parent.name.removeprefix("python")
    shutil.copytree(carried / "backends" / "python", folder / "python")
    stub = carried / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, folder / "python")
    ours = Path(__file__).with_name("triton_backend")
    shutil.copytree(ours, folder / "onnxruntime", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def _environment() -> dict[str, str]:
    """Return what lets the server find its libraries, and its Python the packages beside it."""
    libraries = (_packages() / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR"))
    return {
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "PATH": f"{ENVIRONMENT / 'bin'}:/usr/bin:/bin",
        "VIRTUAL_ENV": str(ENVIRONMENT),
    }


@contextmanager
def triton(repository: Path, work: Path) -> Iterator[Served]:
    """Serve a model repository.

    Args:
        repository: As `bundle` writes it.
        work: An existing folder for the backends and the log.
    """
    http, grpc, metrics = free_ports(3)
    addresses = [
        f"--{name}={value}"
        for kind, port in (("http", http), ("grpc", grpc), ("metrics", metrics))
        for name, value in ((f"{kind}-address", "127.0.0.1"), (f"{kind}-port", port))
    ]
    command = [
        _packages() / "pytriton" / "tritonserver" / "bin" / "tritonserver",
        f"--model-repository={repository}",
        f"--backend-directory={_backends(work / 'backends')}",
        *addresses,
    ]
    ready = f"http://127.0.0.1:{http}/v2/health/ready"
    with running(command, ready=ready, log=work / "triton.log", environment=_environment()):
        yield Served(f"http://127.0.0.1:{http}", f"grpc://127.0.0.1:{grpc}")
