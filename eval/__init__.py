"""The evaluator: a judge that sees the video, its statistics, and the LightEval tasks that use it."""
