"""Supervised against reinforcement learning: what `bench/sft_vs_rl.py` plans, runs, measures and reports.

studies.py     a task: what its labels are, what suits it, which examples lie outside of what was trained on
arms.py        the ways to learn, as a table of choices
plan.py        arms × starts × seeds as jobs that build on one another; how many steps cost the same
runner.py      one job after the other, resumed where it stopped
measure.py     every example's result, of any run
effects.py     differences between arms, with intervals over seeds and examples
results.py     all that was measured, and the CSV of it
questions.py   five questions, each answered by a figure and a sentence that its interval carries
charts.py      the pictures, for the page and as PNG
page.py        the report
"""
