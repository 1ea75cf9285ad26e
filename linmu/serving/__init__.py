"""Many conversations on one model: a scheduler, states that are kept, an OpenAI-compatible server, live video."""
