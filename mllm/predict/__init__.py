"""Answers from a trained adapter or a model: loading, prompting, files of questions, chat."""
