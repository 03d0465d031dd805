"""The encoder treats its inputs as a BERT encoder does."""

import io

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

import hyps_models
from hyps_models.writing import write_model


@pytest.fixture(scope="module")
def session() -> ort.InferenceSession:
    file = io.BytesIO()
    write_model(hyps_models.build("encoder-small"), file)
    return ort.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])


def _hidden(session: ort.InferenceSession, tokens: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
    inputs = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros_like(tokens)}
    return np.asarray(session.run(["last_hidden_state"], inputs)[0])


def _tokens(length: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.PCG64(0)).integers(0, 30522, (1, length), np.int64)


@pytest.mark.parametrize("length", [1, 7, 512])
def test_sequences_may_have_any_length_up_to_the_last_position(session: ort.InferenceSession, length: int) -> None:
    tokens = _tokens(length)

    assert _hidden(session, tokens, np.ones_like(tokens)).shape == (1, length, 128)


def test_padding_changes_nothing(session: ort.InferenceSession) -> None:
    tokens = _tokens(12)
    mask = np.ones_like(tokens)
    mask[:, 8:] = 0

    padded = _hidden(session, tokens, mask)[:, :8]
    alone = _hidden(session, tokens[:, :8], mask[:, :8])

    np.testing.assert_allclose(padded, alone, rtol=0, atol=1e-5)


def test_the_order_of_tokens_matters(session: ort.InferenceSession) -> None:
    tokens = _tokens(8)
    mask = np.ones_like(tokens)

    turned = _hidden(session, tokens[:, ::-1].copy(), mask)[:, ::-1]

    assert np.abs(turned - _hidden(session, tokens, mask)).max() > 0.1
