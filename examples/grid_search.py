# SPDX-FileCopyrightText: The ipcbuf authors
# SPDX-License-Identifier: Apache-2.0
"""A grid search of scikit-learn on our workers, through joblib; compared with one process alone.

    pip install scikit-learn
    python examples/grid_search.py
    python examples/grid_search.py --samples 1797 --workers 4

Nothing in the search knows about ipcbuf: one import registers the backend, one line chooses it.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

GRID = {"C": [0.1, 1.0, 10.0], "gamma": [0.0001, 0.001, 0.01]}


def search(samples: int, workers: int) -> tuple[dict[str, float], list[float], float]:
    """Return the best parameters, the scores of all, and the seconds that it took."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    digits: Any = load_digits()
    start = time.perf_counter()
    found = GridSearchCV(SVC(), GRID, cv=3, n_jobs=workers)
    found.fit(digits.data[:samples], digits.target[:samples])
    seconds = time.perf_counter() - start
    return found.best_params_, list(found.cv_results_["mean_test_score"]), seconds


def main() -> int:
    """Search twice; the exit status is 0 if both have found the same."""
    parser = argparse.ArgumentParser(description="a grid search on the workers of ipcbuf")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    try:
        import joblib
        import sklearn  # noqa: F401

        import ipcbuf_mp.joblib  # registers the backend
    except ImportError as error:
        print(f"nothing to show: {error}; pip install scikit-learn")
        return 0

    best, alone, seconds_alone = search(chosen.samples, workers=1)
    with joblib.parallel_config("ipcbuf"):
        same_best, scores, seconds = search(chosen.samples, chosen.workers)
    ipcbuf_mp.joblib.shutdown()  # the workers would wait for the next search

    if (best, alone) != (same_best, scores):
        sys.exit(f"{same_best} with {scores}, but alone {best} with {alone}")
    print(f"{len(scores)} candidates, best {best}; in one process {seconds_alone:.2f} s")
    print(f"the same on {chosen.workers} workers of ipcbuf, their start included: {seconds:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
