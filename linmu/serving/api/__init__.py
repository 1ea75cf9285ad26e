"""The HTTP server: OpenAI's paths on one engine. Nothing of it touches a runner."""
