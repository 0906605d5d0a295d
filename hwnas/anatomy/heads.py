"""What a model is for, and the classes of transformers for it.

Tasks have Optimum's names. One task is one ending of the names of classes, in transformers
(`BertForSequenceClassification`) and in Optimum (`OVModelForSequenceClassification`); the model
without a head, which yields hidden states, is `BertModel`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from hwnas.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# the ending, and transformers' mapping from configs to classes
_TASKS = {
    "text-classification": ("ForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION"),
    "question-answering": ("ForQuestionAnswering", "MODEL_FOR_QUESTION_ANSWERING"),
    "token-classification": ("ForTokenClassification", "MODEL_FOR_TOKEN_CLASSIFICATION"),
    "image-classification": ("ForImageClassification", "MODEL_FOR_IMAGE_CLASSIFICATION"),
    "fill-mask": ("ForMaskedLM", "MODEL_FOR_MASKED_LM"),
    "text-generation": ("ForCausalLM", "MODEL_FOR_CAUSAL_LM"),
    "feature-extraction": ("Model", "MODEL"),
}

_LM_HEAD = "LMHeadModel"  # how the oldest language models' classes end (GPT-2)


def task_of(model_class: type | str) -> str:
    """The task that a class of transformers is for, by its name.

    Raises:
        UserError: none of those that hwnas knows.
    """
    name = model_class if isinstance(model_class, str) else model_class.__name__
    if name.endswith(_LM_HEAD):
        return "text-generation"
    for task, (ending, _) in _TASKS.items():
        if name.endswith(ending):
            return task
    raise UserError(
        f"{name}: this kind of task is not supported; supported: models of names that end in "
        f"{', '.join(ending for ending, _ in _TASKS.values())}"
    )


def generates(config: PretrainedConfig | Any) -> bool:
    """Whether a model with this config, as it was saved, is for generating text."""
    name: str = (getattr(config, "architectures", None) or [""])[0]
    return name.endswith((_TASKS["text-generation"][0], _LM_HEAD))


def writes(model: PreTrainedModel | Any) -> bool:
    """Whether a model, of transformers or Optimum, saved or not, is for generating text."""
    by_name = type(model).__name__.endswith((_TASKS["text-generation"][0], _LM_HEAD))
    return by_name or generates(model.config)


def exported_ending(task: str) -> str:
    """What stands after `OVModel` and `ORTModel` in the names of Optimum's classes."""
    ending = _TASKS[task][0]
    return "ForFeatureExtraction" if ending == "Model" else ending


def auto_name(task: str) -> str:
    """The name of transformers' automatic class, such as `AutoModelForQuestionAnswering`."""
    return f"AutoModel{_TASKS[task][0].removeprefix('Model')}"


def class_for(config: PretrainedConfig | Any, task: str) -> type[PreTrainedModel]:
    """Transformers' class of models with this config for a task.

    Raises:
        UserError: transformers has none.
    """
    import transformers

    classes = getattr(transformers, f"{_TASKS[task][1]}_MAPPING")
    if type(config) not in classes:
        raise UserError(f"model family {config.model_type!r}: has no models for {task}")
    return cast("type[PreTrainedModel]", classes[type(config)])
