"""`asrlora shards`: manifests to WebDataset tars, an index for tars that others made, and checking both."""

import argparse
from pathlib import Path

from asrlora.arguments import Parser, add_allow_outside, count

WORKERS = "threads (default: one a CPU that this process may use)"


def add_arguments(parser: Parser) -> None:
    """Adds the steps of `shards`."""
    steps = parser.add_subparsers(required=True, metavar="STEP")
    build = steps.add_parser("build", help="manifest to tars and index")
    build.set_defaults(run=_build)
    build.add_argument("manifest", type=Path)
    build.add_argument("out", type=Path)
    build.add_argument("--workers", type=count, help=WORKERS)
    add_allow_outside(build)
    build.add_argument("--slice", type=_slice, metavar="I/N", help="only this part, for `shards merge`")
    merge = steps.add_parser("merge", help="make one folder of all slices")
    merge.set_defaults(run=_merge)
    merge.add_argument("out", type=Path)
    index = steps.add_parser("index", help="read tars that others made (WebDataset, Shar) where they are")
    index.set_defaults(run=_index)
    index.add_argument("folder", type=Path)
    index.add_argument("--text-field", metavar="NAME", help="the field or suffix that holds the text")
    index.add_argument("--workers", type=count, help=WORKERS)
    verify = steps.add_parser("verify", help="check every byte")
    verify.set_defaults(run=_verify)
    verify.add_argument("folder", type=Path)


def _slice(text: str) -> tuple[int, int]:
    number, _, slices = text.partition("/")
    if not (number.isdecimal() and slices.isdecimal() and 1 <= int(number) <= int(slices)):
        raise argparse.ArgumentTypeError(f"must be I/N with I from 1 to N, such as 2/8, not {text!r}")
    return int(number), int(slices)


def _build(args: argparse.Namespace) -> int:
    from asrlora.console import console, progress
    from asrlora.data import manifest
    from asrlora.data.shards import writer

    chunks = writer.cut(manifest.read_manifest(args.manifest, args.allow_outside))
    number, slices = args.slice or (1, 1)
    ours = [utterance for chunk in chunks[number - 1 :: slices] for utterance in chunk.utterances]
    with progress("shards", sum(utterance.duration for utterance in ours)) as advance:
        writer.write_shards(chunks, args.out, part=(number, slices), workers=args.workers, progress=advance)
    if args.slice:
        console.print(f"slice {number}/{slices} of {args.out}: {len(ours):,} utterances; then merge")
        return 0
    return _merge(args)


def _merge(args: argparse.Namespace) -> int:
    from asrlora.console import console
    from asrlora.data import manifest
    from asrlora.data.shards import reader, writer

    writer.finish(args.out)
    built = reader.open_shards(args.out)
    console.print(
        f"{args.out}: {manifest.describe(len(built.samples), built.rejected)}, {built.seconds / 3600:.2f} h"
    )
    return 0


def _index(args: argparse.Namespace) -> int:
    from asrlora.console import console
    from asrlora.data import manifest
    from asrlora.data.shards import indexing

    def show(tar: str, samples: int, kept: int) -> None:
        console.print(f"{tar}: {kept:,} of {samples:,} samples")

    found = indexing.index_folder(args.folder, text_field=args.text_field, workers=args.workers, shown=show)
    for reason, example in found.examples.items():
        console.print(f"left out, {reason}, for example: {example}")
    described = manifest.describe(found.kept, found.left_out)
    console.print(f"{args.folder}: {described}, {found.seconds / 3600:.2f} h; give it to --dataset-path")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from asrlora.console import console
    from asrlora.data.shards import reader

    damaged = reader.verify(args.folder)
    for identity in damaged:
        console.print(f"damaged: {identity}")
    console.print(f"{args.folder}: {'sound' if not damaged else f'{len(damaged)} samples or files damaged'}")
    return 3 if damaged else 0
