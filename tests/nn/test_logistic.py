"""Logistic regression against scikit-learn's."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from blemish.nn.logistic import logistic


def test_the_direction_is_that_of_an_independent_solver():
    draw = np.random.default_rng(0)
    good, bad = draw.normal(size=(400, 5)), draw.normal(np.array([1, 0, 0, -1, 0]), size=(20, 5))
    found = logistic(torch.tensor(bad).float(), torch.tensor(good).float(), 0.01)
    labels = np.arange(420) < 20
    # scikit-learn adds up losses and takes half of the squared length.
    oracle = LogisticRegression(C=1 / (2 * 0.01), tol=1e-8, max_iter=1000)
    oracle.fit(np.concatenate([bad, good]), labels, np.where(labels, 0.5 / 20, 0.5 / 400))
    np.testing.assert_allclose(found, oracle.coef_[0], atol=2e-3)
