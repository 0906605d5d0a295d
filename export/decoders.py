"""Language models whose blocks have different numbers of KV heads, where Optimum has one number.

The exporters make an example cache by the config's number of heads; here each block has its own.
Optimum's `OVModelForCausalLM` serves what comes out, for OpenVINO keeps the cache itself.
`ORTModelForCausalLM` does not: it begins with an empty cache of the config's number of heads. Plain
ONNX Runtime does (`PlainDecoder`, and `serve.py`).
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.anatomy.heads import generates

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel


def kv_heads(config: PretrainedConfig | Any) -> list[int]:
    """KV heads of every block of a language model, if they are not as many as its config says."""
    blocks = getattr(config, "hwnas_blocks", None)
    if blocks is None or not generates(config):
        return []
    found = [heads // config.hwnas_layout["group"] for heads, _ in blocks]
    stated = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return found if set(found) != {stated} else []


def export_configs(model: PreTrainedModel | Any, exporter: str) -> dict[str, Any]:
    """What Optimum is to know of such a model, as the exporter's own argument; else nothing.

    Args:
        exporter: `onnx` or `openvino`.
    """
    found = kv_heads(model.config)
    if not found:
        return {}
    import optimum.exporters.onnx
    import optimum.exporters.openvino  # noqa: F401
    from optimum.exporters.tasks import TasksManager

    size = model.config.hwnas_head_size
    made: Any = TasksManager.get_exporter_config_constructor(
        exporter=exporter,
        task="text-generation-with-past",
        model_type=model.config.model_type,
        library_name="transformers",
    )
    base = made.func

    class Cache(base.DUMMY_PKV_GENERATOR_CLASS):  # type: ignore[name-defined,misc]
        def generate(
            self,
            input_name: str,
            framework: str = "pt",
            int_dtype: str = "int64",
            float_dtype: str = "fp32",
        ) -> list[tuple[Any, Any]]:
            def random(heads: int) -> Any:
                shape = (self.batch_size, heads, self.sequence_length, size)
                return self.random_float_tensor(shape, framework=framework, dtype=float_dtype)

            return [(random(heads), random(heads)) for heads in found]

    theirs = base.DUMMY_PKV_GENERATOR_CLASS
    every = tuple(Cache if one is theirs else one for one in base.DUMMY_INPUT_GENERATOR_CLASSES)
    changed = {"DUMMY_PKV_GENERATOR_CLASS": Cache, "DUMMY_INPUT_GENERATOR_CLASSES": every}
    own = type(base.__name__, (base,), changed)
    config = own(model.config, task="text-generation", use_past=True, use_past_in_inputs=True)
    name = "custom_onnx_configs" if exporter == "onnx" else "custom_export_configs"
    return {name: {"model": config}}


class PlainDecoder:
    """An exported ONNX decoder in ONNX Runtime alone, to compare and score it."""

    def __init__(self, file: Path, config: PretrainedConfig, threads: int | None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        if threads:
            options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors only
        self.config = config
        self.session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        self.ports = self.session.get_inputs()

    def __call__(self, **batch: torch.Tensor) -> SimpleNamespace:
        """Logits `(batch, seq, vocabulary)` of texts, nothing being in the cache."""
        import torch

        feed = {name: value.numpy() for name, value in batch.items()}
        logits, _ = self._step(feed, self._empty(len(feed["input_ids"])))
        return SimpleNamespace(logits=torch.from_numpy(logits))

    def generate(self, input_ids: torch.Tensor, max_new_tokens: int, **_: Any) -> SimpleNamespace:
        """A prompt `(1, seq)` continued greedily; what was written, and the logits of each step."""
        import torch

        written = input_ids.numpy()
        fresh, cache = written, self._empty(1)
        steps = []
        for _step in range(max_new_tokens):
            seen = written.shape[1]
            feed = {
                "input_ids": fresh,
                "attention_mask": np.ones_like(written),
                "position_ids": np.arange(seen - fresh.shape[1], seen)[None],
            }
            logits, cache = self._step(feed, cache)
            steps.append(torch.from_numpy(logits[:, -1]))
            fresh = logits[:, -1].argmax(-1)[:, None]
            written = np.concatenate([written, fresh], axis=1)
        return SimpleNamespace(sequences=torch.from_numpy(written), logits=steps)

    def _empty(self, batch: int) -> dict[str, Any]:
        found = {}
        for port in self.ports:
            if port.name.startswith("past_key_values"):
                _, heads, _, size = port.shape
                found[port.name] = np.zeros((batch, heads, 0, size), dtype=np.float32)
        return found

    def _step(self, feed: dict[str, Any], cache: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        taken = {port.name for port in self.ports}
        given = {name: value for name, value in feed.items() if name in taken}
        logits, *present = self.session.run(None, given | cache)
        names = [port.name for port in self.session.get_outputs()[1:]]
        kept = {
            name.replace("present", "past_key_values"): value
            for name, value in zip(names, present, strict=True)
        }
        return logits, kept
