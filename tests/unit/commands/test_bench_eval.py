from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks import eval as bench_eval


@pytest.mark.slow
def test_the_bench_runs_and_both_sides_write_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_eval, "ProcessPoolExecutor", lambda *settings: ThreadPoolExecutor(1))
    monkeypatch.setattr(bench_eval, "REPEATS", 1)
    figures = bench_eval.bench_eval(6, (1, 2))
    assert figures["speech"]["utterances"] == 6
    for way in ("asrlora, one process", "asrlora, two processes", "pipeline, batch size 1"):
        assert figures[way]["texts as of the pipeline one by one"] == 6
        assert figures[way]["audio-s per second"] > 0
    fastest = max(figures[f"pipeline, batch size {size}"]["audio-s per second"] for size in (1, 2))
    both = figures["times the pipeline at its best"]["asrlora, two processes"]
    assert both == pytest.approx(figures["asrlora, two processes"]["audio-s per second"] / fastest)
    assert figures["times the pipeline at its best with the texts of one by one"]["asrlora, one process"] > 0
