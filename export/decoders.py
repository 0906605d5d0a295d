"""Exported language models in their runtime alone; and such as Optimum's classes cannot serve.

Questions with several answers are scored here: what the answers share is computed once, and its
keys and values are kept for each of them (`continuations`).

Where blocks have different numbers of KV heads, Optimum has one number.

The exporters make an example cache by the config's number of heads; here each block has its own.
Optimum's `OVModelForCausalLM` serves what comes out, for OpenVINO keeps the cache itself.
`ORTModelForCausalLM` does not: it begins with an empty cache of the config's number of heads. Plain
ONNX Runtime does (`PlainDecoder`, and `serve.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hwnas.anatomy.heads import generates
from hwnas.files import read_json, write_json

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

_WITH_HEAD_SIZE = ("gemma",)  # families whose heads' size Optimum reads in the config


def kv_heads(config: PretrainedConfig | Any) -> list[int]:
    """KV heads of every block of a language model, if they are not as many as its config says."""
    blocks = getattr(config, "hwnas_blocks", None)
    if blocks is None or not generates(config):
        return []
    found = [heads // config.hwnas_layout["group"] for heads, _ in blocks]
    stated = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return found if set(found) != {stated} else []


def of_optimum(config: PretrainedConfig | Any) -> bool:
    """Whether Optimum's class for ONNX Runtime makes the right empty cache for such a model.

    Of most families it takes a head to be as large as the stream over the number of heads.
    """
    stated = getattr(config, "head_dim", None) or getattr(config, "hwnas_head_size", None)
    taken = config.hidden_size // config.num_attention_heads
    return not kv_heads(config) and (
        stated in (None, taken) or config.model_type in _WITH_HEAD_SIZE
    )


def restate_heads(folder: Path) -> None:
    """Make an ONNX folder's config say the size of a head in the one way that Optimum reads.

    Fewer heads of the same size, in all blocks alike, would be taken for larger ones: the number of
    heads is that of the whole stream then, which nothing else there depends on. KV heads stay.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    size = getattr(config, "hwnas_head_size", None)
    if size is None or of_optimum(config) or kv_heads(config) or config.hidden_size % size:
        return
    stored = read_json(folder / "config.json")
    stored["num_attention_heads"] = config.hidden_size // size
    write_json(folder / "config.json", stored)


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


class Continuations(NamedTuple):
    """What a model says of several continuations of one beginning.

    Attributes:
        first: logits `(vocabulary,)` of the token after the beginning.
        later: `(continuations, longest - 1, vocabulary)` of those after; padding's mean nothing.
    """

    first: Any
    later: Any


class _Continued(NamedTuple):
    """Inputs of the beginning, and of all but the last tokens of its continuations."""

    beginning: dict[str, npt.NDArray[np.int64]]
    later: dict[str, npt.NDArray[np.int64]]

    @classmethod
    def of(cls, beginning: Sequence[int], rows: Sequence[Sequence[int]]) -> _Continued:
        read, count = len(beginning), len(rows)
        longest = max(len(row) for row in rows) - 1
        ids = np.zeros((count, longest), dtype=np.int64)
        mask = np.zeros((count, read + longest), dtype=np.int64)
        mask[:, :read] = 1
        for i, row in enumerate(rows):
            ids[i, : len(row) - 1] = row[:-1]
            mask[i, read : read + len(row) - 1] = 1
        positions = np.arange(read + longest)[None]
        return cls(
            {
                "input_ids": np.array([beginning], dtype=np.int64),
                "attention_mask": np.ones((1, read), dtype=np.int64),
                "position_ids": positions[:, :read],
            },
            {
                "input_ids": ids,
                "attention_mask": mask,
                "position_ids": np.repeat(positions[:, read:], count, axis=0),
            },
        )

    @property
    def ends_at_once(self) -> bool:
        """Whether each continuation is one token, which the beginning predicts."""
        return not self.later["input_ids"].size


class StatefulDecoder:
    """An exported OpenVINO decoder in OpenVINO alone, to score it.

    Args:
        file: of a model that keeps keys and values in states of its own, as Optimum exports it.
    """

    def __init__(self, file: Path, config: PretrainedConfig, settings: Mapping[str, str]) -> None:
        import openvino

        self.config = config
        self.compiled = openvino.Core().compile_model(str(file), "CPU", dict(settings))
        self.request = self.compiled.create_infer_request()
        self.taken = {name for port in self.compiled.inputs for name in port.names}

    def __call__(self, **batch: torch.Tensor) -> SimpleNamespace:
        """Logits `(batch, seq, vocabulary)` of texts, nothing being in the cache."""
        import torch

        feed = {name: value.numpy() for name, value in batch.items()}
        self.request.reset_state()
        logits = self._step(feed, range(len(feed["input_ids"])))
        return SimpleNamespace(logits=torch.from_numpy(logits))

    def continuations(
        self, beginning: Sequence[int], rows: Sequence[Sequence[int]]
    ) -> Continuations:
        """See `Continuations`."""
        given = _Continued.of(beginning, rows)
        self.request.reset_state()
        first = self._step(given.beginning, [0])[0, -1]
        if given.ends_at_once:
            return Continuations(first, np.empty((len(rows), 0, len(first)), first.dtype))
        # each continuation goes on from a copy of the beginning's states, as beams do
        return Continuations(first, self._step(given.later, [0] * len(rows)))

    def _step(self, feed: dict[str, Any], beams: Sequence[int]) -> Any:
        given = feed | {"beam_idx": np.array(beams, dtype=np.int32)}
        given = {name: value for name, value in given.items() if name in self.taken}
        return self.request.infer(given)[self.compiled.output("logits")].copy()


class PlainDecoder:
    """An exported ONNX decoder in ONNX Runtime alone, to compare and score it."""

    def __init__(self, file: Path, config: PretrainedConfig, threads: int | None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        if threads:
            options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors only
        self.config = config
        self.generation_config = SimpleNamespace(eos_token_id=None)  # it ends where it is told to
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

    def generate(
        self, input_ids: torch.Tensor, max_new_tokens: int, streamer: Any = None, **_: Any
    ) -> SimpleNamespace:
        """A prompt `(1, seq)` continued greedily; what was written, and the logits of each step.

        Args:
            streamer: told of the prompt, then of each token, as transformers does.
        """
        import torch

        if streamer is not None:
            streamer.put(input_ids)
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
            if streamer is not None:
                streamer.put(torch.from_numpy(fresh[0]))
        if streamer is not None:
            streamer.end()
        return SimpleNamespace(sequences=torch.from_numpy(written), logits=steps)

    def continuations(
        self, beginning: Sequence[int], rows: Sequence[Sequence[int]]
    ) -> Continuations:
        """See `Continuations`."""
        given = _Continued.of(beginning, rows)
        logits, cache = self._step(given.beginning, self._empty(1))
        first = logits[0, -1]
        if given.ends_at_once:
            return Continuations(first, np.empty((len(rows), 0, len(first)), first.dtype))
        copies = {name: np.repeat(kept, len(rows), axis=0) for name, kept in cache.items()}
        return Continuations(first, self._step(given.later, copies)[0])

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
