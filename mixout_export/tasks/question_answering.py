"""Extractive question answering: the span of a context that answers a question."""

from mixout_export.tasks.decision import POSITION
from mixout_export.tasks.task import Metric, Task, Usage

QUESTION_ANSWERING = Task(
    name="question-answering",
    auto_class="AutoModelForQuestionAnswering",
    architecture_suffixes=("ForQuestionAnswering",),
    pipeline_tag="question-answering",
    reader="mixout_export.data.readers.question_answering:QuestionAnswering",
    answers="mixout_export.prediction.spans:Spans",
    has_labels=False,
    reports=(
        Metric(
            "f1",
            note="f1 is the overlap of words with the best correct answer, averaged over the "
            "questions.",
        ),
        Metric("exact_match"),
    ),
    outputs=("start_logits", "end_logits"),
    decision=POSITION,
    per_token=True,
    limits_others=False,
    usage=Usage(
        text='"Which question?", "A context that holds the answer."',
        javascript='"Which question?", "A context that holds the answer."',
        answer="""start, end = outputs.start_logits.argmax(), outputs.end_logits.argmax()
print("answer:", tokenizer.decode(inputs["input_ids"][0, start : end + 1]))""",
    ),
)
