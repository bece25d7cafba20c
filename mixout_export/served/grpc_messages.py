"""Define those of the protocol's gRPC messages that are used here.

They do not come from a client library, because tritonclient needs versions of protobuf and
ml_dtypes that exclude those of onnx and this package. Protobuf skips fields that are not listed.
"""

import re
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "inference"
SERVICE = f"{_PACKAGE}.GRPCInferenceService"

_TYPES = descriptor_pb2.FieldDescriptorProto

#: Message → its fields, written as in a .proto file.
_MESSAGES = {
    "ServerReadyRequest": "",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": """
        string name = 1; string version = 2; repeated string extensions = 3;""",
    "ModelReadyRequest": "string name = 1; string version = 2;",
    "ModelReadyResponse": "bool ready = 1;",
    "ModelMetadataRequest": "string name = 1; string version = 2;",
    "TensorMetadata": "string name = 1; string datatype = 2; repeated int64 shape = 3;",
    "InferParameter": "bool bool_param = 1; int64 int64_param = 2; string string_param = 3;",
    # The value of a parameter is a message or a text, depending on the server.
    "ModelMetadataResponse": """
        string name = 1; repeated string versions = 2; string platform = 3;
        repeated TensorMetadata inputs = 4; repeated TensorMetadata outputs = 5;
        map<string, bytes> parameters = 6;""",
    "ModelParameter": "string string_value = 1;",
    "ModelConfig": "int32 max_batch_size = 4; map<string, ModelParameter> parameters = 14;",
    "ModelConfigRequest": "string name = 1; string version = 2;",
    "ModelConfigResponse": "ModelConfig config = 1;",
    "InferInputTensor": """
        string name = 1; string datatype = 2; repeated int64 shape = 3;
        InferTensorContents contents = 5;""",
    "InferRequestedOutputTensor": "string name = 1;",
    "InferTensorContents": """
        repeated bool bool_contents = 1; repeated int32 int_contents = 2;
        repeated int64 int64_contents = 3; repeated uint32 uint_contents = 4;
        repeated uint64 uint64_contents = 5; repeated float fp32_contents = 6;
        repeated double fp64_contents = 7;""",
    "ModelInferRequest": """
        string model_name = 1; string model_version = 2; string id = 3;
        repeated InferInputTensor inputs = 5; repeated InferRequestedOutputTensor outputs = 6;
        repeated bytes raw_input_contents = 7;""",
    "ModelInferResponse": """
        string model_name = 1; string model_version = 2; string id = 3;
        repeated InferInputTensor outputs = 5; repeated bytes raw_output_contents = 6;""",
}

_FIELD = re.compile(r"(repeated )?(?:map<string, (\w+)>|(\w+)) (\w+) = (\d+);")


def _add_field(message: Any, name: str, number: int, kind: str, *, repeated: bool = False) -> None:
    label = _TYPES.LABEL_REPEATED if repeated else _TYPES.LABEL_OPTIONAL
    field = message.field.add(name=name, number=number, label=label)
    if kind.islower():
        field.type = getattr(_TYPES, f"TYPE_{kind.upper()}")
    else:
        field.type, field.type_name = _TYPES.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"


def _add_map(message: Any, name: str, number: int, kind: str) -> None:
    """Add a map of texts, which is a repeated field whose messages have a key and a value."""
    entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
    entry.options.map_entry = True
    _add_field(entry, "key", 1, "string")
    _add_field(entry, "value", 2, kind)
    _add_field(message, name, number, f"{message.name}.{entry.name}", repeated=True)


def _build() -> dict[str, Any]:
    """Return message name → class. The classes have a descriptor pool of their own."""
    file = descriptor_pb2.FileDescriptorProto(
        name="mixout_export/inference.proto", package=_PACKAGE, syntax="proto3"
    )
    for message_name, fields in _MESSAGES.items():
        message = file.message_type.add(name=message_name)
        for repeated, values, kind, name, number in _FIELD.findall(fields):
            if values:
                _add_map(message, name, int(number), values)
            else:
                _add_field(message, name, int(number), kind, repeated=bool(repeated))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


MESSAGES = _build()
