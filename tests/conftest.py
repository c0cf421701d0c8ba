"""What holds for every test: no setting of the shell, and no slow machine, decides whether it passes.

And the order of the files, heaviest first: processes share them whole, so one that began last would be waited for.
"""

import gc
import os

import pytest
from hypothesis import settings

for _name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
    os.environ.pop(_name, None)  # tables are as wide as into a pipe, without colours

settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
"""Without a deadline: how long an example takes depends on what else the machine does."""


HEAVY = (
    "test_train_distributed.py",
    "test_ray.py",
    "test_view_browser.py",
    "test_documentation_run.py",
    "test_audit.py",
    "test_bucket.py",
    "test_mergedistill.py",
    "test_capture.py",
    "test_mtbert.py",
    "test_hostile.py",
    "test_living.py",
    "test_tensor_parallel.py",
    "test_resume.py",
    "test_servers.py",
    "test_exchange_import.py",
    "test_copying.py",
    "test_generate_served.py",
    "test_refusals_cache.py",
    "test_engines.py",
    "test_glmd.py",
    "test_train.py",
    "test_damage.py",
    "test_exchange_export.py",
    "test_api.py",
    "test_plan.py",
    "test_target_kinds.py",
    "test_train_continued.py",
    "test_checkpoints.py",
    "test_gloss.py",
    "test_cohesive.py",
    "test_fused.py",
    "test_finished.py",
    "test_same_tokenizer.py",
    "test_hub.py",
    "test_restore.py",
    "test_ranked_capture.py",
    "test_mergedistill_selection.py",
    "test_package.py",
    "test_mixed_teachers.py",
    "test_packing.py",
    "test_train_disk.py",
    "test_report.py",
    "test_evaluate.py",
    "test_training_arguments.py",
    "test_gold_check.py",
    "test_plan_measure.py",
    "test_finite.py",
    "test_lora.py",
    "test_plan_memory.py",
    "test_gloss_tasks.py",
    "test_quality.py",
)
"""Files that take five seconds or more of a processor, slow tests included; the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the heavy files; the others stay in their order."""
    place = {name: number for number, name in enumerate(HEAVY)}
    items.sort(key=lambda item: place.get(item.path.name, len(HEAVY)))


def pytest_collection_finish() -> None:
    """Take what was imported out of the garbage collector's sight: the trainer calls it once a run, for 0.2 s."""
    gc.collect()
    gc.freeze()
