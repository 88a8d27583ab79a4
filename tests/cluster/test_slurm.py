"""docs/cluster/slurm.sh: its shell, with stand-ins for the commands of Slurm, Ray and Python."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "cluster" / "slurm.sh"
PATIENCE_S = 20.0

# Each writes how it was called. `srun` runs what it is given, as one node would.
NOTE = 'echo "$(basename "$0") $*" >> "$CALLS"\n'
STAND_INS = {
    "scontrol": '[[ $1 == show ]] && printf "%s\\n" $NODES || true\n',
    "getent": 'echo "10.0.0.1       STREAM $2"\n',
    "srun": 'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
    "ray": """
        if [[ $* == *--block* ]]; then
          echo $$ > "$CALLS.actor_host"
          exec sleep 60
        fi
        if [[ $* == *--head* ]]; then
          stat -c "token %a" "$RAY_AUTH_TOKEN_PATH" >> "$CALLS"
          stat -c "folder %a" "$(dirname "$RAY_AUTH_TOKEN_PATH")" >> "$CALLS"
          cat "$RAY_AUTH_TOKEN_PATH" > "$CALLS.token"
          env > "$CALLS.env"
          [[ -z ${SIGNAL_EARLY:-} ]] || kill -s USR1 $PPID
        fi
        exit 0
        """,
    # Trains until it is told to end, as launch.py does: it saves, and ends with 130.
    "python": """
        end() {
          echo "driver got $1" >> "$CALLS"
          mkdir -p "$CALLS.run/checkpoints"
          sleep 0.3
          touch "$CALLS.run/checkpoints/checkpoint_0000000007.pt"
          exit 130
        }
        trap "end USR1" USR1
        trap "end TERM" TERM
        echo $$ > "$CALLS.driver"
        if [[ -n ${DRIVER_ENDS:-} ]]; then
          until [[ -s $CALLS.actor_host ]]; do sleep 0.01; done
          exit "$DRIVER_ENDS"
        fi
        for _ in $(seq 600); do sleep 0.05; done
        """,
}


class Job:
    """One job of the script, in a folder that stands for the repository's root."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls_file = folder / "calls"
        self.run_dir = folder / "calls.run"
        self.token_file = folder / "slurm-17" / "auth_token"
        (folder / "launch.py").touch()
        commands = folder / "bin"
        commands.mkdir()
        for name, body in STAND_INS.items():
            command = commands / name
            command.write_text(f"#!/usr/bin/env bash\n{NOTE}{body}")
            command.chmod(0o755)
        self.process: subprocess.Popen[str] | None = None

    def submit(self, *arguments: str, nodes: str = "n1 n2 n3", **settings: str) -> None:
        """Start the script as Slurm would."""
        self.calls_file.write_text("")
        for name in ("driver", "actor_host"):
            (self.folder / f"calls.{name}").unlink(missing_ok=True)
        environment = {
            "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
            "CALLS": str(self.calls_file),
            "NODES": nodes,
            "SLURM_JOB_NODELIST": "n[1-3]",
            "SLURM_JOB_ID": "17",
            "SLURM_CPUS_PER_TASK": "32",
            "OMP_NUM_THREADS": "1",
            **settings,
        }
        self.process = subprocess.Popen(
            ["bash", str(SCRIPT), *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def submit_run(self, *flags: str, **settings: str) -> None:
        """Start the script with the run's folder."""
        self.submit(str(self.run_dir), *flags, **settings)

    def number(self, name: str) -> int:
        """Wait for a stand-in to be there; return its process's number."""
        path = self.folder / f"calls.{name}"
        deadline_s = time.monotonic() + PATIENCE_S
        while not (path.exists() and path.read_text().endswith("\n")):
            assert time.monotonic() < deadline_s, f"no {name}: {self.calls()}"
            time.sleep(0.02)
        return int(path.read_text())

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the script alone, once the driver is there."""
        assert self.process is not None
        self.number("actor_host")
        self.number("driver")
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Return the script's exit code, and what it said."""
        assert self.process is not None
        said, _ = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, said

    def calls(self) -> list[str]:
        """Return the commands that were called, with their arguments."""
        return self.calls_file.read_text().splitlines()

    def call(self, start: str) -> str:
        """Return the one call that starts so."""
        (found,) = [call for call in self.calls() if call.startswith(start)]
        return found


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    job = Job(tmp_path)
    yield job
    if job.process is not None and job.process.poll() is None:
        job.process.kill()
        job.process.wait()


def is_alive(number: int) -> bool:
    """Return whether a process is there."""
    return Path(f"/proc/{number}").exists()


def test_script_is_bash() -> None:
    done = subprocess.run(["bash", "-n", str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert os.access(SCRIPT, os.X_OK)


def test_script_asks_slurm_for_a_warning_and_to_be_requeued() -> None:
    asked = re.findall(r"^#SBATCH (.+)$", SCRIPT.read_text(), re.M)
    assert {"--signal=B:USR1@120", "--requeue", "--open-mode=append"} <= set(asked)
    before_commands = SCRIPT.read_text().partition("set -euo pipefail")[0]
    assert before_commands.count("\n#SBATCH ") == len(asked), "Slurm reads none after a command"


def test_first_job_starts_a_new_run_on_all_nodes(job: Job) -> None:
    job.submit_run("--preset", "apex", "--actors", "64", DRIVER_ENDS="0")
    assert job.end()[0] == 0
    head, hosts = job.call("ray start --head"), job.call("ray start --block")
    assert '{"learner_host": 1}' in head
    assert "--node-ip-address=10.0.0.1 --port=6379" in head
    assert '{"actor_host": 1}' in hosts
    assert "--address=10.0.0.1:6379" in hosts
    step = job.call("srun --nodes=2 ")
    assert "--nodelist=n2,n3 " in step
    assert job.call("python") == (
        f"python launch.py --address 10.0.0.1:6379 --run-dir {job.run_dir} "
        "--preset apex --actors 64"
    )
    assert not any("requeue" in call for call in job.calls())


def test_ray_gets_no_limit_of_threads_and_short_health_checks(job: Job) -> None:
    job.submit_run(DRIVER_ENDS="0")
    job.end()
    environment = (job.folder / "calls.env").read_text()
    assert "OMP_NUM_THREADS" not in environment
    assert "RAY_AUTH_MODE=token\n" in environment
    settings = set(re.findall(r"RAY_health_check_\w+=\d+", (ROOT / "cluster.yaml").read_text()))
    assert settings == set(re.findall(r"RAY_health_check_\w+=\d+", environment))


def test_warning_reaches_driver_and_job_is_requeued_and_goes_on(job: Job) -> None:
    job.submit_run("--preset", "apex")
    job.send(signal.SIGUSR1)
    assert job.end()[0] == 130
    assert "driver got USR1" in job.calls()
    assert "driver got TERM" not in job.calls(), "a second signal would end it without saving"
    assert job.call("scontrol requeue") == "scontrol requeue 17"

    job.submit_run("--preset", "apex", DRIVER_ENDS="0")
    code, said = job.end()
    assert code == 0
    assert job.call("python") == f"python launch.py --address 10.0.0.1:6379 --resume {job.run_dir}"
    assert "left out: --preset apex" in said


def test_second_warning_does_not_keep_the_driver_from_saving(job: Job) -> None:
    job.submit_run()
    job.send(signal.SIGUSR1)
    deadline_s = time.monotonic() + PATIENCE_S
    while "driver got USR1" not in job.calls():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    job.send(signal.SIGTERM)
    assert job.end()[0] == 130
    assert [call for call in job.calls() if call.startswith("driver got")] == ["driver got USR1"]
    assert list(job.run_dir.glob("checkpoints/*.pt")), "the script did not wait for it"
    assert job.call("scontrol requeue"), "the time was up before all was saved"


def test_cancelled_job_saves_and_is_not_requeued(job: Job) -> None:
    job.submit_run()
    job.send(signal.SIGTERM)
    assert job.end()[0] == 130
    assert "driver got TERM" in job.calls()
    assert not any("requeue" in call for call in job.calls())


def test_warning_before_the_driver_starts_requeues_without_one(job: Job) -> None:
    job.submit_run(SIGNAL_EARLY="1")
    assert job.end()[0] == 130
    assert not any(call.startswith("python") for call in job.calls())
    assert job.call("scontrol requeue")


@pytest.mark.parametrize("code", ["1", "2"])
def test_failed_run_ends_the_job_with_its_code(job: Job, code: str) -> None:
    job.submit_run(DRIVER_ENDS=code)
    assert job.end()[0] == int(code)
    assert not any("requeue" in call for call in job.calls())


def test_token_is_for_its_owner_alone_and_in_no_command_line(job: Job) -> None:
    tokens = []
    for _ in range(2):
        job.submit_run(DRIVER_ENDS="0")
        _, said = job.end()
        token = (job.folder / "calls.token").read_text()
        tokens.append(token)
        assert re.fullmatch("[0-9a-f]{64}", token)
        assert {"token 600", "folder 700"} <= set(job.calls())
        assert token not in "\n".join([*job.calls(), said])
        assert token not in (job.folder / "calls.env").read_text()
        assert not job.token_file.parent.exists(), "a token that nobody needs any more"
    assert tokens[0] != tokens[1]


def test_token_of_a_job_that_was_killed_is_replaced(job: Job) -> None:
    job.token_file.parent.mkdir()
    job.token_file.write_text("old")
    job.token_file.chmod(0o644)
    job.submit_run(DRIVER_ENDS="0")
    job.end()
    assert "token 600" in job.calls()
    assert (job.folder / "calls.token").read_text() != "old"


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_nothing_is_left_at_the_end(job: Job, number: signal.Signals) -> None:
    job.submit_run()
    job.send(number)
    job.end()
    assert not is_alive(job.number("driver"))
    assert not is_alive(job.number("actor_host"))
    assert "ray stop" in job.calls()


@pytest.mark.parametrize("arguments", [(), ("--actors", "64")])
def test_job_without_a_run_folder_is_refused(job: Job, arguments: tuple[str, ...]) -> None:
    job.submit(*arguments)
    code, said = job.end()
    assert code == 2
    assert "RUN_DIR" in said
    assert job.calls() == []


def test_one_node_is_refused(job: Job) -> None:
    job.submit("runs/first", nodes="n1")
    code, said = job.end()
    assert code == 2
    assert "2 nodes" in said
    assert not any(call.startswith("ray") for call in job.calls())


def test_job_ends_when_nodes_do_not_find_each_other(job: Job) -> None:
    (job.folder / "bin" / "getent").write_text("#!/bin/sh\nexit 2\n")
    job.submit_run()
    code, said = job.end()
    assert code == 1
    assert "n2 finds no address of n1" in said
    assert not any("start" in call for call in job.calls())
