"""The stages of training on made-up tensors: losses fall, folds and teachers are what they say."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from examples.train_captioner import self_critical, stages
from examples.train_captioner.data import BEGIN, END, PAD, SPECIAL, Photo, Words
from examples.train_captioner.self_critical import Rewards, train_self_critically
from examples.train_captioner.stages import (
    FOLDS,
    PhotoSet,
    Recipe,
    Seer,
    pretrain_on_text,
    train_extractors,
    train_on_photos,
)
from examples.train_captioner.vision import augment, normalise
from penstock.export.lightcap.config import LightCapConfig
from penstock.export.lightcap.decoding import decode
from penstock.export.lightcap.model import ConceptExtractor, LightCap, PredictionHead
from penstock.export.metrics.caption_scores import score_captions

COLOURS, LENGTH = 4, 5  # photos of one colour each, captioned "a COLOUR square"
PIECES = [*SPECIAL, "a", "square", "red", "green", "blue", "grey"]
CONFIG = LightCapConfig(
    encoder="small-resnet", image_size=8, grid=2, channels=6, alignment=16, embedding=8,
    concepts=COLOURS, top_concepts=2, modulator=8, vocabulary=len(PIECES), hidden=16, layers=2,
    heads=2, ffn=32, positions=32, prediction_heads=3, begin=BEGIN, end=END, mask=4,
)  # fmt: skip
RGB = ((200, 20, 20), (20, 200, 20), (20, 20, 200), (110, 110, 110))


class Blocks(nn.Module):
    """Means of the quarters of a photo, and their negatives."""

    def forward(self, x: Tensor) -> Tensor:
        means = nn.functional.adaptive_avg_pool2d(x, 2)
        return torch.cat([means, -means], dim=1).flatten(2).transpose(1, 2)


@pytest.fixture(scope="module")
def photos() -> PhotoSet:
    total = 4 * COLOURS
    colours = torch.tensor([RGB[i % COLOURS] for i in range(total)], dtype=torch.uint8)
    captions = torch.tensor([[BEGIN, 5, 7 + i % COLOURS, 6, END, PAD] for i in range(total)])
    return PhotoSet(
        pixels=colours[:, :, None, None].expand(-1, 3, 8, 8).contiguous(),
        captions=captions[:, None].expand(-1, 5, -1).contiguous(),
        shares=torch.eye(COLOURS).repeat(4, 1),
    )


def new_seer() -> Seer:
    torch.manual_seed(0)
    return Seer(Blocks(), [ConceptExtractor(CONFIG) for _ in range(FOLDS + 1)], 8)


@pytest.fixture
def seer() -> Seer:
    return new_seer()


@pytest.fixture(scope="module", autouse=True)
def steps() -> Iterator[None]:
    """A second of a stage is a hundred steps: the same work on every machine."""

    def counted(seconds: float) -> Iterator[float]:
        total = round(100 * seconds)
        yield from (step / total for step in range(total))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "stage", counted)
        patch.setattr(self_critical, "stage", counted)
        yield


@pytest.fixture(scope="module")
def taught(photos: PhotoSet) -> Seer:
    made = new_seer()
    train_extractors(made, photos, RECIPE)
    return made


@pytest.fixture
def trained_seer(taught: Seer) -> Seer:
    """One whose extractors have learned, which takes a few seconds; a test may change it."""
    return copy.deepcopy(taught)


def model(config: LightCapConfig = CONFIG) -> LightCap:
    torch.manual_seed(1)
    made = LightCap(config, dropout=0.0)
    made.set_concept_names([[7], [8], [9], [10]])
    return made


def right(trained: LightCap, seer: Seer, photos: PhotoSet) -> float:
    """The share of photos whose greedy caption is theirs."""
    grid = seer.grid(photos.pixels)
    tokens, _ = decode(trained.eval(), grid, LENGTH - 1, concepts=seer.concepts(grid, None))
    return float((tokens == photos.captions[:, 0, 1:LENGTH]).all(dim=1).float().mean())


RECIPE = Recipe(
    extractor_seconds=0.6, text_seconds=0.7, photo_seconds=0.8, batch=8, extractor_lr=1e-2,
    text_lr=1e-2, photo_lr=1e-2, average=0.9,
)  # fmt: skip


def test_extractors_learn_and_leave_their_fold_out(trained_seer: Seer, photos: PhotoSet) -> None:
    before, seer = _concept_loss(new_seer(), photos), trained_seer
    assert _concept_loss(seer, photos) < 0.5 * before
    ids, scores = seer.concepts(seer.grid(photos.pixels), None)
    assert torch.equal(ids[:, 0], photos.shares.argmax(dim=1)) and float(scores[:, 0].min()) > 0.4
    # photos of a fold are seen by the extractor that has not learned from them
    grid = seer.grid(photos.pixels)
    folds = torch.arange(len(grid)) % FOLDS
    mixed = seer.concepts(grid, folds)[1]
    for fold in range(FOLDS):
        own = seer.extractors[fold].top(grid)[1].detach()
        assert torch.equal(mixed[folds == fold], own[folds == fold])


def _concept_loss(seer: Seer, photos: PhotoSet) -> float:
    with torch.no_grad():
        logits = seer.extractors[FOLDS].eval()(seer.grid(photos.pixels))
    return float(nn.functional.binary_cross_entropy_with_logits(logits, photos.shares))


def test_captions_are_learned_from_text_then_photos_with_teachers(
    trained_seer: Seer, photos: PhotoSet
) -> None:
    seer = trained_seer
    torch.manual_seed(2)
    teacher = pretrain_on_text(
        model(replace(CONFIG, hidden=24, layers=3)), [], photos.captions, photos.shares, RECIPE
    )

    def check(trained: LightCap) -> float:
        return right(trained, seer, photos)

    assert check(model()) < 0.3
    teacher, seen = train_on_photos(teacher, [], seer, photos, RECIPE, check, checks=3)
    assert max(seen) == check(teacher) >= 0.75
    short = replace(RECIPE, text_seconds=0.1)
    student = pretrain_on_text(model(), [teacher], photos.captions, photos.shares, short)
    student, seen = train_on_photos(student, [teacher], seer, photos, RECIPE, check, checks=3)
    assert max(seen) == check(student) >= 0.75 and not student.training


def test_the_student_comes_closer_to_its_teacher(seer: Seer, photos: PhotoSet) -> None:
    """Soft tokens alone: the teacher says what no caption does, and the student follows."""
    teacher = model().eval()
    with torch.no_grad():
        for head in teacher.prediction:
            assert isinstance(head, PredictionHead)
            head.bias[5:] += torch.tensor([0.0, 3.0, 0.0, 0.0, 0.0, 3.0])
    grid = seer.grid(photos.pixels)
    ids, scores = seer.concepts(grid, None)

    def apart(student: LightCap) -> float:
        with torch.no_grad():
            ours, theirs = (
                torch.log_softmax(m.eval()(photos.captions[..., :-1], ids, scores, grid).logits, -1)
                for m in (student, teacher)
            )
        return float((theirs.exp() * (theirs - ours)).sum(dim=-1).mean())

    recipe = Recipe(photo_seconds=0.6, batch=8, photo_lr=1e-2, soft=50.0, average=0.0)
    start = model()
    with torch.no_grad():
        start.words.weight.add_(0.3 * torch.randn_like(start.words.weight))
    before, checks = apart(start), count()

    def later(_: LightCap) -> float:
        return float(next(checks))

    taught, _ = train_on_photos(start, [teacher], seer, photos, recipe, later, checks=5)
    assert apart(taught) < 0.3 * before


def test_rewards_are_cider_d() -> None:
    words = Words(PIECES)
    photos = [
        Photo(Path(f"{colour}.jpg"), [f"a {colour} square", f"the square is {colour}"], "x")
        for colour in PIECES[7:]
    ]
    said = torch.tensor([[[5, 7, 6, END], [5, 5, 5, 5]], [[5, 8, 6, END], [5, 7, 6, END]]])
    seen = Rewards(photos, words)(torch.tensor([0, 1]), said)
    texts = [[words.decode([*row, END]) for row in samples] for samples in said.tolist()]
    assert texts[0][0] == "a red square"
    for sample in range(2):
        captions = {p.path.name: "nothing" for p in photos}
        captions |= {photos[i].path.name: texts[i][sample] for i in range(2)}
        references = {p.path.name: p.captions for p in photos}
        scored = score_captions(captions, references).cider_d.images
        for row in range(2):
            assert float(seen[row, sample]) == pytest.approx(
                scored[photos[row].path.name], abs=1e-5
            )
    assert float(seen[0, 0]) > float(seen[0, 1])


def test_self_critical_training_makes_rewarded_captions_likelier(
    trained_seer: Seer, photos: PhotoSet
) -> None:
    seer = trained_seer

    class Squares(Rewards):
        """A reward for 'square', whatever the photo shows."""

        def __init__(self) -> None:
            pass

        def __call__(self, rows: Tensor, tokens: Tensor) -> Tensor:
            return (tokens == 6).float().mean(dim=-1)

    def squares(trained: LightCap) -> float:
        grid = seer.grid(photos.pixels)
        tokens, _ = decode(trained, grid, LENGTH, concepts=seer.concepts(grid, None))
        return float((tokens == 6).float().mean())

    torch.manual_seed(0)
    start = model()
    before = squares(start.eval())
    trained, seen = train_self_critically(
        start, seer, photos, Squares(), squares, seconds=0.4, batch=8, samples=4, lr=1e-2,
        likelihood=0.0, checks=3,
    )  # fmt: skip
    assert seen[0] == before and max(seen) == squares(trained) > before + 0.3


def test_augmentation_keeps_size_range_and_colour(photos: PhotoSet) -> None:
    torch.manual_seed(0)
    seen = augment(photos.pixels, 8)
    assert seen.shape == (16, 3, 8, 8) and -1 <= float(seen.min()) <= float(seen.max()) <= 1
    assert torch.equal(seen[:3].mean(dim=(2, 3)).argmax(dim=1), torch.arange(3))
    assert not torch.equal(augment(photos.pixels, 8), seen)
    assert normalise(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


def test_views_are_kept_where_encoding_is_slow(seer: Seer, photos: PhotoSet) -> None:
    seer.keep_views(photos.pixels, 3)
    rows = torch.tensor([2, 0, 2])
    grids = {tuple(seer.training_grid(photos.pixels, rows)[0].flatten().tolist())
             for _ in range(30)}  # fmt: skip
    assert 1 < len(grids) <= 3
    grid = seer.training_grid(photos.pixels, torch.arange(3))
    assert torch.equal(grid.mean(dim=1)[:, :3].argmax(dim=1), torch.arange(3))
