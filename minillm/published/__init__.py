"""Other people's formats: checkpoints, vocabularies and chat templates of published models, in and out.

Nothing that a model or `generate` needs is in here.
"""
