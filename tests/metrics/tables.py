"""Small tables for the tests of their measures."""

from typing import Any

import numpy as np
import pandas


def make_patients(rows: int, seed: int = 0) -> Any:
    """Returns a DataFrame with related columns of every type: ill depends on age and dose, seen on age, clinic on
    sex.
    """
    rng = np.random.default_rng(seed)
    age = rng.integers(20, 90, rows)
    dose = rng.gamma(2.0, 3.0, rows) + age / 30
    ill = age / 20 + dose / 4 + rng.normal(0, 0.7, rows) > 4.3
    sex = rng.choice(["f", "m"], rows)
    clinic = np.where(rng.random(rows) < 0.9, np.where(sex == "f", "north", "south"), "east")
    dose = np.where(rng.random(rows) < 0.1, np.nan, dose)
    return pandas.DataFrame(
        {
            "age": age,
            "dose": dose,
            "sex": sex,
            "clinic": pandas.Series(clinic).where(pandas.Series(rng.random(rows) >= 0.05)),
            "smokes": rng.random(rows) < 0.3,
            "seen": pandas.Timestamp("2024-01-01") + pandas.to_timedelta(age * 3 + rng.integers(0, 9, rows), unit="D"),
            "ill": np.where(ill, "yes", "no"),
        }
    )
