"""The launch recipes: what of them can be checked without a cluster."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from dora_jax.cli import _parse_experiment

LAUNCH = Path("experiments/launch")


@pytest.mark.parametrize("name", ["single_node.sh", "slurm.sbatch"])
def test_scripts_are_bash_and_pass_their_arguments_on(name, tmp_path):
    called = tmp_path / "called"
    for command in ("dora-jax", "srun", "scontrol"):
        (tmp_path / command).write_text(f'#!/bin/bash\necho "{command} $@" >> {called}\nexit 75\n')
        (tmp_path / command).chmod(0o755)
    found = subprocess.run(
        [shutil.which("bash"), str(LAUNCH / name), "mine.py", "--train.steps", "3"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"},
        capture_output=True,
        text=True,
    )
    assert (found.returncode, found.stderr) == (75, "")
    lines = called.read_text().splitlines()
    assert lines[0].endswith("train mine.py --train.steps 3")
    if name == "slurm.sbatch":
        assert lines[0].startswith("srun --kill-on-bad-exit=1 dora-jax")
        assert lines[1:] == ["scontrol requeue 7"]


def test_the_pods_of_a_slice_are_its_hosts():
    service, job = yaml.safe_load_all((LAUNCH / "gke_tpu.yaml").read_text())
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    chips = container["resources"]["limits"]["google.com/tpu"]
    sides = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    assert spec["completions"] == spec["parallelism"] == int(sides[0]) * int(sides[1]) // chips
    program, command, experiment = container["command"]
    assert (program, command) == ("dora-jax", "train")
    config = _parse_experiment(command, [experiment, *container["args"]])
    assert config.mesh.fsdp * config.mesh.data == int(sides[0]) * int(sides[1])
    assert str(config.out).startswith(container["volumeMounts"][0]["mountPath"])
