"""The engine for models that run in this process: many streams in one batch, with a cache that is kept between turns."""
