"""Wall-time gain of two workers over one."""

import tempfile
from pathlib import Path

from benchmarks.common import alternate, run_apart, workload, write_images

CLIENTS, ROUNDS, PAIRS = 60, 4, 4


def main() -> str:
    """Measures and returns a Markdown section."""
    busy: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        images = Path(name) / "images.npz"
        write_images(images, CLIENTS)

        def rounds_with(workers: int) -> float:
            """Wall time of the rounds after the first, which waits for the workers to import torch."""
            _, _, rows = run_apart(workload(images, CLIENTS, 1 + ROUNDS, workers))
            later = [row for row in rows if row["phase"] == "train" and row["round"] > 0]
            wall = sum(row["seconds"] for row in later if row["client"] is None)
            if workers == 2:
                busy.append(sum(row["seconds"] for row in later if row["client"] is not None) / wall / workers)
            return float(wall)

        pairs = alternate(lambda: rounds_with(1), lambda: rounds_with(2), PAIRS)
    return (
        "## 2. Two workers beside one\n\n"
        f"{CLIENTS} clients, wall time of {ROUNDS} rounds once the workers run, {PAIRS} alternated pairs.\n\n"
        f"Gain, median (least–most): **{pairs.ratio()}**. Aim: at least 1.8 on 2 cores. Of the two workers' time "
        f"{100 * min(busy):.0f}–{100 * max(busy):.0f} % is clients' work; what the gain lacks beyond that is clients that "
        "work slower when both cores are busy.\n"
    )


if __name__ == "__main__":
    print(main())
