"""Kept oracles: the same values have one answer, and whatever differs has another."""

from dataclasses import replace

import torch

from tests.kept_oracles import digest, kept
from variants.catalogue import load

FULL = load("full/matmul").definition
X = torch.arange(6.0).reshape(2, 3)


def test_an_answer_is_kept_for_the_same_question_alone() -> None:
    asked: list[int] = []

    def say() -> torch.Tensor:
        asked.append(len(asked))
        return torch.tensor(asked[-1])

    first = kept(FULL, True, {"window": 1}, (X,), say)
    assert kept(FULL, True, {"window": 1}, (X.clone(),), say) is first
    others = [
        kept(replace(FULL), True, {"window": 1}, (X,), say),
        kept(FULL, False, {"window": 1}, (X,), say),
        kept(FULL, True, {"window": 2}, (X,), say),
        kept(FULL, True, {"window": 1}, (X, X), say),
        kept(FULL, True, {"window": 1}, (X + 1,), say),
    ]
    assert [int(one) for one in (first, *others)] == asked == [0, 1, 2, 3, 4, 5]


def test_a_digest_tells_values_shapes_and_types_and_no_strides() -> None:
    assert digest(X.T.contiguous().T) == digest(X)
    different = (X, X + 1, X.reshape(3, 2), X.double(), X.bfloat16(), torch.empty(0, 3), torch.empty(3, 0))
    assert len({digest(one) for one in different}) == len(different)
