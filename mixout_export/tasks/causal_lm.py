"""Causal language modeling: the next token of a text."""

from mixout_export.tasks.decision import TOKEN
from mixout_export.tasks.task import LANGUAGE_MODEL_METRICS, Task, Usage

CAUSAL_LM = Task(
    name="causal-lm",
    auto_class="AutoModelForCausalLM",
    architecture_suffixes=("ForCausalLM", "LMHeadModel"),
    pipeline_tag="text-generation",
    reader="mixout_export.data.readers.language_modeling:CausalLM",
    answers="mixout_export.prediction.language:ContinuedText",
    has_labels=False,
    reports=LANGUAGE_MODEL_METRICS,
    decision=TOKEN,
    per_token=True,
    limits_others=False,
    over_vocabulary=True,
    generates=True,
    usage=Usage(
        text='"A text to go on with"',
        pipeline='"A text to go on with", max_new_tokens=20',
        javascript='"A text to go on with", { max_new_tokens: 20 }',
        call="model.generate(**inputs, max_new_tokens=20)",
        answer="print(tokenizer.decode(outputs[0]))",
    ),
)
