"""Lay out folders for transformers.js and Optimum: one model, with a file for each precision."""

from collections.abc import Sequence
from pathlib import PurePosixPath

from mixout_export.bundling.plan import BundleOptions, Model, Plan
from mixout_export.bundling.source import OnnxFolder
from mixout_export.errors import ArgumentError
from mixout_export.files.json_files import json_text
from mixout_export.files.layout import LAYOUT
from mixout_export.tasks import known_task

#: Precision → suffix that both libraries expect in the name of the graph's file.
SUFFIXES = {"fp32": "", "fp16": "_fp16", "int8": "_quantized"}


def _plan(folders: Sequence[OnnxFolder], options: BundleOptions, graphs: PurePosixPath) -> Plan:
    """Lay out one model. Configuration and tokenizer come from the first folder.

    Both libraries expect the graph of a causal language model to take a cache that may be empty, so
    they get the graph with a cache.
    """
    plan = Plan()
    for folder in folders:
        graph = folder.cached or folder.graph
        path = graphs / f"model{SUFFIXES[folder.precision]}.onnx"
        plan.add_graph(Model(options.name, folder, graph, path))
    first = folders[0]
    root = PurePosixPath()
    for file in first.companions:
        plan.copies[root / file.name] = file
    config = dict(first.model.config)
    if first.cached is not None and not config.get("use_cache", False):
        config["use_cache"] = True
    plan.copies.pop(root / LAYOUT.config, None)
    plan.texts[root / LAYOUT.config] = json_text(config)
    plan.tokenizers[root] = first
    return plan


def plan_transformers_js(folders: Sequence[OnnxFolder], options: BundleOptions) -> Plan:
    """Lay out a folder for transformers.js, in Node or in a browser. Graphs go to `onnx/`.

    Raises:
        ArgumentError: transformers.js has no class for the task.
    """
    task = known_task(folders[0].task)
    if task is not None and task.usage.javascript is None:
        raise ArgumentError(
            f"{folders[0].path}: transformers.js has no class for the task {task.name}; use "
            "another --server, for example optimum"
        )
    plan = _plan(folders, options, PurePosixPath("onnx"))
    plan.needs_tokenizer_json = folders[0].takes_text
    return plan


def plan_optimum(folders: Sequence[OnnxFolder], options: BundleOptions) -> Plan:
    """Lay out a folder without subfolders for Optimum's ORTModel classes."""
    return _plan(folders, options, PurePosixPath())
