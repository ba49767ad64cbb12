"""What each stage of the compression does. The defaults are for scenes that move."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from penstock.errors import UsageError
from penstock.loaders.splats.model import FOOTPRINTS

SCORES = ("absolute", "signed")
SHAPES = ("moments", "representative")
APPEARANCES = ("sh", "nets")
LOSSES = ("l1", "l2")
DEVICES = ("cpu", "cuda", "auto")
CODINGS = ("vectors", "scalars", "exact")


@dataclass(frozen=True)
class BookSizes:
    """Bits of each sub-vector's index, and of the integers; codebooks of 2^bits codes at most.

    A tuple has one entry a sub-vector, which cut the attribute's columns into equal parts.

    Attributes:
        position: of each coordinate of the mean, at most; 1 to 21. time: of t_center, 4 to 16.
        position_parts: how fine a large splat's place is: its middle scale over this; None: as
            fine as a small one's.
        scale: of the 3 columns of ln scale.
        rotation: of the 3 columns x, y, z of the rotation with the largest w, or, of two
            sub-vectors, the 4 columns of the quaternion.
        opacity: 1 column.
        colour: of the 3 columns of the harmonics' constant term, on opponent axes.
        rest: of the other harmonics, one sub-vector a degree.
        displacement: of the 3 columns velocity t_sigma. t_sigma: of ln t_sigma.
        appearance: of the 6 features of the implicit nets.
        bytes_a_splat: that each codebook may take; many splats have larger ones than few.
    """

    position: int = 18
    position_parts: float | None = 8.0
    time: int = 12
    scale: tuple[int, ...] = (8, 8, 8)
    rotation: tuple[int, ...] = (7, 7, 7)
    opacity: tuple[int, ...] = (7,)
    colour: tuple[int, ...] = (8, 7, 7)
    rest: tuple[int, ...] = (8, 6, 6)
    displacement: tuple[int, ...] = (7, 7, 7)
    t_sigma: tuple[int, ...] = (8,)
    appearance: tuple[int, ...] = (10, 10, 10)
    bytes_a_splat: float = 0.25

    @classmethod
    def omg4(cls) -> BookSizes:
        """The paper's: 3 x 2^9 scale, 2 x 2^13 rotation, 3 x 2^10 appearance, 2^9 t_sigma. The
        right quaternion, 2 x 2^13, is here the displacement, which is what it stands for."""
        return cls(
            position=16,
            position_parts=None,
            time=16,
            scale=(9, 9, 9),
            rotation=(13, 13),
            opacity=(10,),
            colour=(10, 10, 10),
            rest=(10, 10, 10),
            displacement=(13,),
            t_sigma=(9,),
            bytes_a_splat=1e6,
        )

    @classmethod
    def static(cls) -> BookSizes:
        """For scenes that do not move, where nothing but the quantization loses anything."""
        return cls(
            scale=(8, 8, 8),
            rotation=(8, 8, 8),
            opacity=(8,),
            colour=(8, 7, 7),
            rest=(12, 10, 10),
            bytes_a_splat=0.5,
        )


@dataclass(frozen=True)
class CompressionSettings:
    """The switches and numbers of the stages.

    Attributes:
        sampling: keep the best by their SD score. keep: what share of them (the paper's tau_GS).
        score: "signed", the paper's sum of signed time gradients; "absolute", of their sizes.
        pruning: drop what is low in space and in time. pruning_quantile: what is low (tau_GP).
        merging: replace neighbours that look alike by one. merge_rounds: how often.
        merge_cell, merge_span: of the grid: share of the scene's longest side and of its time.
        merge_similarity, merge_quantile: a pair is alike when it is over both.
        merge_growth: of the cells from round to round.
        merge_shape: "representative", the paper's: shape and times of one member; "moments": of
            the whole group's mass.
        merge_steps: of training each group's weights; 0: weights by mass.
        refine_steps: of training after each stage that removes splats, but the last.
        final_steps: of training after the last of them.
        settling: what stands still for the whole scene is said to: settling.py.
        colour_steps: of training colours and opacities once places and shapes are quantized.
        tune_steps: of training the codebooks with fixed indices.
        appearance: "sh", harmonics through codebooks; "nets", OMG4's implicit nets.
        degree: of the harmonics at most; None: as the model's.
        net_steps: of training the nets.
        quantization: False: steps so small that they hardly lose anything; for ablations.
        coding: "vectors", the paper's codebooks; "scalars", each number rounded to a step
            (static_quantization.py); "exact", the numbers' own levels where there are few, as SPZ
            and SOG have them, else scalars.
        entropy: False: the file's numbers are of fixed width, but for the positions; for ablations.
        books: sizes of the codebooks. finer: scalars' steps are divided by it.
        loss: "l1" or "l2" of refinement. ssim: weight of 1 - SSIM in it.
        batch: views of a step.
        own_views: with photos, look at the model's own pictures from all around, too: what no photo
            shows then stays as it was.
        rates: all learning rates are multiplied by it.
        footprint: as wide as pictures for scores, training and quality have them: "exact", or
            "omg4-sentinel", as the official checkpoints were trained; nothing of it is in the file.
        device: "cpu": the native rasteriser; "cuda": one in torch; "auto": cuda where it is.
        threads: of the native rasteriser; None: all cores.
        seed: of every choice by chance.
    """

    sampling: bool = False
    keep: float = 0.2
    score: str = "absolute"
    pruning: bool = True
    pruning_quantile: float = 0.3
    merging: bool = True
    merge_rounds: int = 1
    merge_cell: float = 0.03
    merge_span: float = 0.3
    merge_similarity: float = -0.0008
    merge_quantile: float = 0.0
    merge_growth: float = 1.2
    merge_shape: str = "moments"
    merge_steps: int = 50
    refine_steps: int = 300
    final_steps: int = 5000
    settling: bool = True
    colour_steps: int = 100
    tune_steps: int = 100
    appearance: str = "sh"
    degree: int | None = 1
    net_steps: int = 3000
    quantization: bool = True
    coding: str = "vectors"
    finer: float = 1.0
    entropy: bool = True
    books: BookSizes = field(default_factory=BookSizes)
    loss: str = "l2"
    ssim: float = 0.0
    batch: int = 2
    own_views: bool = True
    rates: float = 6.0
    footprint: str = "exact"
    device: str = "cpu"
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_numbers()

    @classmethod
    def omg4(cls) -> CompressionSettings:
        """The paper's choices as far as they carry over, with fewer steps."""
        return cls(
            sampling=True,
            keep=0.2,
            pruning_quantile=0.8,
            score="signed",
            merge_cell=0.01,
            merge_span=0.2,
            merge_similarity=-0.0003,
            merge_quantile=0.7,
            merge_shape="representative",
            merge_rounds=2,
            degree=None,
            merge_steps=1000,
            refine_steps=1000,
            final_steps=1000,
            settling=False,
            colour_steps=0,
            tune_steps=1000,
            appearance="nets",
            net_steps=5000,
            books=BookSizes.omg4(),
            loss="l1",
            ssim=0.2,
            rates=1.0,
            batch=4,
            own_views=False,
        )

    @classmethod
    def static(cls) -> CompressionSettings:
        """Quantization alone: a scene that does not move, and views of its own at best. Steps as
        fine as make no lower PSNR than SPZ's."""
        return cls(
            sampling=False,
            pruning=False,
            merging=False,
            refine_steps=0,
            final_steps=0,
            settling=False,
            colour_steps=0,
            tune_steps=0,
            degree=None,
            coding="scalars",
            finer=1.5,
            books=BookSizes.static(),
        )

    @classmethod
    def exact(cls) -> CompressionSettings:
        """Nothing but coding, of the numbers as they are where their format has few levels."""
        return cls.static().with_changes(coding="exact")

    def with_changes(self, **changes: Any) -> CompressionSettings:
        """A copy with other values, checked again."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def _check_choices(self) -> None:
        for name, known in (
            ("score", SCORES),
            ("merge_shape", SHAPES),
            ("appearance", APPEARANCES),
            ("loss", LOSSES),
            ("footprint", FOOTPRINTS),
            ("device", DEVICES),
            ("coding", CODINGS),
        ):
            value = getattr(self, name)
            if value not in known:
                raise UsageError(f"{name} is {value!r}; expected {' or '.join(map(repr, known))}")
        if self.degree not in (None, 0, 1, 2, 3):
            raise UsageError(f"degree is {self.degree}; expected 0 to 3, or None for the model's")
        for name, choices in (("rotation", (1, 2, 3)), ("scale", (1, 3)), ("colour", (1, 3)),
                              ("opacity", (1,)), ("t_sigma", (1,)), ("displacement", (1, 3)),
                              ("rest", (1, 3)), ("appearance", (1, 2, 3, 6))):  # fmt: skip
            bits = getattr(self.books, name)
            if len(bits) not in choices:
                raise UsageError(
                    f"books.{name} is {bits}; expected bits of {' or '.join(map(str, choices))} "
                    "sub-vectors"
                )

    def _check_numbers(self) -> None:
        for name, least, most in (
            ("keep", 0.0, 1.0),
            ("pruning_quantile", 0.0, 1.0),
            ("merge_quantile", 0.0, 1.0),
            ("merge_cell", 1e-6, 1.0),
            ("merge_span", 1e-6, 1.0),
            ("merge_similarity", -1e9, 0.0),
            ("merge_growth", 1.0, 100.0),
            ("merge_rounds", 1, 100),
            ("ssim", 0.0, 1.0),
            ("rates", 0.0, 1e3),
            ("finer", 1e-3, 1e3),
            ("batch", 1, 1024),
            ("merge_steps", 0, 10**6),
            ("refine_steps", 0, 10**6),
            ("final_steps", 0, 10**6),
            ("colour_steps", 0, 10**6),
            ("tune_steps", 0, 10**6),
            ("net_steps", 0, 10**6),
            ("seed", 0, 2**63),
        ):
            value = getattr(self, name)
            if not least <= value <= most:  # NaN is refused here, too
                raise UsageError(f"{name} is {value}; expected {least:g} to {most:g}")
        if self.keep == 0:
            raise UsageError("keep is 0: nothing would be left; expected more than 0, at most 1")
        if self.threads is not None and not 1 <= self.threads <= 256:
            raise UsageError(f"threads is {self.threads}; expected 1 to 256, or None for all cores")
        if not 1 <= self.books.position <= 21 or not 4 <= self.books.time <= 16:
            raise UsageError(
                f"books.position is {self.books.position} and books.time {self.books.time}; "
                "expected 1 to 21 and 4 to 16"
            )
        if not 0 < self.books.bytes_a_splat <= 1e6:
            raise UsageError(
                f"books.bytes_a_splat is {self.books.bytes_a_splat}; expected over 0, at most 1e6"
            )
        parts = self.books.position_parts
        if parts is not None and not 0.1 <= parts <= 1e6:
            raise UsageError(f"books.position_parts is {parts}; expected 0.1 to 1e6, or None")
        for name, bits in asdict(self.books).items():
            if isinstance(bits, tuple) and any(not 0 <= one <= 16 for one in bits):
                raise UsageError(f"books.{name} is {bits}; expected bits of 0 to 16")
