import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor, nn

from genfed.core.client import Client
from genfed.core.errors import GenfedError
from genfed.core.rng import stream
from genfed.core.task import Data, Task
from genfed.experiment.checks import check_augmentation
from genfed.methods.fedavg import FedAvg
from genfed.methods.gefl_f import GeFLF
from genfed.training import augmentation
from genfed.training.augmentation import AUGMENTATIONS, KINDS, POLICIES, Augmentation, MixedBatch, augment
from genfed.training.classifier import Training, train
from genfed.training.fit import Objective, cross_entropy, fit
from genfed.training.pixels import normalize_pixels

OF_IMAGES = [name for name, kinds in KINDS.items() if "image" in kinds]


def levels(*rows: list[int]) -> Tensor:
    """One image [1, 1, H, W] of levels in [0, 255]."""
    return normalize_pixels(torch.tensor([[rows]], dtype=torch.uint8))


def shown(x: Tensor) -> list[list[int]]:
    rows: list[list[int]] = ((x[0, 0] + 1) * 127.5).round().int().tolist()
    return rows


def amount(value: float, n: int = 1) -> Tensor:
    return torch.full((n,), float(value))


# Mixing images and targets.


def drawing(*values: float) -> Callable[..., Tensor]:
    """Stands for torch.rand: these numbers, in this order."""
    left = list(values)

    def rand(*size: object, generator: torch.Generator) -> Tensor:
        count = len(left) if size[0] != () else 1
        drawn = [left.pop(0) for _ in range(count)]
        return torch.tensor(drawn if size[0] != () else drawn[0])

    return rand


def swapping(n: int, generator: torch.Generator) -> Tensor:
    return torch.arange(n).flip(0)


def test_mixup_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", drawing(0.75))
    monkeypatch.setattr(torch, "randperm", swapping)
    x, partner, share = augmentation.mixup(torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1), stream(0))
    assert x.flatten().tolist() == [0.5, -0.5]
    assert partner.tolist() == [1, 0]
    assert share == 0.75


def test_the_target_is_mixed_as_the_image_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits (0, ln 3), so −ln p is ln 4 for the first class and ln(4/3) for the second; shares ¾ and ¼."""
    network = nn.Linear(1, 2)
    nn.init.zeros_(network.weight)
    network.bias.data = torch.tensor([0.0, math.log(3)])
    monkeypatch.setitem(AUGMENTATIONS, "mixup", lambda x, rng: MixedBatch(x, torch.tensor([1, 0]), 0.75))
    loss = augment(network, "mixup")(torch.zeros(2, 1), torch.tensor([0, 1]), stream(0))
    first, second = math.log(4), math.log(4 / 3)
    expected = [0.75 * first + 0.25 * second, 0.75 * second + 0.25 * first]
    assert loss.tolist() == pytest.approx(expected)
    soft = torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    loss = augment(network, "mixup")(torch.zeros(2, 1), soft, stream(0))
    smooth = (first + second) / 2
    assert loss.tolist() == pytest.approx([0.75 * smooth + 0.25 * second, 0.75 * second + 0.25 * smooth])


def test_cutmix_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """λ = ¾: half the sides of 4×4, about the pixel in row 2 and column 0; half of the box is off the image."""
    monkeypatch.setattr(torch, "rand", drawing(0.4, 0.75, 0.5, 0.1))
    monkeypatch.setattr(torch, "randperm", swapping)
    before = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1).expand(2, 1, 4, 4)
    x, _, share = augmentation.cutmix(before, stream(0))
    assert x[0, 0].tolist() == [[1, 1, 1, 1], [-1, 1, 1, 1], [-1, 1, 1, 1], [1, 1, 1, 1]]
    assert torch.equal(x[1], -x[0])
    assert share == 14 / 16


def test_the_share_of_cutmix_is_what_stays_of_every_image() -> None:
    before = torch.linspace(-1, 1, 10).reshape(10, 1, 1, 1).expand(10, 3, 9, 12)
    pasted = 0
    for seed in range(60):
        x, partner, share = augmentation.cutmix(before, stream(seed))
        own = (x == before).float().mean((1, 2, 3))
        assert own[partner != torch.arange(10)].tolist() == pytest.approx(
            [share] * int((partner != torch.arange(10)).sum())
        )
        assert bool(((x == before) | (x == before[partner])).all())
        pasted += share < 1
    assert 15 < pasted < 45, "half of the batches"


# Operations on known pixels.

X = levels([0, 100, 200], [10, 127, 128], [50, 60, 255])
KNOWN: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float, list[list[int]]]] = {
    "invert": (augmentation.invert, 0, [[255, 155, 55], [245, 128, 127], [205, 195, 0]]),
    "solarize": (augmentation.solarize, 128, [[0, 100, 55], [10, 127, 127], [50, 60, 0]]),
    "solarize nothing": (augmentation.solarize, 256, shown(X)),
    "posterize to 2 bits": (augmentation.posterize, 2, [[0, 64, 192], [0, 64, 128], [0, 0, 192]]),
    "posterize to 1.2 bits is to 2": (augmentation.posterize, 1.2, [[0, 64, 192], [0, 64, 128], [0, 0, 192]]),
    "posterize to 8 bits": (augmentation.posterize, 8, shown(X)),
    "rotate by 90°": (augmentation.rotate, 90, [[200, 128, 255], [100, 127, 60], [0, 10, 50]]),
    "rotate by 0°": (augmentation.rotate, 0, shown(X)),
    "translate_x by a pixel": (augmentation.translate_x, 1 / 3, [[100, 200, 0], [127, 128, 0], [60, 255, 0]]),
    "translate_x back": (augmentation.translate_x, -1 / 3, [[0, 0, 100], [0, 10, 127], [0, 50, 60]]),
    "translate_x by less than half a pixel": (augmentation.translate_x, 0.1, shown(X)),
    "translate_y by a pixel": (augmentation.translate_y, 1 / 3, [[10, 127, 128], [50, 60, 255], [0, 0, 0]]),
    "shear_x by 0": (augmentation.shear_x, 0, shown(X)),
    # Rows are ½, 3/2 and 5/2 pixels down: from ½, 3/2 and 5/2 pixels right.
    "shear_x by 1": (augmentation.shear_x, 1, [[50, 150, 100], [128, 64, 0], [128, 0, 0]]),
    "shear_y by 1": (augmentation.shear_y, 1, [[5, 94, 128], [30, 30, 0], [25, 0, 0]]),
    "brightness 0": (augmentation.adjust_brightness, 0, [[0] * 3] * 3),
    "brightness 1": (augmentation.adjust_brightness, 1, shown(X)),
    "brightness 1.5": (augmentation.adjust_brightness, 1.5, [[0, 150, 255], [15, 190, 192], [75, 90, 255]]),
    "contrast 0": (augmentation.adjust_contrast, 0, [[103] * 3] * 3),
    "contrast 1": (augmentation.adjust_contrast, 1, shown(X)),
    "colour of grey": (augmentation.adjust_color, 0.1, shown(X)),
    "sharpness 0": (augmentation.adjust_sharpness, 0, [[0, 100, 200], [10, 111, 128], [50, 60, 255]]),
    "sharpness 1": (augmentation.adjust_sharpness, 1, shown(X)),
    "autocontrast": (augmentation.autocontrast, 0, shown(X)),
    "equalize so few pixels": (augmentation.equalize, 0, shown(X)),
}


@pytest.mark.parametrize("name", list(KNOWN))
def test_known_pixels(name: str) -> None:
    apply, value, expected = KNOWN[name]
    assert np.abs(np.subtract(shown(apply(X, amount(value))), expected)).max() <= 1
    assert shown(X) == [[0, 100, 200], [10, 127, 128], [50, 60, 255]], "the image itself stays"


def test_rotation_is_about_the_centre_and_anticlockwise() -> None:
    x = torch.rand(2, 3, 8, 8, generator=stream(0)) * 2 - 1
    for quarter in range(4):
        torch.testing.assert_close(augmentation.rotate(x, amount(90 * quarter, 2)), torch.rot90(x, quarter, (2, 3)))
    wide = levels([0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 255, 0], [0, 0, 0, 0, 0, 0])
    assert shown(augmentation.rotate(wide, amount(180)))[1] == [0, 255, 0, 0, 0, 0], "oblong images are not stretched"
    assert shown(augmentation.rotate(wide, amount(90)))[0] == [0, 0, 64, 64, 0, 0], (
        "1½ pixels right is 1½ up, half outside"
    )


def test_autocontrast_takes_each_channel_alone() -> None:
    x = torch.cat([levels([100, 150, 200]), levels([7, 7, 7])], 1)
    stretched = augmentation.autocontrast(x, amount(0))
    assert stretched[0, 0, 0].tolist() == pytest.approx([-1, 0, 1], abs=1e-6)
    assert torch.equal(stretched[0, 1], x[0, 1]), "a channel of one level stays"


def test_every_image_has_its_own_amount() -> None:
    out = augmentation.adjust_brightness(X.expand(2, 1, 3, 3), torch.tensor([0.0, 1.0]))
    assert float(out[0].max()) == -1
    torch.testing.assert_close(out[1], X[0])


PIL: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float, Callable[[Image.Image], Image.Image]]] = {
    "equalize": (augmentation.equalize, 0, ImageOps.equalize),
    "autocontrast": (augmentation.autocontrast, 0, ImageOps.autocontrast),
    "posterize": (augmentation.posterize, 3, lambda image: ImageOps.posterize(image, 3)),
    "solarize": (augmentation.solarize, 77, lambda image: ImageOps.solarize(image, 77)),
    "invert": (augmentation.invert, 0, ImageOps.invert),
    "colour": (augmentation.adjust_color, 1.6, lambda image: ImageEnhance.Color(image).enhance(1.6)),
    "contrast": (augmentation.adjust_contrast, 0.3, lambda image: ImageEnhance.Contrast(image).enhance(0.3)),
    "brightness": (augmentation.adjust_brightness, 1.4, lambda image: ImageEnhance.Brightness(image).enhance(1.4)),
    "sharpness": (augmentation.adjust_sharpness, 1.9, lambda image: ImageEnhance.Sharpness(image).enhance(1.9)),
    "shear_x": (augmentation.shear_x, 0.2, lambda image: affine(image, (1, 0.2, 0, 0, 1, 0))),
    "shear_y": (augmentation.shear_y, -0.3, lambda image: affine(image, (1, 0, 0, -0.3, 1, 0))),
    "translate_y": (augmentation.translate_y, 0.25, lambda image: affine(image, (1, 0, 0, 0, 1, 8))),
    "rotate": (augmentation.rotate, 20, lambda image: image.rotate(20, Image.Resampling.BILINEAR)),
}


def affine(image: Image.Image, data: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)


@pytest.mark.parametrize("name", list(PIL))
@pytest.mark.parametrize("shape", [(32, 40), (32, 40, 3)])
def test_operations_are_those_of_pillow(name: str, shape: tuple[int, ...]) -> None:
    """To a few levels of 256, for what Pillow cuts off at each step; its borders are mixed otherwise, so not these."""
    apply, value, theirs = PIL[name]
    smooth = np.random.default_rng(0).normal(size=(4, 5, *shape[2:])).repeat(8, 0).repeat(8, 1) * 40 + 110
    pixels = (smooth + np.random.default_rng(1).normal(size=shape) * 10).clip(3, 250).astype(np.uint8)
    x = normalize_pixels(torch.from_numpy(pixels.reshape(*shape[:2], -1)).permute(2, 0, 1)[None])
    ours = ((apply(x, amount(value))[0].permute(1, 2, 0) + 1) * 127.5).round().numpy().reshape(shape)
    off = np.abs(ours - np.asarray(theirs(Image.fromarray(pixels)), dtype=float))
    inside = ours.reshape(*shape[:2], -1).min(2) > 0
    eroded = inside[1:-1, 1:-1] & inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    assert eroded.mean() > 0.5
    assert off[1:-1, 1:-1][eroded].max() <= (4 if name == "rotate" else 2)


def test_the_policy_has_25_pairs_of_known_operations() -> None:
    assert len(POLICIES) == 25
    assert {name for pair in POLICIES for name, _, _ in pair} <= set(augmentation._AUTOAUGMENT)
    assert all(0 <= chance <= 1 and 0 <= level <= 9 for pair in POLICIES for _, chance, level in pair)


def test_an_operation_falls_to_its_images_alone_and_in_both_directions() -> None:
    x = X.expand(40, 1, 3, 3)
    operations = [augmentation._AUTOAUGMENT["invert"], augmentation._AUGMIX["translate_x"]]
    chosen = torch.tensor([-1] * 4 + [0] * 4 + [1] * 32)
    out = augmentation._apply_operations(x, operations, chosen, torch.ones(40), stream(0))
    assert torch.equal(out[:4], x[:4])
    assert torch.equal(out[4:8], -x[4:8])
    first = {round(float(image[0, 0, 0]), 2) for image in out[8:]}
    assert first == {-1.0, round(100 / 127.5 - 1, 2)}, "to the left and to the right"


# All of them.


@pytest.mark.parametrize("name", OF_IMAGES)
@pytest.mark.parametrize("shape", [(7, 1, 8, 8), (5, 3, 17, 12), (1, 4, 9, 9)])
def test_batches_keep_their_shape_and_range_and_are_drawn_from_the_stream_alone(
    name: str, shape: tuple[int, ...]
) -> None:
    x = normalize_pixels((torch.rand(shape, generator=stream(0)) * 256).to(torch.uint8))
    before, around = x.clone(), torch.get_rng_state()
    changed = False
    for seed in range(8):
        out, again = (AUGMENTATIONS[name](x, stream(seed)) for _ in range(2))
        assert torch.equal(out.x, again.x)
        assert out.x.shape == x.shape
        assert out.x.dtype == torch.float32
        assert float(out.x.abs().max()) <= 1
        assert 0 <= out.share <= 1
        assert sorted(out.partner.tolist()) == list(range(len(x)))
        changed |= not torch.equal(out.x, x)
    assert torch.equal(x, before), "the batch may be the client's own data"
    assert torch.equal(torch.get_rng_state(), around)
    assert changed or (name in ("mixup", "cutmix") and len(x) == 1)


# In training.

DATA = Data((torch.rand(24, 1, 8, 8, generator=stream(0)) * 256).to(torch.uint8), torch.arange(24) % 3)


def client(precision: str = "float32") -> Client:
    parts = {"info": None, "task": None, "data": DATA, "storage": None, "rng": stream(5), "seed": 0}
    return Client(**parts, device=torch.device("cpu"), precision=precision, new_network_of=None)  # type: ignore[arg-type]


def network() -> nn.Module:
    made = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    made.load_state_dict({"1.weight": torch.linspace(-1, 1, 192).view(3, 64), "1.bias": torch.zeros(3)})
    return made


def trained(augmentation: Augmentation, precision: str = "float32") -> Tensor:
    learner = network()
    how = Training(epochs=2, batch_size=8, augmentation=augmentation)
    assert math.isfinite(train(learner, client(precision), how))
    return torch.cat([p.detach().flatten() for p in learner.parameters()])


def test_without_augmentation_training_has_the_bits_that_it_had() -> None:
    plain = network()
    objective = Objective(cross_entropy(plain), torch.optim.SGD(plain.parameters(), lr=0.1, fused=True))
    fit([objective], DATA, epochs=2, batch_size=8, rng=stream(5))
    assert torch.equal(trained("none"), torch.cat([p.detach().flatten() for p in plain.parameters()]))


@pytest.mark.parametrize("name", OF_IMAGES)
def test_training_is_augmented_and_repeats(name: Augmentation) -> None:
    once = trained(name)
    assert torch.equal(once, trained(name))
    assert not torch.equal(once, trained("none"))
    assert bool(trained(name, "bfloat16").isfinite().all())


def test_what_are_no_images_is_not_augmented() -> None:
    method = FedAvg(training=Training(augmentation="cutmix"))
    check_augmentation("fedavg", method, Task("image", (1, 8, 8), ("a",)))
    check_augmentation("fedavg", FedAvg(), Task("table", (8,), ("a",)))
    for kind, shape, what in (("table", (8,), "a table"), ("features", (4, 8, 8), "features")):
        with pytest.raises(GenfedError, match=rf'fedavg\.training\.augmentation = "cutmix": the examples are {what}'):
            check_augmentation("fedavg", method, Task(kind, shape, ("a",)))  # type: ignore[arg-type]
    with pytest.raises(GenfedError, match=r'x\.training\.augmentation = "mixup": this method does not augment there'):
        check_augmentation("x", GeFLF(training=Training(augmentation="mixup")), Task("image", (1, 8, 8), ("a",)))
