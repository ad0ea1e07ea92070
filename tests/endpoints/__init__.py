"""An OpenAI-compatible stub and a fault-injecting proxy on loopback, for the builder's and the evaluator's tests."""
