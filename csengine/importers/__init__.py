"""From the models of other frameworks to the engine's float32 graph."""
