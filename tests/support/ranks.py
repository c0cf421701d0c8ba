"""Several ranks of one program, as torchrun would start them, each a forked process (see ``processes.py``).

They speak to each other over gloo, on this machine's loopback; what they exchange is what ranks on GPUs exchange.
"""

import os
import socket
import sys
import warnings
from pathlib import Path

from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

import trainer.run.train
from processes import finish, start
from student_fixtures import train, train_and_stop
from trainer.run.sharding import gathered_weights


def on_ranks(world_size, output, work, *arguments, environment=None):
    """Call ``work(*arguments)`` on some ranks, where every warning is an error, until all have ended without one.

    Args:
        world_size: Number of ranks.
        output: Path whose name begins those of the ranks' logs.
        work: Function of a module; ranks are told apart by the variable ``RANK``.
        arguments: Its arguments, the same on each rank.
        environment: Further variables.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": world_size} | (environment or {})
    logs = [Path(f"{output}-rank{rank}.log") for rank in range(world_size)]
    processes = [
        start(_rank, shared | {"RANK": rank, "LOCAL_RANK": rank}, log, work, arguments) for rank, log in enumerate(logs)
    ]
    codes = [finish(process) for process in processes]
    assert codes == [0] * world_size, "\n".join(log.read_text() for log in logs)


def train_on(world_size, cache, output, stop_after=None, environment=None, **changes):
    """Train on some ranks, as ``student_fixtures.train`` does; all fail after step ``stop_after`` if it is given."""
    on_ranks(world_size, output, _train, stop_after, cache, output, changes, environment=environment)
    return Path(output) / "final"


def _save_pieces(trained, *others, save_final=trainer.run.train._save_final):
    pieces = [isinstance(parameter, DTensor) for parameter in trained.model.parameters()]
    assert all(pieces) if trained.is_fsdp_enabled else not any(pieces)
    own = gathered_weights(trained._bare_student(), keep=True)
    save_file(
        {name: value.contiguous() for name, value in own.items()},
        f"{others[-1]}-rank{trained.args.process_index}.safetensors",
    )
    save_final(trained, *others)


def _rank(environment, log, work, arguments):
    os.environ |= {name: str(value) for name, value in environment.items()}
    with log.open("w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    warnings.simplefilter("error")
    work(*arguments)


def _train(stop_after, cache, output, changes):
    trainer.run.train._save_final = _save_pieces
    if stop_after is None:
        train(cache, output, **changes)
    else:
        train_and_stop(stop_after, cache, output, **changes)
