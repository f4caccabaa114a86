"""Prepare recordings for training: check them once, and write shards that are read fast.

    uv run scripts/prepare_data.py --root data/t15 --output data/processed
    uv run train.py experiment=t15_mode_ssm data.root=data/processed
    uv run scripts/prepare_data.py --root data/t12 --lexicon cmudict.dict    # Brain-to-Text '24, MATLAB files

A second call does nothing; a run that was stopped goes on where it was. `--verify` compares checksums of all files.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mode_ssm.compose import run_main
from mode_ssm.config import OnBadTrial
from mode_ssm.data.manifest import checksum, read_manifest
from mode_ssm.data.matlab import FEATURE_DIM as T12_FEATURE_DIM
from mode_ssm.data.matlab import find_matlab_files
from mode_ssm.data.prepare import Settings, prepare
from mode_ssm.data.t15_format import SPLITS
from mode_ssm.lm.g2p import GraphemeToPhoneme
from mode_ssm.lm.lexicon import Lexicon
from mode_ssm.vocab import SIL, normalise_sentence


def main(arguments: Sequence[str] | None = None) -> None:
    parsed = _parser().parse_args(arguments)
    done = _prepare(parsed)
    Console().print(_summary(parsed.output))
    print("prepared" if done else "nothing to do: prepared already, and nothing changed since")


def _parser() -> argparse.ArgumentParser:
    defaults = Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="the downloaded recordings: one folder a session")
    parser.add_argument("--output", type=Path, help="prepared folder; default: `processed` beside the root")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one a core")
    parser.add_argument("--feature-dim", type=int, help="features a bin (default 512; T12 has 256)")
    parser.add_argument("--shards", type=int, default=defaults.train_shards, help="of the training split (default 8)")
    parser.add_argument(
        "--on-bad-trial",
        type=OnBadTrial,
        choices=list(OnBadTrial),
        default=OnBadTrial.stop,
        metavar="{stop,skip}",
        help="stop (default), or leave broken trials out and list them in the manifest",
    )
    parser.add_argument("--verify", action="store_true", help="compare checksums too, not only sizes and times")
    parser.add_argument("--lexicon", type=Path, help="pronunciations for T12's sentences; missing words are guessed")
    return parser


def _prepare(parsed: argparse.Namespace) -> bool:
    if parsed.output is None:
        parsed.output = parsed.root.absolute().parent / "processed"
    is_t12 = bool(find_matlab_files(parsed.root))
    settings = Settings(
        feature_dim=parsed.feature_dim or (T12_FEATURE_DIM if is_t12 else Settings().feature_dim),
        train_shards=parsed.shards,
        on_bad_trial=parsed.on_bad_trial,
        labels=checksum(parsed.lexicon) if parsed.lexicon is not None else None,
    )
    pronounce = pronouncer(parsed.lexicon) if parsed.lexicon is not None else None
    return prepare(
        parsed.root,
        parsed.output,
        settings,
        pronounce=pronounce,
        processes=parsed.processes,
        verify=parsed.verify,
    )


def pronouncer(path: Path) -> Callable[[str], Sequence[int]]:
    """Sentence -> class ids: the first pronunciation of every word, guessed where the lexicon lacks it; SIL after it.

    The lexicon is read, and the model of spelling learned, when they are first needed.
    """
    loaded: list[Lexicon] = []
    model: list[GraphemeToPhoneme] = []

    def of_word(word: str) -> Sequence[int]:
        if not loaded:
            loaded.append(Lexicon.load(path))
        if word in loaded[0]:
            return loaded[0][word][0]
        if not model:
            model.append(GraphemeToPhoneme.load(loaded[0]))
        guesses = model[0].guess(word, 1)
        if not guesses:
            raise ValueError(f"no pronunciation for {word!r}; add it to {path}")
        return guesses[0].phones

    return lambda sentence: [phone for word in normalise_sentence(sentence).split() for phone in (*of_word(word), SIL)]


def _summary(output: Path) -> Table:
    manifest = read_manifest(output)
    assert manifest is not None, "written a moment ago"
    table = Table(title=f"prepared recordings in {output}")
    for name in ("", "sessions", "blocks", "trials", "shards", "GB"):
        table.add_column(name, justify="right" if name else "left")
    for split in SPLITS:
        shards = [shard for shard in manifest["shards"] if shard["file"].startswith(f"{split}_")]
        sessions = manifest["blocks"][split]
        table.add_row(
            split,
            str(len(sessions)),
            str(sum(len(blocks) for blocks in sessions.values())),
            str(manifest["trials"][split]),
            str(len(shards)),
            f"{sum(shard['size'] for shard in shards) / 1e9:.2f}",
        )
    if manifest["skipped"]:
        table.caption = f"{len(manifest['skipped'])} broken recordings left out; the manifest lists them"
    return table


if __name__ == "__main__":
    run_main(main)
