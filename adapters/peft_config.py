"""Knows PEFT's adapter_config.json and which of its fields are served exactly; never base models or weights.

PEFT 0.21's LoraConfig (tuners/lora/config.py) is the reference. A field that changes what a loaded adapter computes is
either read here or refused by name; no field is ever handed to anything that could act on it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from adapters import strictjson
from adapters.errors import Finding, Rejected
from adapters.files import CONFIG, open_regular
from adapters.limits import DEFAULT, Limits

ALL_LINEAR: Final = "all-linear"
SERVED_INITS: Final = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Initialisations that leave the base weights as they are. The others train against changed ones."""

BIASES: Final = ("none", "all", "lora_only")

_MLX_FIELDS: Final = frozenset({"fine_tune_type", "lora_parameters", "lora_layers"})
_PLAIN: Final = re.compile(r"\^?[\w.-]+")
_PLAIN_NAME: Final = re.compile(r"[\w.-]{1,200}")


@dataclass(frozen=True)
class PeftConfig:
    """What of an adapter_config.json decides how it is served. `targets` and `excluded` are names, or one regex.

    `saved`: the ends of retrained modules' names (modules_to_save). `tie`: on a base whose head is its embedding, what
    is done to the embedding is done to the head (ensure_weight_tying). `bias`: none, all or lora_only. `parameters`:
    the ends of parameters' names (target_parameters). `tokens`: by the end of a module's name, "" for the input
    embedding, the rows of it that were retrained (trainable_token_indices).
    """

    rank: int
    alpha: float
    targets: frozenset[str] | str
    excluded: frozenset[str] | str = frozenset()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    layers: frozenset[int] = frozenset()
    layers_pattern: tuple[str, ...] = ()
    base_model: str = ""
    dora: bool = False
    lora_bias: bool = False
    bias: str = "none"
    saved: tuple[str, ...] = ()
    tie: bool = False
    parameters: frozenset[str] = frozenset()
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def narrow(self) -> bool:
        """Whether names alone do not say which modules are meant."""
        return bool(self.layers or self.excluded) or (isinstance(self.targets, str) and not self.all_linear)

    @property
    def all_linear(self) -> bool:
        return isinstance(self.targets, str) and self.targets.lower() == ALL_LINEAR


@dataclass(frozen=True)
class _Unserved:
    """A field that must be empty: the finding's code, what the adapter is, and what to do."""

    rule: str
    what: str
    remedy: str


_RETRAIN = "train it as plain LoRA, or merge it into its base model"
_UNSERVED: Final[Mapping[str, _Unserved]] = {
    "layer_replication": _Unserved(
        "unsupported-layer-replication", "repeats layers of the base model (layer_replication)", _RETRAIN
    ),
    "use_qalora": _Unserved("unsupported-qalora", "was trained with QALoRA (use_qalora=true)", _RETRAIN),
    "use_bdlora": _Unserved("unsupported-bdlora", "was trained with BD-LoRA (use_bdlora)", _RETRAIN),
    "arrow_config": _Unserved("unsupported-arrow", "routes with Arrow (arrow_config)", _RETRAIN),
    "kasa_config": _Unserved("unsupported-kasa", "was trained with KaSA (kasa_config)", _RETRAIN),
    "velora_config": _Unserved("unsupported-velora", "was trained with VeLoRA (velora_config)", _RETRAIN),
    "monteclora_config": _Unserved(
        "unsupported-monteclora", "was trained with Monteclora (monteclora_config)", _RETRAIN
    ),
    "alora_invocation_tokens": _Unserved(
        "unsupported-alora",
        "is an activated LoRA (alora_invocation_tokens)",
        "train it without alora_invocation_tokens",
    ),
    "megatron_config": _Unserved(
        "unsupported-megatron", "was trained with Megatron's layers (megatron_config)", _RETRAIN
    ),
}

_CONVERT: Final = "convert it with save_pretrained(path_initial_model_for_weight_conversion=…)"
_LOFTQ: Final = "append its initial A and negated initial B to the trained ones, so that it fits the unchanged base,"
_OTHER_TYPES: Final[Mapping[str, tuple[str, ...]]] = {
    "prepends trained tokens or states to the prompt, which no linear's change can express": (
        "ADAPTION_PROMPT",
        "CPT",
        "MULTITASK_PROMPT_TUNING",
        "P_TUNING",
        "PREFIX_TUNING",
        "PROMPT_TUNING",
    ),
    "scales activations instead of adding a low-rank product": ("IA3", "BEFT", "LN_TUNING", "ROAD"),
    "rotates or projects the base's weights": ("BOFT", "HRA", "OFT", "OSF"),
    "draws its projections at random from a seed": ("FROD", "PVERA", "RANDLORA", "UNILORA", "VBLORA", "VERA"),
    "is no low-rank product of two matrices; convert it with peft.save_as_lora and check what that loses": (
        "ADALORA",
        "C3A",
        "FOURIERFT",
        "HIRA",
        "LOHA",
        "LOKR",
        "MISS",
        "SHIRA",
        "WAVEFT",
    ),
    "mixes several adapters by a router": ("POLY", "XLORA"),
    "trains single tokens' embeddings and no linear; train it as LoRA with trainable_token_indices": (
        "TRAINABLE_TOKENS",
    ),
}
"""Why an adapter of another type has no exact form here, by PEFT's name for the type."""

_WITHOUT_EFFECT: Final = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "fan_in_fan_out",
        "inference_mode",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
    }
)
"""Fields that change training or loading, but not what a loaded adapter computes. Never acted on."""

_CHECKED: Final = frozenset(
    {
        "alpha_pattern",
        "bias",
        "ensure_weight_tying",
        "exclude_modules",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_bias",
        "megatron_core",
        "modules_to_save",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "target_parameters",
        "task_type",
        "trainable_token_indices",
        "use_dora",
        "use_rslora",
    }
)


def read_config(source: Path | bytes, limits: Limits = DEFAULT) -> PeftConfig:
    """Parse an adapter_config.json, from its path or its bytes. Raises Rejected with every finding."""
    document = _document(source, limits)
    kind = document.get("peft_type")
    if kind is None and _MLX_FIELDS & document.keys():
        message = f"{CONFIG} is MLX's, not PEFT's; convert the adapter as docs/adapters.md says under MLX."
        raise Rejected.because("mlx-format", message, expected="a config that PEFT wrote", found="MLX's")
    if kind != "LORA":
        raise Rejected.because(
            "unsupported-peft-type",
            f"This adapter is of PEFT's type {_shown(kind)}, which {_reason(kind)}; only LORA is served.",
            expected="LORA",
            found=_shown(kind),
        )
    reader = _ConfigReader(document, limits)
    config = reader.read()
    if reader.findings:
        raise Rejected(reader.findings)
    return config


def _document(source: Path | bytes, limits: Limits) -> dict[str, Any]:
    if isinstance(source, bytes):
        raw = source[: limits.config + 1]
    else:
        with open_regular(source) as stream:
            raw = stream.read(limits.config + 1)
    if len(raw) > limits.config:
        raise Rejected.because(
            "config-too-large",
            f"{CONFIG} is larger than the {limits.config} bytes allowed; upload the one that PEFT wrote.",
        )
    try:
        document = strictjson.loads(raw)
    except strictjson.NotStrictJson as error:
        raise Rejected.because(
            error.rule, f"{CONFIG} can't be read: {error}; upload the one that PEFT wrote."
        ) from error
    if not isinstance(document, dict):
        raise Rejected.because("malformed-json", f"{CONFIG} must be a JSON object; upload the one that PEFT wrote.")
    return document


class _ConfigReader:
    """Reads one config and collects findings; a field with a finding reads as a harmless stand-in."""

    def __init__(self, document: Mapping[str, Any], limits: Limits) -> None:
        self.findings: list[Finding] = []
        self._document = document
        self._limits = limits

    def read(self) -> PeftConfig:
        self._refuse_unserved()
        self._refuse_unknown()
        self._refuse_code()
        self._refuse_changed_base()
        config = PeftConfig(
            rank=self._rank("r", self._document.get("r")),
            alpha=self._alpha("lora_alpha", self._document.get("lora_alpha")),
            targets=self._targets(),
            excluded=self._names_or_regex("exclude_modules"),
            rank_pattern=self._mapping("rank_pattern", self._rank),
            alpha_pattern=self._mapping("alpha_pattern", self._alpha),
            rslora=self._flag("use_rslora"),
            layers=self._layers(),
            layers_pattern=self._layers_pattern(),
            base_model=_text(self._document.get("base_model_name_or_path")),
            dora=self._flag("use_dora"),
            lora_bias=self._flag("lora_bias"),
            bias=self._bias(),
            saved=self._saved(),
            tie=self._flag("ensure_weight_tying"),
            parameters=self._parameters(),
            tokens=self._tokens(),
        )
        self._refuse_contradictions(config)
        return config

    def _refuse(self, rule: str, message: str, expected: str = "", found: Any = "") -> None:
        self.findings.append(Finding(rule, message, "", expected, found if found == "" else _shown(found)))

    def _refuse_unserved(self) -> None:
        for name, unserved in _UNSERVED.items():
            if self._document.get(name):
                message = f"This adapter {unserved.what}, which isn't served; {unserved.remedy}."
                self._refuse(unserved.rule, message, f"{name} unset", self._document[name])
        if self._document.get("task_type") not in (None, "CAUSAL_LM"):
            message = "This adapter is for another kind of model (task_type); only CAUSAL_LM adapters are served."
            self._refuse("unsupported-task", message, "CAUSAL_LM", self._document["task_type"])

    def _refuse_unknown(self) -> None:
        """A key that nothing here knows may change what is computed, unless it is off."""
        for name in self._document.keys() - _UNSERVED.keys() - _WITHOUT_EFFECT - _CHECKED:
            if self._document[name]:
                message = f"The config sets {_shown(name)}, which isn't known here; save the adapter without it."
                self._refuse("unknown-config-field", message, "unset", self._document[name])

    def _refuse_code(self) -> None:
        """A field that PEFT imports a module by. Nothing here does; a value PEFT wouldn't write is an attack.

        Another such, auto_mapping, PEFT itself reads only where it has to find the base model, which here is given.
        """
        if self._document.get("megatron_core") not in (None, "", "megatron.core"):
            message = "megatron_core names a module to import; remove it from the config."
            self._refuse("config-code", message, "megatron.core", self._document["megatron_core"])

    def _refuse_changed_base(self) -> None:
        init = self._document.get("init_lora_weights", True)
        if not any(init is served or (isinstance(init, str) and init == served) for served in SERVED_INITS):
            message = (
                f"This adapter was initialised with {_shown(init)}, which changes the base model's weights; "
                f"{_LOFTQ if init == 'loftq' else _CONVERT} and upload the result."
            )
            self._refuse("unconverted-init", message, "true, false, gaussian, eva, orthogonal or mica", init)

    def _refuse_contradictions(self, config: PeftConfig) -> None:
        """What LoraConfig itself doesn't take."""
        if isinstance(config.targets, str) and config.targets and (config.layers or config.layers_pattern):
            message = "layers_to_transform needs target_modules to be a list of names; write the layers into the regex."
            self._refuse("malformed-config", message)
        elif config.layers_pattern and not config.layers:
            self._refuse("malformed-config", "layers_pattern needs layers_to_transform; set both or neither.")
        if config.lora_bias and config.dora:
            self._refuse(
                "malformed-config", "lora_bias and use_dora can't be combined, in PEFT neither; set one of them."
            )

    def _targets(self) -> frozenset[str] | str:
        targets = self._names_or_regex("target_modules")
        if not targets and not self._document.get("target_modules") and not self._document.get("target_parameters"):
            self._refuse("malformed-config", "target_modules is missing; name the modules that were trained.")
        return targets

    def _bias(self) -> str:
        value = self._document.get("bias") or "none"
        if isinstance(value, str) and value in BIASES:
            return value
        self._refuse("malformed-config", "bias must be none, all or lora_only.", "none, all or lora_only", value)
        return "none"

    def _saved(self) -> tuple[str, ...]:
        """Plain names only: PEFT reads them as ends of names here, as expressions there; those are both at once."""
        value = self._document.get("modules_to_save") or []
        if (
            isinstance(value, list)
            and all(isinstance(name, str) and _PLAIN_NAME.fullmatch(name) for name in value)
            and len(value) <= self._limits.saved
        ):
            return tuple(value)
        message = f"modules_to_save must be a list of at most {self._limits.saved} plain module names."
        self._refuse("malformed-config", message, "", value)
        return ()

    def _parameters(self) -> frozenset[str]:
        value = self._document.get("target_parameters") or []
        if (
            isinstance(value, list)
            and all(isinstance(name, str) and _PLAIN_NAME.fullmatch(name) for name in value)
            and len(value) <= self._limits.patterns
        ):
            return frozenset(value)
        message = f"target_parameters must be a list of at most {self._limits.patterns} plain parameter names."
        self._refuse("malformed-config", message, "", value)
        return frozenset()

    def _tokens(self) -> dict[str, tuple[int, ...]]:
        value = self._document.get("trainable_token_indices") or {}
        by_name = value if isinstance(value, dict) else {"": value}
        if len(by_name) <= self._limits.saved and all(
            (by_name is not value or _PLAIN_NAME.fullmatch(name)) and _is_rows(rows) for name, rows in by_name.items()
        ):
            return {name: tuple(rows) for name, rows in by_name.items()}
        message = (
            "trainable_token_indices must be a list of different token numbers, or map module names to such lists."
        )
        self._refuse("malformed-config", message, "", value)
        return {}

    def _names_or_regex(self, name: str) -> frozenset[str] | str:
        value = self._document.get(name)
        if value is None:
            return frozenset()
        if isinstance(value, str) and len(value) <= self._limits.pattern_length:
            return value
        if isinstance(value, list) and all(isinstance(item, str) and item for item in value):
            return frozenset(value)
        self._refuse("malformed-config", f"{name} must be a list of names or one regular expression.", "", value)
        return frozenset()

    def _mapping(self, name: str, convert: Callable[[str, Any], Any]) -> dict[str, Any]:
        value = self._document.get(name) or {}
        longest = self._limits.pattern_length
        if (
            not isinstance(value, dict)
            or len(value) > self._limits.patterns
            or any(len(key) > longest for key in value)
        ):
            self._refuse(
                "malformed-config", f"{name} must map at most {self._limits.patterns} module names to numbers."
            )
            return {}
        return {key: convert(f"{name}[{key}]", item) for key, item in value.items()}

    def _rank(self, name: str, value: Any) -> int:
        limit = self._limits.rank
        if type(value) is int and 1 <= value <= limit:
            return value
        self._refuse(
            "rank", f"{name} must be a whole number from 1 to {limit}; train with such a rank.", f"1 to {limit}", value
        )
        return 1

    def _alpha(self, name: str, value: Any) -> float:
        limit = self._limits.alpha
        if type(value) in (int, float) and 0 < value <= limit:
            return float(value)
        self._refuse(
            "alpha", f"{name} must be a number above 0 and at most {limit:g}.", f"above 0, at most {limit:g}", value
        )
        return 1.0

    def _flag(self, name: str) -> bool:
        value = self._document.get(name) or False
        if value is not True and value is not False:
            self._refuse("malformed-config", f"{name} must be true or false.", "true or false", value)
        return value is True

    def _layers(self) -> frozenset[int]:
        value = self._document.get("layers_to_transform")
        layers = [value] if type(value) is int else (value or [])
        if isinstance(layers, list) and all(type(layer) is int and layer >= 0 for layer in layers):
            return frozenset(layers)
        self._refuse("malformed-config", "layers_to_transform must be a list of layer numbers.", "", value)
        return frozenset()

    def _layers_pattern(self) -> tuple[str, ...]:
        """Plain names only: PEFT reads them as expressions, but a module list's name is all that one needs."""
        value = self._document.get("layers_pattern") or []
        patterns = [value] if isinstance(value, str) else value
        if (
            isinstance(patterns, list)
            and all(isinstance(p, str) and _PLAIN.fullmatch(p) for p in patterns)
            and len(patterns) <= 16
        ):
            return tuple(patterns)
        self._refuse(
            "malformed-config", "layers_pattern must name the base model's list of layers, such as 'layers'.", "", value
        )
        return ()


def _reason(kind: Any) -> str:
    return next((why for why, kinds in _OTHER_TYPES.items() if kind in kinds), "isn't known here")


def _is_rows(value: Any) -> bool:
    numbers = isinstance(value, list) and all(type(row) is int and 0 <= row < 2**31 for row in value)
    return numbers and 0 < len(value) == len(set(value))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _shown(value: Any) -> str:
    """A short text for any JSON value, however deep or long."""
    return str(value)[:100] if isinstance(value, str | int | float) or value is None else type(value).__name__
