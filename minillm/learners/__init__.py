"""Who learns: a GPT that writes answers, or a classifier that names classes. One file each."""

from minillm.learners.base import Learner
from minillm.learners.labeller import KINDS, Labeller
from minillm.learners.writer import Writer

__all__ = ["KINDS", "Labeller", "Learner", "Writer"]
