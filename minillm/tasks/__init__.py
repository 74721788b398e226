"""What is learned: one file a task, and one line here."""

from minillm.tasks.arithmetic import Arithmetic
from minillm.tasks.base import Task
from minillm.tasks.chat import Chat
from minillm.tasks.classify import Classify
from minillm.tasks.countdown import Countdown
from minillm.tasks.guess import Guess
from minillm.tasks.lm import LanguageModelling
from minillm.tasks.mlm import MaskedLanguageModelling
from minillm.tasks.multi_label import MultiLabel
from minillm.tasks.points24 import Points24
from minillm.tasks.preference import Preference
from minillm.tasks.pronounce import Pronounce
from minillm.tasks.regress import Regress
from minillm.tasks.seq2seq import Seq2Seq
from minillm.tasks.tag import Tag

ALL = (
    *(Pronounce, Arithmetic, Countdown, Points24, Guess),
    *(LanguageModelling, MaskedLanguageModelling, Classify, Regress, Tag, Seq2Seq, Chat, Preference),
)
Classify.problems = {"single": Classify, "multi": MultiLabel}
TASKS: dict[str, type[Task]] = {task.name: task for task in ALL}
