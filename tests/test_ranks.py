"""Several processes train what one does, whoever starts them (docs/clusters.md)."""

import json
import os
import re
import signal
import socket
import stat
import time
from pathlib import Path

import psutil
import pytest
import torch
from lightning import Callback
from processes import Process, done
from tiers import marked

from nlzoo.data.sample import make_sample

DOCS = Path(__file__).parents[1] / "docs" / "clusters.md"


class Losses(Callback):
    """Writes the loss of each batch of a process, and can be slow or send a signal."""

    def __init__(self, folder: str, pause: float = 0.0, number: int = 0, step: int = 0) -> None:
        self.folder, self.pause, self.number, self.step = Path(folder), pause, number, step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        with (self.folder / f"loss{trainer.global_rank}.txt").open("a") as file:
            file.write(f"{float(outputs['loss'])!r}\n")
        time.sleep(self.pause)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if self.number and trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return make_sample(tmp_path_factory.mktemp("set") / "videos", train=24, val=7)


def options(videos, folder, batch, **losses):
    """Twenty iterations of eight videos; nothing depends on how they are dealt."""
    callback = {"class_path": "test_ranks.Losses", "init_args": {"folder": str(folder), **losses}}
    return [
        *("--recipe", "i3d_nl_kinetics", "--recipe", "_video_sample", "--data", str(videos)),
        *("--run", str(folder / "run"), "--task.model", "i3d_r18_nl1", "--task.arch.width", "8"),
        *(
            "--task.bn",
            "frozen",
            "--task.non_local",
            "{norm: null, zero_init: false}",
            "--task.warmup",
            "0",
        ),
        *("--data.batch_size", str(batch), "--data.workers", "0", "--trainer.max_steps", "20"),
        *("--trainer.max_epochs", "-1", "--checkpoint_every", "1", "--resume", "auto"),
        *("--trainer.callbacks+", json.dumps(callback)),
    ]


DDP = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


def start(module, *argv, **environment):
    return Process("-m", module, *argv, OMP_NUM_THREADS="1", **environment)


def losses(folder, ranks):
    curves = [[float(x) for x in (folder / f"loss{r}.txt").open()] for r in range(ranks)]
    return torch.tensor(curves).mean(0)


def files(folder):
    names = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return sorted(str(name) for name in names if "tensorboard" not in name.parts)


@pytest.fixture(scope="module")
def one(videos, tmp_path_factory):
    """The folder of a run of one process with the whole batch."""
    folder = tmp_path_factory.mktemp("one")
    done(start("nlzoo.fit", *options(videos, folder, 8)))
    return folder


def by_torchrun(videos, folder):
    run = ("--standalone", "--nproc_per_node", "2", "-m", "nlzoo.fit", "--")
    return start("torch.distributed.run", *run, *options(videos, folder, 4), *DDP)


def by_ray(videos, folder):
    """The example of the docs, as it stands there."""
    example = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    argv = [*options(videos, folder, 4)]
    call = f"main({argv!r}, workers=2, gpus=False, storage={str(folder / 'ray')!r})"
    (folder / "by_ray.py").write_text(f'{example[1]}\nif __name__ == "__main__":\n    {call}\n')
    one_core = {"OMP_NUM_THREADS": "1", "RAY_TRAIN_V2_ENABLED": "1"}
    return Process(folder / "by_ray.py", **one_core)


@pytest.mark.parametrize("launch", marked([by_torchrun, by_ray], slow=[by_torchrun]))
def test_launchers_train_as_one_process(videos, one, tmp_path, launch):
    if launch is by_ray:
        pytest.importorskip("ray", reason="ray is not installed")
    done(launch(videos, tmp_path))
    assert_same(one, tmp_path)


@pytest.mark.slow
def test_two_processes_train_as_one(one, two):
    assert_same(one, two)


def assert_same(one, tmp_path):
    """Losses, files, and the best score of one process and of two."""
    torch.testing.assert_close(losses(tmp_path, 2), losses(one, 1), rtol=1e-5, atol=0)
    assert files(tmp_path / "run") == files(one / "run")
    rows = [(f / "run/metrics.csv").read_text().splitlines() for f in (one, tmp_path)]
    assert [len(r) for r in rows] == [8, 8]
    one_last, two_last = (json.loads((f / "run/summary.json").read_text()) for f in (one, tmp_path))
    assert two_last["global_batch"] == one_last["global_batch"] == 8
    assert two_last["best"] == one_last["best"]


@pytest.mark.every
def test_kubeflows_variables_are_enough(videos, one, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    job = {"KUBERNETES_PORT": "tcp://10.0.0.1:443", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    where = "lightning.pytorch.plugins.environments.KubeflowEnvironment"
    nodes = ["--trainer.num_nodes", "2", "--trainer.devices", "1", "--trainer.plugins", where]
    argv = [*options(videos, tmp_path, 4), *nodes]
    for rank in [start("nlzoo.fit", *argv, **job, RANK=str(r), WORLD_SIZE="2") for r in range(2)]:
        done(rank)
    torch.testing.assert_close(losses(tmp_path, 2), losses(one, 1), rtol=1e-5, atol=0)


@pytest.fixture(scope="module")
def two(videos, tmp_path_factory):
    """The folder of a run of two processes, with half of the batch each."""
    folder = tmp_path_factory.mktemp("two")
    done(start("nlzoo.fit", *options(videos, folder, 4), *DDP))
    return folder


@pytest.mark.every
@pytest.mark.parametrize("rank", [0, 1])
def test_others_end_where_one_is_killed_and_the_run_goes_on(videos, two, tmp_path, rank):
    killed = tmp_path / "killed"
    killed.mkdir()
    process = start("nlzoo.fit", *options(videos, killed, 4, pause=0.3), *DDP)
    first = psutil.Process(process.pid)
    seen = killed / f"loss{rank}.txt"
    while process.poll() is None and (not seen.exists() or seen.read_text().count("\n") < 5):
        time.sleep(0.05)
    others = first.children()
    (others[0] if rank else first).kill()
    gone, alive = psutil.wait_procs([first, *others], timeout=60)
    assert not alive
    assert next(p.returncode for p in gone if p == first) != 0
    done(start("nlzoo.fit", *options(videos, killed, 4), *DDP))
    weights = [torch.load(f / "run/checkpoints/last.ckpt")["state_dict"] for f in (two, killed)]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


@pytest.mark.slow
def test_other_recipes_are_refused_by_all(videos, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    argv = [*options(videos, tmp_path, 4), *DDP]
    ranks = [
        start(
            "nlzoo.fit",
            *argv,
            "--task.lr",
            rate,
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"},
            **{"LOCAL_RANK": str(r), "RANK": str(r), "NODE_RANK": "0", "GROUP_RANK": "0"},
            **{"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2"},
        )
        for r, rate in enumerate(("0.01", "0.02"))
    ]
    for rank in ranks:
        code, _, error = rank.end(timeout=120)
        assert code == 2
        assert error.strip().splitlines()[-1].endswith("start all of them with the same options")
    assert "'lr: 0.02' here, 'lr: 0.01' in process 0" in error


@pytest.mark.slow
def test_slurm_is_asked_for_a_requeue_and_the_run_goes_on(videos, one, tmp_path):
    """SLURM's variables are set; its two programs write down how they were called."""
    for name in ("scontrol", "srun"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls.txt\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    job = {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        **{"SLURM_JOB_ID": "42", "SLURM_JOB_NAME": "nl", "SLURM_NTASKS": "1"},
        **{"SLURM_NTASKS_PER_NODE": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        **{"SLURM_NODEID": "0", "SLURM_NODELIST": "localhost", "SLURM_JOB_NUM_NODES": "1"},
    }
    slurm = ["--trainer.num_nodes", "1", "--trainer.devices", "1", "--checkpoint_every", "1000"]
    warn = {"pause": 0.5, "number": int(signal.SIGUSR1), "step": 7}
    process = start("nlzoo.fit", *options(videos, tmp_path, 8, **warn), *slurm, **job)
    saved = tmp_path / "run/checkpoints/hpc_ckpt_1.ckpt"
    while process.poll() is None and not (tmp_path / "calls.txt").exists():
        time.sleep(0.05)
    process.kill()  # the time is up
    process.wait()
    assert (tmp_path / "calls.txt").read_text() == "scontrol requeue 42\n"
    assert torch.load(saved, weights_only=False)["global_step"] == 8  # the step was completed
    (tmp_path / "loss0.txt").unlink()
    done(start("nlzoo.fit", *options(videos, tmp_path, 8), *slurm, **job))
    torch.testing.assert_close(losses(tmp_path, 1), losses(one, 1)[8:], rtol=0, atol=0)
    assert not saved.exists()
