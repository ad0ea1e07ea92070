"""One module for each word of ``python -m eval`` that is not LightEval's own."""
