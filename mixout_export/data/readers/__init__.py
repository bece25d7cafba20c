"""What each task reads from a table and how it is judged: one module a task.

A task's module has a `Reader`, which finds the columns and encodes them, and `Examples`, which make
batches with what the loss is computed from, and turn the model's outputs into metrics. The loop
asks nobody which task it is. `evaluation.evaluation_data` gives the same to whoever has outputs
from elsewhere.
"""

from mixout_export.data.examples import Examples
from mixout_export.data.reader import Encoding, Reader
from mixout_export.data.readers.causal_lm import CausalLM
from mixout_export.data.readers.masked_lm import MaskedLM
from mixout_export.data.readers.multi_label import MultiLabel
from mixout_export.data.readers.multiple_choice import MultipleChoice
from mixout_export.data.readers.question_answering import QuestionAnswering
from mixout_export.data.readers.regression import Regression
from mixout_export.data.readers.text_classification import TextClassification
from mixout_export.data.readers.token_classification import TokenClassification

#: Task name → its reader; every task of `mixout_export.tasks` has one.
READERS: dict[str, Reader] = {
    "text-classification": TextClassification(),
    "regression": Regression(),
    "multi-label": MultiLabel(),
    "token-classification": TokenClassification(),
    "question-answering": QuestionAnswering(),
    "multiple-choice": MultipleChoice(),
    "masked-lm": MaskedLM(),
    "causal-lm": CausalLM(),
}

__all__ = ["READERS", "Encoding", "Examples", "Reader"]
