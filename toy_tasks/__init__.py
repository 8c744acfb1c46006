"""Toy tasks with known answers, and small transformers trained on them.

Pure torch: imports nothing of mechsink.
"""

from toy_tasks.arithmetic import Sums
from toy_tasks.bigram_backcopy import BigramBackcopy
from toy_tasks.config import ToyConfig
from toy_tasks.evaluation import accuracy, evaluate, realised_excess
from toy_tasks.planted import PLANTED, Planted
from toy_tasks.presets import PRESETS, Preset
from toy_tasks.regression.heads import RegressionHeads
from toy_tasks.regression.task import LinearRegression
from toy_tasks.regression.training import train_heads
from toy_tasks.regression.transformer import RegressionTransformer
from toy_tasks.runs import TrainRun, load_run
from toy_tasks.task import Task
from toy_tasks.text.source_text import SourceText
from toy_tasks.training import train
from toy_tasks.transformer import ToyTransformer

__all__ = [
    "PLANTED",
    "PRESETS",
    "BigramBackcopy",
    "LinearRegression",
    "Planted",
    "Preset",
    "RegressionHeads",
    "RegressionTransformer",
    "SourceText",
    "Sums",
    "Task",
    "ToyConfig",
    "ToyTransformer",
    "TrainRun",
    "accuracy",
    "evaluate",
    "load_run",
    "realised_excess",
    "train",
    "train_heads",
]
