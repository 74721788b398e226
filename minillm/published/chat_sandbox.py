"""Renders a chat template, as a process of its own: the template comes with a checkpoint, so nothing in it is trusted.

Jinja's sandbox keeps it from reaching Python; limits of memory and processor time, which the kernel enforces, end what
would not end by itself. chat.py starts this file, not the package, and so without PyTorch. Each line between them is
JSON: first the template, then `{"variables": …, "marks": [open, close]}` → `{"text": …}` or `{"error": …}`. What is
within `{% generation %}` blocks comes between the marks.
"""

import sys

sys.path.pop(0)  # this folder, whose modules are none that anything here should import

import datetime
import json
import resource
import signal

import jinja2
import jinja2.ext
import jinja2.sandbox

SECONDS, BYTES = 5, 1 << 29


class Generation(jinja2.ext.Extension):
    """{% generation %}…{% endgeneration %}: the model's answer, in templates written for training."""

    tags = frozenset(["generation"])

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller):
        open_mark, close_mark = self.environment.marks
        return open_mark + caller() + close_mark


def fail(message):
    raise jinja2.TemplateError(message)


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """Jinja's own would escape HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment():
    """What the templates of published checkpoints expect, which is what transformers has."""
    extensions = [Generation, jinja2.ext.loopcontrols]
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    made.filters["tojson"] = to_json
    made.globals["raise_exception"] = fail
    made.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return made


def main():
    if sys.platform == "linux":  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    jinja = environment()
    source = json.loads(sys.stdin.readline())
    template = None
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # processor time; the signal ends the process
        try:
            job = json.loads(line)
            jinja.marks = job["marks"]
            template = template or jinja.from_string(source)
            answer = {"text": template.render(job["variables"])}
        except MemoryError:
            answer = {"error": "it takes too much memory"}
        except Exception as error:  # whatever a template may do wrong is its own fault, and is reported
            answer = {"error": f"{error or type(error).__name__}"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
