"""200 times kill −9: a run that is killed at any moment goes on, and ends as one that nobody disturbed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "kill_loop.py"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, which this system does not have")
def test_fault_65_and_69_killed_200_times(tmp_path):
    # A process of its own: it forks, which is safe only where there are no threads and no GPU in use.
    command = [sys.executable, str(PROGRAM), "--kills", "200", "--folder", str(tmp_path)]
    alone = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=alone)
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout)
    assert counts["kills"] == 200 and counts["kills inside a save"] >= 100 and counts["runs finished"] >= 3
    faults = ("epochs lost", "wrong loads", "wrong final weights", "corrupt files", "sentences of trouble", "failures")
    assert {name: counts[name] for name in faults} == dict.fromkeys(faults, 0), result.stderr
