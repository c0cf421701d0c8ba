r"""What frozen pre-trained encoders know of a task: a linear classifier of each, and of their mean, beside the words.

    python -m configs.pretrained.fetch minilm-l6
    python -m configs.pretrained.fetch bert-tiny
    python -m configs.papers.frozen runs/mtbert/texts/wordnet.jsonl --held-out-fraction 0.3 \
      --model runs/pretrained/minilm-l6 --model runs/pretrained/bert-tiny

The features of a text are the mean of its tokens' last hidden states; the encoders are not trained. The mean of the
classifiers' probabilities is the ensemble that several teachers could at least give a student. Where it is not above
the best of them, there is nothing that several teachers could teach and one could not.
"""

from pathlib import Path

import click
import numpy as np
from transformers.utils import logging

from configs.papers.bag_of_words import Answers, classified, judged, log_probs, split_of
from configs.papers.gloss.probe import states
from configs.papers.intervals import Interval, over_seeds_and_items
from configs.papers.markdown import markdown, show, unsigned


@click.command()
@click.argument("corpus", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--held-out-fraction", type=float, required=True, help="The fraction in the capture file.")
@click.option(
    "--model",
    "models",
    multiple=True,
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of an encoder; may be repeated.",
)
def lines(corpus: Path, held_out_fraction: float, models: tuple[Path, ...]) -> None:
    """Print the accuracy of frozen encoders on the held-out texts of CORPUS, JSON lines with text and label."""
    logging.set_verbosity_error()  # an encoder's head is not used, and may be missing
    logging.disable_progress_bar()
    train, test = split_of(corpus, held_out_fraction)
    answers, log_p = {"TF-IDF and logistic regression": classified(train, test)}, []
    for model in models:
        click.echo(f"{model}: {len(train.texts) + len(test.texts):,} texts to read", err=True)
        log_p.append(log_probs(train, *(states(model, side.texts) for side in (train, test))))
        answers[f"{model.name}, frozen"] = judged(log_p[-1], train, test)
    if len(models) > 1:
        mean_NC = np.log(np.mean(np.exp(log_p), axis=0))
        answers["mean of their probabilities"] = judged(mean_NC, train, test)
    table = markdown(
        *("features", "accuracy", "points less TF-IDF", "nats"),
        title=f"{corpus.name}: {len(train.texts):,} texts to learn from, {len(test.texts):,} held out",
    )
    of_words, *others = answers.values()
    for name, model_answers in answers.items():
        less = "" if model_answers is of_words else points(model_answers, of_words)
        accuracy = unsigned(over_seeds_and_items(model_answers.right_N[None].astype(np.float64)))
        table.add_row(name, accuracy, less, f"{model_answers.nats_N.mean():.3f}")
    show(table)
    if len(models) > 1:
        best = max(others[:-1], key=lambda model_answers: float(model_answers.right_N.mean()))
        click.echo(f"\nThe mean less the best of them: {points(others[-1], best)} points")


def points(answers: Answers, others: Answers) -> str:
    """Return a difference of accuracies in points, with its interval over texts."""
    less: Interval = over_seeds_and_items(100 * (answers.right_N.astype(np.float64) - others.right_N)[None])
    return f"{less.mean:+.1f} [{less.low:+.1f}, {less.high:+.1f}]"


if __name__ == "__main__":
    lines()
