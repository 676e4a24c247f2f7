"""A small random model and its engine."""

import pytest
from tiny_models import make_model

from flopwise.infer.local import LocalEngine
from flopwise.models.transformer import Transformer


@pytest.fixture(scope="session")
def model() -> Transformer:
    return make_model()


@pytest.fixture(scope="session")
def engine(model: Transformer) -> LocalEngine:
    return LocalEngine(model)
