"""Define those of the protocol's gRPC messages that are used here.

They do not come from a client library, because tritonclient needs versions of protobuf and
ml_dtypes that exclude those of onnx and this package. Protobuf skips fields that are not listed.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "inference"
SERVICE = f"{_PACKAGE}.GRPCInferenceService"

_TYPES = descriptor_pb2.FieldDescriptorProto

#: Message → field → (number, type, whether it is repeated). A type with a capital letter is a
#: message. A map is written as "map " and the type of its values; its keys are texts.
_MESSAGES: dict[str, dict[str, tuple[int, str, bool]]] = {
    "ServerReadyRequest": {},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {
        "name": (1, "string", False),
        "version": (2, "string", False),
        "extensions": (3, "string", True),
    },
    "ModelReadyRequest": {"name": (1, "string", False), "version": (2, "string", False)},
    "ModelReadyResponse": {"ready": (1, "bool", False)},
    "ModelMetadataRequest": {"name": (1, "string", False), "version": (2, "string", False)},
    "TensorMetadata": {
        "name": (1, "string", False),
        "datatype": (2, "string", False),
        "shape": (3, "int64", True),
    },
    "InferParameter": {
        "bool_param": (1, "bool", False),
        "int64_param": (2, "int64", False),
        "string_param": (3, "string", False),
    },
    "ModelMetadataResponse": {
        "name": (1, "string", False),
        "versions": (2, "string", True),
        "platform": (3, "string", False),
        "inputs": (4, "TensorMetadata", True),
        "outputs": (5, "TensorMetadata", True),
        "parameters": (6, "map bytes", True),  # a message or a text, depending on the server
    },
    "ModelParameter": {"string_value": (1, "string", False)},
    "ModelConfig": {
        "max_batch_size": (4, "int32", False),
        "parameters": (14, "map ModelParameter", True),
    },
    "ModelConfigRequest": {"name": (1, "string", False), "version": (2, "string", False)},
    "ModelConfigResponse": {"config": (1, "ModelConfig", False)},
    "InferInputTensor": {
        "name": (1, "string", False),
        "datatype": (2, "string", False),
        "shape": (3, "int64", True),
        "contents": (5, "InferTensorContents", False),
    },
    "InferRequestedOutputTensor": {"name": (1, "string", False)},
    "InferTensorContents": {
        "bool_contents": (1, "bool", True),
        "int_contents": (2, "int32", True),
        "int64_contents": (3, "int64", True),
        "uint_contents": (4, "uint32", True),
        "uint64_contents": (5, "uint64", True),
        "fp32_contents": (6, "float", True),
        "fp64_contents": (7, "double", True),
    },
    "ModelInferRequest": {
        "model_name": (1, "string", False),
        "model_version": (2, "string", False),
        "id": (3, "string", False),
        "inputs": (5, "InferInputTensor", True),
        "outputs": (6, "InferRequestedOutputTensor", True),
        "raw_input_contents": (7, "bytes", True),
    },
    "ModelInferResponse": {
        "model_name": (1, "string", False),
        "model_version": (2, "string", False),
        "id": (3, "string", False),
        "outputs": (5, "InferInputTensor", True),
        "raw_output_contents": (6, "bytes", True),
    },
}


def _entry(message: Any, field: str, kind: str) -> str:
    """Add the message type of a map's entries, and return its name."""
    name = "".join(part.capitalize() for part in field.split("_")) + "Entry"
    nested = message.nested_type.add(name=name)
    nested.options.map_entry = True
    nested.field.add(name="key", number=1, type=_TYPES.TYPE_STRING, label=_TYPES.LABEL_OPTIONAL)
    _add_field(nested, "value", 2, kind, repeated=False)
    return f".{_PACKAGE}.{message.name}.{name}"


def _add_field(message: Any, name: str, number: int, kind: str, repeated: bool) -> None:
    field = message.field.add(
        name=name,
        number=number,
        label=_TYPES.LABEL_REPEATED if repeated else _TYPES.LABEL_OPTIONAL,
    )
    if kind.startswith("map "):
        field.type, field.type_name = _TYPES.TYPE_MESSAGE, _entry(message, name, kind[4:])
    elif kind[0].isupper():
        field.type, field.type_name = _TYPES.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
    else:
        field.type = getattr(_TYPES, f"TYPE_{kind.upper()}")


def _build() -> dict[str, Any]:
    """Return message name → class. The classes have a descriptor pool of their own."""
    file = descriptor_pb2.FileDescriptorProto(
        name="mixout_export/inference.proto", package=_PACKAGE, syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, repeated) in fields.items():
            _add_field(message, field, number, kind, repeated)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


MESSAGES = _build()
