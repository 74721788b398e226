"""A conversation with a model: its turns, and which of them are forgotten when there are too many to read."""

from minillm.commands.text_generation import TextGenerator
from minillm.errors import UserError


class Conversation:
    def __init__(self, text_generator: TextGenerator, system: str | None = None):
        """UserError if the model has no chat template."""
        if text_generator.template is None:
            raise UserError(
                "this model has no chat template, so it was not trained to converse; "
                "`python -m minillm generate` lets it go on with a text"
            )
        self.text_generator = text_generator
        self.instructions = [{"role": "system", "content": system}] if system else []
        self.reset()

    def reset(self) -> None:
        """Forget all but the instructions."""
        self.turns: list[dict[str, str]] = []  # question, answer, question, …

    def ask(self, question: str, room: int) -> tuple[list[int], int]:
        """What the model is to go on from, and how many questions were forgotten so that `room` more tokens fit.

        UserError for a question that does not fit even alone; the conversation stays as it was.
        """
        turns = [*self.turns, {"role": "user", "content": question}]
        while True:
            ids = self.text_generator.template.prompt([*self.instructions, *turns])
            if len(ids) + room - 1 <= self.text_generator.max_seq_len:
                break
            if len(turns) == 1:
                raise UserError(
                    f"with what the chat template adds this takes {len(ids)} tokens, and an answer at least {room}, "
                    f"but the model reads {self.text_generator.max_seq_len}; make it shorter"
                )
            turns = turns[2:]
        forgotten = (len(self.turns) + 1 - len(turns)) // 2
        self.turns = turns
        return ids, forgotten

    def answered(self, text: str) -> None:
        """The answer to the last question; without one it is as if it had not been asked."""
        if text:
            self.turns.append({"role": "assistant", "content": text})
        else:
            self.turns.pop()
