"""Images per second of FedLMG's guided synthesis, beside the published way: one image at a time, the same model and
steps. `python -m benchmarks.guided [MODEL]`, a directory in diffusers' format; by default the model that ships.
"""

import argparse
import datetime
import statistics
import time
from pathlib import Path

import torch

from benchmarks.common import alternate, hardware
from genfed.config.architectures import Architectures
from genfed.core.task import Task
from genfed.engines.flops import FlopCounter
from genfed.foundation.classifier_guidance import ClassifierGuidance, Teacher, generate_guided
from genfed.foundation.loading import load_foundation
from genfed.foundation.settings import Foundation

BATCH, ONE_BY_ONE, PAIRS = 64, 4, 7
DIGITS = tuple("0123456789")


def main(model: str = "shipped") -> str:
    """Measures and returns a Markdown page."""
    torch.set_num_threads(1)
    foundation = load_foundation(model, classes=DIGITS)
    task = Task("image", foundation.image_shape, DIGITS)
    teachers = {i: Teacher(Architectures().new("cnn2-bn", task, torch.Generator().manual_seed(i))) for i in range(4)}
    lines = []
    for guidance in (1.0, 3.0):
        sampling = Foundation(model=model, scheduler="ddpm", steps=15, guidance_scale=guidance)

        def made(images: int, at_once: int, sampling: Foundation = sampling) -> float:
            """Seconds per image."""
            begun = time.perf_counter()
            for start in range(0, images, at_once):
                ids = torch.arange(start, start + at_once)
                generate_guided(
                    foundation,
                    sampling,
                    ClassifierGuidance(noise_edits=3),
                    teachers,
                    foundation.encode_condition([f"an image of {i % 10}" for i in ids.tolist()]),
                    ids % 10,
                    ids % len(teachers),
                    [torch.Generator().manual_seed(i) for i in ids.tolist()],
                    task.shape,
                )
            return (time.perf_counter() - begun) / images

        pairs = alternate(lambda: made(ONE_BY_ONE, 1), lambda: made(BATCH, BATCH), PAIRS)
        with FlopCounter() as flops:
            made(1, 1)
        one, batch = (1 / statistics.median(times) for times in (pairs.first, pairs.second))
        lines.append(
            f"| {guidance:g} | {one:.2f} | {batch:.2f} | **{pairs.ratio()}** | {flops.count / 1e9:.2f} | {flops.count * batch / 1e9:.0f} |"
        )
    parameters = sum(p.numel() for p in foundation.network.parameters())
    return (
        "# Guided synthesis: batches beside one image at a time\n\n"
        f"{hardware()}, one thread, {datetime.date.today()}. `python -m benchmarks.guided`: FedLMG on the model `{model}` "
        f"({parameters / 1e6:.1f} M parameters in its U-Net, images of {'×'.join(map(str, task.shape))}, latents of "
        f"{'×'.join(map(str, foundation.latent_shape))}); 15 steps of DDPM, 3 edits of the initial noise, λ = 0.1, four "
        f"classifiers (cnn2-bn). {BATCH} images in a batch, of all four clients; {ONE_BY_ONE} images one by one; {PAIRS} "
        "alternated pairs; gain: median (least–most) of paired ratios of seconds per image. Aim: at least 10.\n\n"
        "| guidance w | one by one, images/s | batched, images/s | gain | GFLOP per image | GFLOP/s, batched |\n"
        "|---:|---:|---:|---:|---:|---:|\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="shipped")
    text = main(parser.parse_args().model)
    (Path(__file__).parent / "results" / "guided-synthesis.md").write_text(text, "utf-8")
    print(text)
