"""Memory and time per client at 10, 100 and 1,000 clients."""

import tempfile
from pathlib import Path

from benchmarks.common import run_apart, workload, write_images

WORKERS = 2


def main() -> str:
    """Measures and returns a Markdown section."""
    lines = []
    for method in ("fedavg", "gefl"):
        first = 0.0
        for clients in (10, 100, 1000):
            with tempfile.TemporaryDirectory() as name:
                images = Path(name) / "images.npz"
                write_images(images, clients)
                config = workload(images, clients, 2, WORKERS) | {"methods": [method]}
                if method == "gefl":
                    small = {"kind": "cvae", "width": 16}
                    config["method"] = {"gefl": {"generator_rounds": 2, "generator_epochs": 1, "generator": small}}
                memory, report, _ = run_apart(config)
            first = first or memory
            costs = [c for c in report.trials[0].costs if c.phase != "evaluate"]
            work = sum(c.client_seconds for c in costs) / sum(c.rounds for c in costs) / clients
            wall = sum(c.seconds for c in costs) / sum(c.rounds for c in costs) / clients
            lines.append(
                f"| {method} | {clients} | {memory:.0f} | {memory - first:+.0f} | {1000 * work:.0f} | {1000 * wall:.0f} |"
            )
    return (
        "## 4. Memory and time per client\n\n"
        f"50 images a client, 2 rounds of each phase, {WORKERS} workers. Memory: peak over the run of the sum of PSS over all "
        "processes.\n\n"
        "| method | clients | MiB | more than with 10 | ms of work a client and round | ms of wall time |\n"
        "|---|---:|---:|---:|---:|---:|\n"
        + "\n".join(lines)
        + "\n\nAim: 1,000 clients in under 1,024 MiB more than 10.\n"
    )


if __name__ == "__main__":
    print(main())
