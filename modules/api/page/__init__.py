"""Routes that only our own script calls. They answer sessions, check where a request comes from, and stay out of /openapi.json."""
