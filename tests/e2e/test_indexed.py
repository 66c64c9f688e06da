"""Training from tars that webdataset wrote."""

from pathlib import Path

import pytest
from webdataset import ShardWriter

from asrlora import cli, train
from asrlora.data.manifest import read_manifest
from asrlora.record import run_dir
from conftest import Speech


@pytest.mark.slow
def test_tars_of_webdataset_train_as_the_manifest_does(speech: Speech, tmp_path: Path) -> None:
    """Audio that goes through the audio path when it is read gives the losses of shards that hold it."""
    tars = tmp_path / "tars"
    tars.mkdir()
    with ShardWriter(f"{tars}/%06d.tar", maxcount=64, verbose=0) as writer:
        for number, utterance in enumerate(read_manifest(speech.train)):
            info = {"id": utterance.id, "text": utterance.text, "speaker": utterance.speaker}
            kind = utterance.audio.suffix.removeprefix(".")
            writer.write({"__key__": f"{number:06d}", kind: utterance.audio.read_bytes(), "json": info})
    assert cli.main(["shards", "index", str(tars)]) == 0
    losses = []
    for name, source in (("manifest", speech.train), ("tars", tars)):
        flags = speech.flags(tmp_path / name, dataset_path=source, max_steps=4, eval_interval=4)
        assert train.main(flags) == 0
        losses.append([line["loss"] for line in run_dir.read_lines(tmp_path / name / "metrics.jsonl")])
    assert losses[0] == losses[1]
    assert cli.main(["shards", "verify", str(tars)]) == 0
