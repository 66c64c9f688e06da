import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os, sys
from pathlib import Path
from asrlora.engine import logs
print("before")
give_back = logs.into_file(Path(sys.argv[1]))
print("printed")
print("warned", file=sys.stderr)
os.system("echo said by a library")
give_back()
give_back()
print("why it ends", file=sys.stderr)
"""


def test_the_output_of_a_rank_goes_to_its_file_until_it_must_be_seen(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "rank-1.log"
    for _ in range(2):  # a second attempt goes on in the same file
        words = [sys.executable, "-c", SCRIPT, str(log)]
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
        assert (done.stdout, done.stderr) == ("before\n", "why it ends\n")
    lines = log.read_text().splitlines()
    assert sorted(lines) == sorted(["printed", "warned", "said by a library"] * 2)
