"""One teacher over several processes, each with a part of every matrix, all at work on the same batch.

The first process of a group leads: it encodes, decides what is missing, and writes, exactly as if it were alone,
except that it also sends the arguments of each call of its teacher's body to the others. They follow: they load a
teacher when they are ordered to, run the body on what they receive, and discard the result. They read neither corpus
nor cache, so they cannot disagree with the first about the work, and nothing that is written depends on them.

What is split is the body, by the plan that transformers has for the architecture; results differ from one
process' by the order of additions. Output matrix, and embeddings tied to it, lie whole in every process, and the
head runs in the first process alone. That costs V x D numbers per GPU (2.1 GB in bfloat16 for 128,256 x 8,192), and the
others wait meanwhile: with 70 billion weights on eight GPUs, about a tenth of the time. Rejected: a split output
matrix, for which the logits of every chunk would have to be gathered, and every user of the matrix (the head
file, the error budget of hidden states) taught to gather it.

torchrun starts the processes and ends all when one fails; a later run continues at the shard.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from pipeline.config.teacher import TeacherConfig
from pipeline.teachers.body_and_head import body_of
from pipeline.teachers.loading import chosen_device, load_model, resolve_model
from pipeline.teachers.process_group import Order, Place, join, leave, receive, receive_inputs, send

T = TypeVar("T")


def run_together(teachers: Sequence[TeacherConfig], work: Callable[[Place], T]) -> T | None:
    """Do the work in the first process of each group, while the others run their parts of the teachers.

    Args:
        teachers: The blocks of the capture file; they all take the same number of processes.
        work: Called with the place of the group.

    Returns:
        What the work returns; None in a process that follows.

    Raises:
        LogitcaskError: something was refused. The other processes are left to torchrun, which ends them.
    """
    size = teachers[0].tensor_parallel
    if size == 1:
        return work(Place())
    place, done = join(size), None
    if place.rank == 0:
        done = work(place)
        send(Order())
    else:
        _follow({teacher.name: teacher for teacher in teachers})
    leave()
    return done


def _follow(teachers: dict[str, TeacherConfig]) -> None:
    """Load teachers, given by name, and run their bodies as the first process orders, until it tells them to end."""
    body, device = None, chosen_device("auto")
    while (order := receive()) != Order():
        if order.teacher is not None:
            assert order.objective is not None
            body = None  # the one before must be gone, or both would need room
            teacher = teachers[order.teacher]
            body = body_of(load_model(teacher, resolve_model(teacher), order.objective))
        elif order.call is not None:
            assert body is not None
            with torch.inference_mode():
                body(**receive_inputs(order.call, device))
