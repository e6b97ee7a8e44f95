"""Tests of answers as codes: a number for each binary label, one-hot classes, and the logits that give them back."""

import numpy as np
import pytest

from cpgan_ray.data import Task
from cpgan_ray.data.answers import answer_bits, answer_logits, answer_numbers
from cpgan_ray.training.accuracy import predictions

TASK = Task.of(("odd", "group", "ink"), classes={"group": ("a", "b", "c", "d", "e"), "ink": ("w", "x", "y", "z")})
ANSWERS = np.array([[0, 4, 2], [1, 0, 3]])


def test_answer_numbers_are_bits_and_one_hot_classes():
    numbers = answer_numbers(ANSWERS, TASK)
    assert numbers.dtype == np.float32
    assert numbers.tolist() == [[0, *(0, 0, 0, 0, 1), *(0, 0, 1, 0)], [1, *(1, 0, 0, 0, 0), *(0, 0, 0, 1)]]
    assert answer_numbers(ANSWERS, TASK, sent=[0, 2]).tolist() == [[0, 0, 0, 1, 0], [1, 0, 0, 0, 1]]


def test_answer_logits_give_the_answers_back():
    assert predictions(answer_logits(ANSWERS, TASK), TASK).tolist() == ANSWERS.tolist()


@pytest.mark.parametrize(("chosen", "bits"), [((0,), 1), ((1,), 3), ((2,), 2), ((0, 1, 2), 6)])
def test_answer_bits_are_those_of_the_number_of_values(chosen, bits):
    assert answer_bits(TASK.labels[i] for i in chosen) == bits
