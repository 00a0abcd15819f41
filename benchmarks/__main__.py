"""All benchmarks: prints each section as it is done and writes benchmarks/results/engine.md, with the hardware."""

import datetime
from pathlib import Path

from benchmarks import gefl_round, overhead, scale, speedup
from benchmarks.common import hardware

if __name__ == "__main__":
    sections = [f"# Benchmarks of the engine\n\n{hardware()}, {datetime.date.today()}. Made by `make bench`.\n"]
    for benchmark in (overhead, speedup, gefl_round, scale):
        sections.append(benchmark.main())
        print(sections[-1], flush=True)
    (Path(__file__).parent / "results" / "engine.md").write_text("\n".join(sections), "utf-8")
