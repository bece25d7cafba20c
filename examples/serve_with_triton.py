r"""Classify sentences with a model that Triton serves.

    mixout-export bundle ONNX repository --server triton --name reviews
    docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/repository":/models:ro \
        nvcr.io/nvidia/tritonserver:25.08-py3 tritonserver --model-repository=/models
    mixout-export verify ONNX http://127.0.0.1:8000/v2/models/reviews
    pip install 'tritonclient[http]' tokenizers
    python examples/serve_with_triton.py repository/reviews "The film was a delight."

ONNX is the folder that `mixout-export onnx` wrote. Neither this script nor the server needs PyTorch
or transformers.
"""

import argparse
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tritonclient.http import InferenceServerClient, InferInput


def main() -> None:
    """Tokenize the sentences, send them to the server, and print the label and score of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="the model's folder in the repository")
    parser.add_argument("sentences", nargs="+")
    parser.add_argument("--url", default="127.0.0.1:8000")
    options = parser.parse_args()

    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer" / "tokenizer.json"))
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("[PAD]"))  # all rows get one length
    encoded = tokenizer.encode_batch(options.sentences)
    arrays = {
        "input_ids": [each.ids for each in encoded],
        "attention_mask": [each.attention_mask for each in encoded],
        "token_type_ids": [each.type_ids for each in encoded],
    }

    client = InferenceServerClient(options.url)
    name = options.model.resolve().name
    inputs = []
    for wanted in client.get_model_metadata(name)["inputs"]:  # not every model takes token_type_ids
        array = np.array(arrays[wanted["name"]], dtype=np.int64)
        inputs.append(InferInput(wanted["name"], array.shape, "INT64"))
        inputs[-1].set_data_from_numpy(array)
    logits = client.infer(name, inputs).as_numpy("logits").astype(np.float64)

    scores = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    labels = (options.model / "labels.txt").read_text(encoding="utf-8").splitlines()
    for sentence, row in zip(options.sentences, scores, strict=True):
        print(f"{labels[row.argmax()]}  {row.max():.6f}  {sentence}")


if __name__ == "__main__":
    main()
