from concurrent.futures import ThreadPoolExecutor

import pytest

from asrlora import bench_eval


@pytest.mark.slow
def test_the_bench_runs_and_both_sides_write_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_eval, "ProcessPoolExecutor", lambda *settings: ThreadPoolExecutor(1))
    figures = bench_eval.bench_eval(6, (1, 2))
    assert figures["speech"]["utterances"] == 6
    for way in ("asrlora", "pipeline, batch size 1"):
        assert figures[way]["texts as of the pipeline one by one"] == 6
        assert figures[way]["audio-s per second"] > 0
    fastest = max(figures[f"pipeline, batch size {size}"]["audio-s per CPU second"] for size in (1, 2))
    assert figures["asrlora, times the pipeline at its best with the texts of one by one"]["cpu"] > 0
    assert figures["asrlora, times the pipeline at its best"]["cpu"] == pytest.approx(
        figures["asrlora"]["audio-s per CPU second"] / fastest
    )
