"""What is learned: one file a task, with its examples, its metrics and its reward."""

from minillm.tasks.base import Example, Splits, Task, to_documents

__all__ = ["Example", "Splits", "Task", "to_documents"]
