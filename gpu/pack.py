"""Fill the folder gpu-kit/ on a machine with a network (`make gpu-kit`).

python -m gpu.pack [--data FOLDER] [--limit 64]

The folder holds wheels for CPython 3.12 on Linux x86-64, a checkpoint of 22 M parameters in
bfloat16, and a data set. The GPU machine also needs the packages in `THERE`, such as torch and
transformers, which are too large to copy.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from safetensors.torch import load_file, save_file

from gpu.kit import BASE, DATA, FOLDER, ROOT, WHEELS, size_of
from mixout_export.checkpoint.demo_base import demo_base, demo_data

#: Packages expected on the GPU machine. They are large, so they are not included.
THERE = frozenset({
    "accelerate", "aiohttp", "contourpy", "flatbuffers", "fonttools", "hf-xet", "huggingface-hub",
    "kiwisolver", "matplotlib", "ml-dtypes", "mpmath", "networkx", "numpy", "onnx", "onnx-ir",
    "onnxruntime", "onnxscript", "pandas", "pillow", "protobuf", "pyarrow", "pygments", "regex",
    "safetensors", "scipy", "setuptools", "sympy", "tokenizers", "torch", "transformers", "triton",
})  # fmt: skip
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64",
              "manylinux2014_x86_64", "manylinux1_x86_64")  # fmt: skip
_MIB = 1 << 20


def carried(project: str = "mixout-export") -> dict[str, str]:
    """Return name → installed version of each required package that is not in `THERE`."""
    found: dict[str, str] = {}
    waiting = [Requirement(text) for text in metadata.requires(project) or []]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = requirement.extras or {""}
        if requirement.marker and not any(
            requirement.marker.evaluate({"extra": extra}) for extra in extras
        ):
            continue
        if name in THERE or name in found:
            continue
        found[name] = metadata.version(name)
        waiting += [Requirement(text) for text in metadata.requires(name) or []]
    return dict(sorted(found.items()))


def _download(wheels: Path) -> None:
    """Download the wheels for Python 3.12; a package without one is an error of pip's."""
    pins = [f"{name}=={version}" for name, version in carried().items()]
    platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    subprocess.run([*command, *platforms, "--dest", str(wheels), *pins], check=True)


def _write_base(base: Path) -> None:
    """Write the demo's checkpoint with its weights in bfloat16."""
    source = demo_base()
    shutil.copytree(source, base, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "*.onnx"))
    tensors = load_file(source / "model.safetensors")
    halves = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in tensors.items()}
    save_file(halves, base / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text("utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = "bfloat16"
    (base / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _write_data(data: Path, source: Path | None) -> None:
    train, evaluation = demo_data()
    if source is not None:
        train, evaluation = source / "train.tsv", source / "dev.tsv"
    data = data / train.parent.name
    data.mkdir(parents=True)
    shutil.copyfile(train, data / "train.tsv")
    shutil.copyfile(evaluation, data / "dev.tsv")


def _repository() -> list[Path]:
    """Return the files of the repository that are copied: tracked ones and those not ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.split("\0") if name]


def main() -> None:
    """Fill the folder and print the size of everything to copy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--data", type=Path, help="folder with train.tsv and dev.tsv (optional)")
    parser.add_argument(
        "--limit",
        type=float,
        default=64,
        help="size limit of everything to copy, in MiB (default: 64)",
    )
    options = parser.parse_args()
    for name in ("train.tsv", "dev.tsv"):
        if options.data is not None and not (options.data / name).is_file():
            parser.error(f"--data {options.data}: has no {name}")
    if options.out.exists() and not (options.out / WHEELS).is_dir():
        parser.error(f"--out {options.out}: exists and is not a GPU kit")
    partial = options.out.with_name(options.out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / WHEELS).mkdir(parents=True)
    _download(partial / WHEELS)
    _write_base(partial / BASE)
    _write_data(partial / DATA, options.data)
    shutil.rmtree(options.out, ignore_errors=True)
    partial.rename(options.out)
    parts = {
        "wheels": size_of([options.out / WHEELS]),
        "checkpoint": size_of([options.out / BASE]),
        "data": size_of([options.out / DATA]),
        "repository": size_of(_repository()),
    }
    total = sum(parts.values())
    for name, size in {**parts, "in all": total}.items():
        print(f"{name:<11} {size / _MIB:6.1f} MiB")
    if total > options.limit * _MIB:
        sys.exit(
            f"{options.out}: is complete, but there are more than {options.limit:g} MiB to copy; "
            f"copy {BASE}/ separately, or give a larger --limit"
        )
    names = sorted(re.sub(r"-.*", "", path.name) for path in (options.out / WHEELS).iterdir())
    print(f"{options.out}: wheels of {', '.join(names)}")


if __name__ == "__main__":
    main()
