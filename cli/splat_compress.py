"""`penstock splat compress`: a scene of splats as a small .psplat file."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli import options
from penstock.cli.console import emit_json, percent, print_rich, say, size
from penstock.cli.option_groups import grouped
from penstock.cli.options import examples
from penstock.cli.progress import reading, stages
from penstock.cli.splat_options import File, Out, Seconds, check_footprint, check_free, say_lost
from penstock.errors import FormatError, UsageError

if TYPE_CHECKING:
    from penstock.export.omg4.settings import CompressionSettings
    from penstock.loaders.splats.model import SplatModel

EXAMPLES = examples(
    "penstock splat compress scene.ply scene.psplat",
    "penstock splat compress flame.pth flame.psplat --views transforms_train.json",
    "penstock splat compress flame.pth flame.psplat --keep 50% --final-steps 1000 --json",
    "penstock splat compress scene.spz scene.psplat --exact",
)
ONLY_STILL = "--finer is for scenes that do not move, or goes with --exact"


class Appearance(str, Enum):
    """What colours are stored as."""

    HARMONICS = "sh"
    NETS = "nets"


class Device(str, Enum):
    """Where pictures are drawn that splats are chosen and trained by."""

    CPU = "cpu"
    CUDA = "cuda"
    AUTO = "auto"


@dataclass(frozen=True)
class Stages:
    """What is done with the splats, in the names of CompressionSettings."""

    keep: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            parser=options.parse_share,
            help="Choose so many of the splats by their scores, first of all; 20% with --sampling.",
        ),
    ] = None
    sampling: Annotated[
        bool | None,
        typer.Option(
            "--sampling/--no-sampling",
            help="Choose the best by their scores: for models that are very redundant.",
        ),
    ] = None
    pruning: Annotated[
        bool | None,
        typer.Option("--pruning/--no-pruning", help="Drop what matters little."),
    ] = None
    merging: Annotated[
        bool | None,
        typer.Option("--merging/--no-merging", help="Make one of splats that look alike."),
    ] = None
    refine_steps: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Steps of training between these. Without it: 300, with --paper 1000.",
        ),
    ] = None
    final_steps: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Steps of training after the last of these: the longer, the better it looks. "
            "Without it: 5000, with --paper 1000.",
        ),
    ] = None
    tune_steps: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Steps of training the codebooks. Without it: 100, with --paper 1000.",
        ),
    ] = None
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="Leave out no splat and train nothing. What came from SPZ or SOG loses nothing at "
            "all; other numbers are rounded.",
        ),
    ] = False
    paper: Annotated[
        bool,
        typer.Option("--paper", help="Choices and codebooks of the OMG4 paper, nets too; slow."),
    ] = False
    appearance: Annotated[
        Appearance | None,
        typer.Option(help="Colours as harmonics in codebooks, or as the paper's small nets; slow."),
    ] = None
    degree: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=3,
            metavar="N",
            help="Of the harmonics, at most. Without it: 1 of a scene that moves.",
        ),
    ] = None

    finer: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=100.0,
            metavar="X",
            help="Round numbers to steps so many times smaller; for scenes that do not move, and "
            "with --exact.",
        ),
    ] = None

    def check(self) -> None:
        """Refuse options that contradict each other, before a file is read.

        Raises:
            UsageError: they do.
        """
        if self.exact:
            # A stage that is off already may be said to be.
            wanted = {name for name, value in self._changes().items() if value is not False}
            given = sorted(wanted - {"degree", "finer"})
            if self.paper or given:
                name = "paper" if self.paper else given[0].replace("_", "-")
                raise UsageError(f"--exact leaves every splat as it is; it goes with no --{name}")
        elif self.finer is not None and self.paper:
            raise UsageError(ONLY_STILL)
        if self.keep is not None and self.sampling is False:
            raise UsageError("choose --keep or --no-sampling, not both")

    def settings(self, model: SplatModel, **more: Any) -> CompressionSettings:
        """Those of this model.

        Raises:
            UsageError: what only scenes that do not move have, of one that does; steps of training
                where nothing is trained; or as `check`.
        """
        from penstock.export.omg4.settings import CompressionSettings

        self.check()
        if self.exact:
            settings = CompressionSettings.exact()
        elif self.paper:
            settings = CompressionSettings.omg4()
        else:
            settings = CompressionSettings() if model.dynamic else CompressionSettings.static()
        if self.finer is not None and model.dynamic and not self.exact:
            raise UsageError(ONLY_STILL)
        changes = self._changes()
        if self.finer is not None:
            changes["finer"] = settings.finer * self.finer
        if self.keep is not None:
            changes["sampling"] = True
        found = settings.with_changes(**changes, **more)
        stages = found.sampling or found.pruning or found.merging
        if not stages and (self.final_steps or self.refine_steps):
            raise UsageError(
                "nothing is trained where no stage leaves splats out; give --merging, --pruning or "
                "--sampling, too, or no --final-steps and --refine-steps"
            )
        return found

    def _changes(self) -> dict[str, Any]:
        """Fields of the settings that were given."""
        return {
            name: value
            for name, value in {
                "keep": self.keep,
                "sampling": self.sampling,
                "pruning": self.pruning,
                "merging": self.merging,
                "final_steps": self.final_steps,
                "refine_steps": self.refine_steps,
                "tune_steps": self.tune_steps,
                "appearance": None if self.appearance is None else self.appearance.value,
                "degree": self.degree,
                "finer": self.finer,
            }.items()
            if value is not None
        }


@grouped
def compress(
    file: File,
    out: Out,
    *,
    views: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Cameras and photos of a transforms.json, which the result is held against. "
            "Without it: the model's own pictures.",
        ),
    ] = None,
    stage_options: Stages,
    device: Annotated[
        Device, typer.Option(help="What draws for scores and training; cuda needs torch.")
    ] = Device.CPU,
    footprint: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="exact, or omg4-sentinel: as the official OMG4 checkpoints were trained, to hold "
            "one of them against its photos.",
        ),
    ] = "exact",
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of every choice by chance.")] = 0,
    seconds: Seconds = None,
    threads: options.Threads = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Make a scene small: OMG4's stages, then entropy coding.

    FILE is of any format that `penstock splat info` knows; OUT is a .psplat file, written whole or
    not at all. A scene that moves loses most of its splats: those that matter least for what
    cameras see go, neighbours that look alike become one, the rest is trained to make up for it,
    which takes minutes, or hours for millions of splats and large photos: --final-steps.
    Of one that does not move all stay that can be seen. The command ends in a report: splats, bytes
    and PSNR after each stage, on views that nothing was trained with. Runs on the CPU.
    """
    from penstock.export.omg4.pipeline import compress as run
    from penstock.export.omg4.psplat_writer import write_content
    from penstock.export.omg4.report import render
    from penstock.loaders.partial_file import check_writable
    from penstock.loaders.splats.formats import open_splats, stored_bytes, summary
    from penstock.runtime.splats.camera import from_transforms

    if out.suffix.lower() != ".psplat":
        raise UsageError(f"{out}: what is written is a .psplat file; give the name this ending")
    check_free(out, overwrite)
    check_footprint(footprint)
    stage_options.check()
    check_writable(out)
    found = None if views is None else from_transforms(views)
    more = {"device": device.value, "footprint": footprint, "seed": seed, "threads": threads}
    with reading(wanted=not as_json):
        lost = summary(file).lost
        model = open_splats(file, seconds)
    if views is not None and found is not None and model.dynamic:
        missing = [number for number, view in enumerate(found) if view.time is None]
        if missing:
            raise FormatError(
                f"{views}: frame {missing[0]} has no 'time', and the scene moves; expected seconds"
            )
    before = stored_bytes(file)  # now: it may be what is overwritten
    settings = stage_options.settings(model, **more)
    with stages(wanted=not as_json) as show:
        compressed = run(model, found, settings, show)
        write_content(out, compressed.file)
    nbytes = out.stat().st_size
    if as_json:
        sizes = {"bytes": nbytes, "file_bytes": before, "lost_in_reading": dict(lost)}
        emit_json({"file": file, "out": out, **sizes, **compressed.report.to_dict()})
        return
    print_rich(render(compressed.report))
    say_lost(file, lost)
    say(f"Wrote {out}: {size(nbytes)}, {percent(nbytes / before)} of {file}.")
