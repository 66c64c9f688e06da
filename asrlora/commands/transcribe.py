"""`asrlora transcribe`: the texts of audio files."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from asrlora.arguments import Parser, add_decoding, add_key_terms
from asrlora.errors import UserError


def add_arguments(parser: Parser) -> None:
    """Adds the arguments of `transcribe`."""
    parser.set_defaults(run=_transcribe)
    parser.add_argument("audio", type=Path, nargs="+")
    parser.add_argument("--model-id", help="default: the base of the adapter, else the demo's base")
    parser.add_argument("--adapter-dir", type=Path)
    parser.add_argument(
        "--output-format",
        choices=("text", "jsonl", "srt", "vtt"),
        default="text",
        help="text (default), or with times: JSON lines with segments, or subtitles of one file",
    )
    add_decoding(parser)
    add_key_terms(parser)


def _transcribe(args: argparse.Namespace) -> int:
    from asrlora.models import key_terms
    from asrlora.models.hub import check_found

    _check_audio(args.audio)
    form = args.output_format
    if form in ("srt", "vtt") and len(args.audio) > 1:
        raise UserError(f"--output-format {form}: subtitles are of one file; give one, or jsonl for several")
    terms = key_terms.chosen(args.key_terms, args.key_terms_boost)
    check_found(args.model_id, args.adapter_dir)
    from asrlora.console import stderr
    from asrlora.engine.inference import transcribe_files
    from asrlora.models.registry import Decoding
    from asrlora.record import transcripts

    for found in transcribe_files(args.model_id, args.adapter_dir, args.audio, Decoding.of(args), terms):
        if found.note:
            stderr.print(f"{found.path} is {found.note}")
        if form == "text":
            print(found.text if len(args.audio) == 1 else f"{found.path}\t{found.text}", flush=True)
        elif form == "jsonl":
            print(transcripts.to_json(found), flush=True)
        else:
            print(transcripts.subtitles(found, form), end="", flush=True)
    return 0


def _check_audio(paths: Sequence[Path]) -> None:
    from asrlora.data.manifest import audio_length

    for path in paths:
        if not path.exists():
            raise UserError(f"the audio file {path} does not exist")
        try:
            if not audio_length(path):
                raise UserError(f"the audio file {path} holds no samples")
        except ValueError as error:
            raise UserError(str(error)) from None
