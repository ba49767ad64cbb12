"""A full-size LightCap from CLIP RN50 and TinyBERT: where its training begins.

What comes out is a folder that `penstock.export.lightcap.folder` reads. It captions nothing before
it is trained: alignment module, modulator, the way of the grid into the fusion and the prediction
heads are random.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from penstock.errors import UsageError
from penstock.export.lightcap.checkpoints import load_clip_rn50, load_tinybert, read_wordpieces
from penstock.export.lightcap.concept_vocabulary import read_concepts
from penstock.export.lightcap.config import LightCapConfig
from penstock.export.lightcap.folder import LightCapFolder, write_folder
from penstock.export.lightcap.initial_weights import initialise_from_checkpoints
from penstock.export.lightcap.model import LightCap

CARD = {
    "name": "LightCap, full size, untrained",
    "quality": "captions nothing: only the encoder and the fusion have been trained, apart",
}


def start_full_size(
    clip: Path, tinybert: Path, concepts: list[Path], bpe: Path, out: Path, *, seed: int = 0
) -> LightCapFolder:
    """Read the checkpoints, put them into the paper's model, write it as a folder.

    Args:
        clip: OpenAI's RN50.pt, or a state dict; tinybert: its folder, with vocab.txt.
        concepts: names, one a line; bpe: CLIP's merges.
        seed: of what begins at random.

    Raises:
        UsageError: `out` is there.
        FormatError, StorageError, BackendMissingError: of the files.
    """
    if out.exists():
        raise UsageError(f"{out} is there already; give another name")
    names, wordpieces = read_concepts(*concepts), read_wordpieces(tinybert)
    torch.manual_seed(seed)
    config = LightCapConfig(concepts=len(names))
    model = LightCap(config)
    encoder = initialise_from_checkpoints(
        model, load_clip_rn50(clip), load_tinybert(tinybert), names,
        merges=bpe, wordpieces=wordpieces,
    )  # fmt: skip
    folder = LightCapFolder(config, encoder, model.eval(), [*wordpieces], [*names], dict(CARD))
    write_folder(folder, out)
    return folder


def main() -> None:
    """Write the folder, and say what is in it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clip", type=Path, required=True, help="RN50.pt, or a state dict")
    parser.add_argument("--tinybert", type=Path, required=True, help="folder of TinyBERT 4L-312D")
    parser.add_argument(
        "--vocabulary", type=Path, nargs="+", required=True, help="names of concepts, one a line"
    )
    parser.add_argument("--bpe", type=Path, required=True, help="bpe_simple_vocab_16e6.txt.gz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = start_full_size(
        options.clip, options.tinybert, options.vocabulary, options.bpe, options.out,
        seed=options.seed,
    )  # fmt: skip
    print(
        f"{options.out}: {folder.float_bytes // 4:,} parameters, {len(folder.concepts)} concepts; "
        "it captions nothing before it is trained"
    )


if __name__ == "__main__":
    main()
