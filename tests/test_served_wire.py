import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mixout_export.errors import ServerError
from mixout_export.served.tensors import DATATYPES, datatype_of
from mixout_export.served.wire import (
    HEADER_LENGTH,
    Question,
    decode,
    encode_binary,
    encode_json,
)

ROWS = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.int64)
QUESTION = Question("q-1", {"ids": ROWS, "mask": ROWS.astype(np.int32)}, ["logits"])


def answer(outputs: Any, **more: Any) -> bytes:
    return json.dumps({"outputs": outputs, **more}).encode()


def tensor(**changes: Any) -> dict[str, Any]:
    whole = {"name": "logits", "datatype": "FP32", "shape": [1, 2], "data": [0.5, -1.0]}
    return {name: value for name, value in {**whole, **changes}.items() if value is not None}


def binary(raw: bytes, size: Any, **changes: Any) -> tuple[bytes, str]:
    head = answer([tensor(data=None, parameters={"binary_data_size": size}, **changes)])
    return head + raw, str(len(head))


def test_json_says_what_the_protocol_asks_for() -> None:
    message = encode_json(QUESTION)
    content = json.loads(message.body)
    assert content == {
        "id": "q-1",
        "inputs": [
            {"name": "ids", "shape": [2, 3], "datatype": "INT64", "data": [1, 2, 3, 4, 5, 6]},
            {"name": "mask", "shape": [2, 3], "datatype": "INT32", "data": [1, 2, 3, 4, 5, 6]},
        ],
        "outputs": [{"name": "logits"}],
    }
    assert HEADER_LENGTH not in message.headers


def test_bytes_follow_the_json_in_the_order_of_the_inputs() -> None:
    message = encode_binary(QUESTION)
    length = int(message.headers[HEADER_LENGTH])
    content = json.loads(message.body[:length])
    sizes = [tensor["parameters"]["binary_data_size"] for tensor in content["inputs"]]
    assert sizes == [48, 24]
    assert all("data" not in tensor for tensor in content["inputs"])
    assert content["parameters"] == {"binary_data_output": True}
    rest = message.body[length:]
    assert np.frombuffer(rest[:48], "<i8").tolist() == ROWS.ravel().tolist()
    assert np.frombuffer(rest[48:], "<i4").tolist() == ROWS.ravel().tolist()


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_every_datatype_is_read_from_json_and_bytes(datatype: str) -> None:
    values = np.array([[0, 1], [1, 1]]).astype(DATATYPES[datatype])
    assert datatype_of(values) == datatype
    said = {"shape": [2, 2], "datatype": datatype}
    plain = answer([tensor(**said, data=values.astype(np.float64).tolist())])
    raw, length = binary(values.tobytes(), values.nbytes, **said)
    for body, header in ((plain, None), (raw, length)):
        found = decode(body, header, ["logits"], "here").outputs["logits"]
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values)


def test_bfloat16_keeps_its_value_on_the_way() -> None:
    values = np.array([[1.5, -3.25e5]], dtype=ml_dtypes.bfloat16)
    raw, length = binary(values.tobytes(), 4, datatype="BF16")
    found = decode(raw, length, ["logits"], "here").outputs["logits"]
    np.testing.assert_array_equal(found.astype(np.float32), values.astype(np.float32))


def test_lists_may_be_nested_and_hold_what_is_no_number() -> None:
    body = b'{"outputs":[{"name":"l","datatype":"FP32","shape":[1,3],"data":[[NaN,Infinity,-1]]}]}'
    found = decode(body, None, ["l"], "here").outputs["l"]
    np.testing.assert_array_equal(found, [[np.nan, np.inf, -1]])


def test_other_outputs_are_passed_over_and_their_bytes_too() -> None:
    names = {"name": "text", "datatype": "BYTES", "shape": [1]}
    head = answer(
        [
            {**names, "parameters": {"binary_data_size": 5}},
            tensor(data=None, parameters={"binary_data_size": 8}),
        ],
        id="q-1",
        model_version="7",
    )
    raw = np.array([1, 2], "<f4").tobytes()
    found = decode(head + b"-----" + raw, str(len(head)), ["logits"], "here")
    assert (found.identity, found.version, list(found.outputs)) == ("q-1", "7", ["logits"])
    assert found.outputs["logits"].tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("body", "header", "part"),
    [
        (b"", None, "is not JSON"),
        (b"\xff{}", None, "is not JSON"),
        (b"[" * 100_000, None, "is not JSON"),
        (b"[1]", None, "a JSON list, expected an object"),
        (b'{"error": "no"}', None, "no list of outputs (no)"),
        (answer({"a": 1}), None, "no list of outputs"),
        (answer([]), None, "lacks output 'logits', it has none"),
        (answer([tensor(name="scores")]), None, "lacks output 'logits', it has scores"),
        (answer([tensor(data=None)]), None, "output 'logits' has no data"),
        (answer([tensor(datatype="BYTES", data=["a", "b"])]), None, "datatype 'BYTES', expected"),
        (answer([tensor(datatype=None)]), None, "datatype None"),
        (answer([tensor(data=["a", "b"])]), None, "holds texts, expected numbers"),
        (answer([tensor(data=[[1], [2, 3]])]), None, "cannot be read as numbers"),
        (answer([tensor(data=[1.0])]), None, "has 1 values, expected 2 for shape [1, 2]"),
        (answer([tensor(shape=[3, 2])]), None, "has 2 values, expected 6"),
        (answer([tensor(shape="12")]), None, "has shape '12', expected a list of sizes"),
        (answer([tensor(shape=[-1, 2])]), None, "has shape [-1, 2], expected a list of sizes"),
        (answer([tensor(shape=[True, 2])]), None, "expected a list of sizes"),
        (answer([tensor()]), "x", f"{HEADER_LENGTH} is 'x'"),
        (answer([tensor()]), "-1", f"{HEADER_LENGTH} is '-1'"),
        (answer([tensor()]), "9999", "was cut off"),
        (
            *binary(b"1234567", 8),
            "should have 8 bytes, but the answer was cut off with 7 bytes left",
        ),
        (*binary(b"1234567", 7), "has 7 bytes, expected 8 for FP32 of shape [1, 2]"),
        (*binary(b"12345678!", 8), "has 1 bytes after its last output"),
        (*binary(b"12345678", -8), "should have -8 bytes"),
        (*binary(b"12345678", "8"), "should have '8' bytes"),
    ],
)
def test_what_does_not_keep_to_the_protocol_is_refused_in_a_sentence(
    body: bytes, header: str | None, part: str
) -> None:
    with pytest.raises(ServerError) as raised:
        decode(body, header, ["logits"], "here")
    assert part in str(raised.value)
    assert str(raised.value).startswith("here")
