"""What `python -m minillm` does, a command a file: its docstring is the help, `Args` the options, `main` the rest."""
