"""Knows how names of earlier Transformers become a base model's, as PEFT renames tensors when it loads; never tensors.

The rules are Transformers' own (`get_model_conversion_mapping`), written down as data when the base is described, so
that who looks at uploads needs neither. How they are applied is `convert_peft_adapter_state_dict_for_transformers`
(PEFT, utils/transformers_weight_conversion.py) with `WeightTransform.rename_source_key` (Transformers,
core_model_loading.py): to LoRA's tensors alone, and not where all that changes is a prefix that falls away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final, NamedTuple

_OURS: Final = "base_model."
_WRAPPER: Final = f"{_OURS}model."
_LONGEST: Final = 1_000  # characters of a name that may be one of these


class Renaming(NamedTuple):
    """What `pattern` finds becomes `target`, in which \\1 is the group within the branch that was found.

    `scopes`: if there are any, the prefixes, of which a name must have one; the pattern is for what follows.
    """

    pattern: str
    target: str
    scopes: tuple[str, ...] = ()

    def apply(self, name: str) -> str:
        prefix = next((scope for scope in self.scopes if name.startswith(scope)), None)
        if self.scopes and prefix is None:
            return name
        rest = name.removeprefix(prefix or "")
        found = _compiled(self.pattern).search(rest)
        if found is None:
            return name
        target = self.target
        if r"\1" in target:
            branch = next(group for group, text in found.groupdict().items() if text is not None)
            target = target.replace(r"\1", found[found.re.groupindex[branch] + 1])
        return (prefix or "") + rest.replace(found[0], target, 1)


def loaded(name: str, renamings: Iterable[Renaming]) -> str:
    """The name under which PEFT loads a tensor called `name`."""
    if ".lora_" not in name or not name.startswith(_OURS) or len(name) > _LONGEST:
        return name
    renamed = name.removeprefix(_WRAPPER)
    for renaming in renamings:
        renamed = renaming.apply(renamed)
    if name.endswith(renamed):
        return name
    return renamed if renamed.startswith(_OURS) else _WRAPPER + renamed


def renamings(model: Any) -> tuple[Renaming, ...]:
    """Those that PEFT applies on this model: none unless Transformers knows its kind by earlier names."""
    from transformers import conversion_mapping
    from transformers.core_model_loading import PrefixChange, WeightRenaming

    known: Any = conversion_mapping
    if known.get_checkpoint_conversion_mapping(model.config.model_type) is None:
        return ()
    rules = [r for r in known.get_model_conversion_mapping(model) if type(r) in (WeightRenaming, PrefixChange)]
    return tuple(Renaming(rule.compiled_sources.pattern, rule.target_patterns[0], _scopes(rule)) for rule in rules)


def _scopes(rule: Any) -> tuple[str, ...]:
    """Return the prefixes that a rule is tried with: behind the base model's own first, then alone."""
    if rule.scope_prefix is None:
        return ()
    scope = f"{rule.scope_prefix}." if rule.scope_prefix else ""
    base = f"{rule.base_model_prefix}." if rule.base_model_prefix else ""
    return (base + scope, scope)


@lru_cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
