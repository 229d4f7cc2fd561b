"""YAML as people and strangers write it: by the C parser, and within bounds that no such file comes near."""

from __future__ import annotations

from typing import Any

import yaml

MOST_NODES = 50_000
DEEPEST = 100
_OPENING = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
_CLOSING = (yaml.MappingEndEvent, yaml.SequenceEndEvent)


class NotYaml(yaml.YAMLError):
    """A text that is YAML in form, and holds what cannot be."""


class _Loader(yaml.CSafeLoader):
    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merges of merges (`<<`) double with each level."""
        super().flatten_mapping(node)
        if len(node.value) > MOST_NODES:
            raise NotYaml("it merges too much into one mapping")


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. Raises yaml.YAMLError for all that is wrong with it, and for one of too many or too deep parts."""
    depth = 0
    try:
        for number, event in enumerate(yaml.parse(text, Loader=yaml.CSafeLoader)):
            depth += isinstance(event, _OPENING) - isinstance(event, _CLOSING)
            if number > MOST_NODES or depth > DEEPEST:
                raise NotYaml("it has too many parts" if number > MOST_NODES else "it is nested too deeply")
        return yaml.load(text, Loader=_Loader)
    except (ValueError, OverflowError, RecursionError) as error:  # a date that is none, a number of too many digits
        raise NotYaml(str(error)) from None
