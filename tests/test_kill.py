"""20 times kill −9: a run that is killed at any moment goes on, and ends as one that nobody disturbed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "kill_loop.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, which this system does not have")
def test_killed_20_times_no_finished_epoch_is_lost_and_the_weights_are_the_same(tmp_path):
    # A process of its own: it forks, which is safe only where there are no threads and no GPU in use.
    command = [sys.executable, str(PROGRAM), "--kills", "20", "--folder", str(tmp_path)]
    alone = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, capture_output=True, text=True, env=alone)
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout)
    assert counts["kills"] == 20 and counts["runs finished"] >= 1
    faults = ("epochs lost", "wrong final weights", "damaged files", "failures")
    assert {name: counts[name] for name in faults} == dict.fromkeys(faults, 0), result.stderr
