"""A conversation with a model: its turns, what of them was read, and which are forgotten when there are too many."""

from minillm.commands.text_generation import Answer, TextGenerator
from minillm.errors import UserError
from minillm.inference import KVCache


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
        self.cache = KVCache.of(text_generator.model, 1, text_generator.max_seq_len)
        self.read: list[int] = []  # the tokens that the cache holds, and perhaps some more
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

    def recall(self, prompt: list[int]) -> KVCache:
        """What the model has read of this prompt already, in earlier turns: their common beginning."""
        pairs = zip(prompt[:-1], self.read, strict=False)
        self.cache.keep(next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(prompt) - 1, len(self.read))))
        self.read = list(prompt)
        return self.cache

    def answered(self, answer: Answer) -> None:
        """The answer to the last question; without one it is as if it had not been asked."""
        self.read += answer.tokens
        if answer.text:
            self.turns.append({"role": "assistant", "content": answer.text})
        else:
            self.turns.pop()
