"""What is written weight by weight is what protobuf would have written."""

import io

import onnx
import pytest

import hyps_models
from hyps_models.writing import write_model


@pytest.mark.parametrize("name", ["digits", "encoder-small", "lstm", "mobilenetv2"])
def test_written_model_is_read_back_whole(name: str) -> None:
    model = hyps_models.build(name)
    file = io.BytesIO()

    write_model(model, file)

    assert onnx.load_from_string(file.getvalue()) == model
    assert len(file.getvalue()) == model.ByteSize()
