"""The registry: which strategies are installed, where each comes from, and what is broken.

Discovery goes over the entry points of the group `pumice`, sorted by (distribution, name), each behind a guard at
import, at the call of every hook and *while the hook is iterated* (a generator fails late). What fails is recorded with
its traceback and left out. Two strategies of one kind and name are a clash: neither can be used, and asking for the
name raises an error that names both distributions.

Environment: `PUMICE_PLUGINS=a,b` loads only these entry points (empty: none), `PUMICE_DISABLE_PLUGINS=x` leaves some
out (both are applied before import; core's own `core` always loads), `PUMICE_STRICT=1` raises instead of recording.

This is the only file that touches pluggy's manager. Hooks are called here and nowhere else: never on a hot path.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterable, Mapping
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import attrs
import pluggy

from pumice import hookspecs
from pumice.errors import PluginError, nearest
from pumice.knobs import Use
from pumice.strategy import (
    Command,
    DatasetReader,
    Exporter,
    ImportanceScorer,
    Loss,
    Metric,
    Quantizer,
    Runtime,
    Searcher,
    Sparsifier,
    Strategy,
)

if TYPE_CHECKING:
    from pumice.ops import Kernel, Op, OpTable

K = TypeVar("K")
S = TypeVar("S", bound=Strategy)

STRATEGY_HOOKS: Mapping[str, type[Strategy]] = MappingProxyType(
    {
        "pumice_importance_scorers": ImportanceScorer,
        "pumice_sparsifiers": Sparsifier,
        "pumice_quantizers": Quantizer,
        "pumice_losses": Loss,
        "pumice_metrics": Metric,
        "pumice_exporters": Exporter,
        "pumice_runtimes": Runtime,
        "pumice_searchers": Searcher,
        "pumice_datasets": DatasetReader,
    }
)


BASES: Mapping[str, type[Strategy]] = MappingProxyType({base.kind: base for base in STRATEGY_HOOKS.values()})
"""The base class of every kind of strategy."""

HEAVY = frozenset(
    {"cuda", "cupy", "jax", "matplotlib", "onnxruntime", "openvino", "pandas", "sklearn", "tensorflow", "torch"}
)
"""Libraries that importing a plugin must not load: they belong inside the functions that need them."""

CORE = "pumice"
"""The distribution that cannot be done without."""

_NAME = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*")
_BUILDING = threading.RLock()


@attrs.frozen(kw_only=True)
class Origin:
    """Where a strategy came from."""

    distribution: str
    version: str
    entry_point: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


@attrs.frozen(kw_only=True)
class Broken:
    """A plugin, or one hook of it, that failed and was left out."""

    origin: Origin
    stage: str
    """`import`, `api`, or the name of the hook."""
    reason: str
    traceback: str

    @property
    def remedy(self) -> str:
        if self.origin.distribution == CORE:
            return f"pip install --force-reinstall {CORE}"
        return f"pip uninstall {self.origin.distribution}, or PUMICE_DISABLE_PLUGINS={self.origin.entry_point}"


@attrs.frozen(kw_only=True)
class ImportCost:
    """What importing one plugin cost when the registry was built."""

    origin: Origin
    seconds: float
    """Wall time, including whatever the plugin was the first to import."""
    heavy: tuple[str, ...]
    """Members of `HEAVY` that were loaded by it."""


@attrs.frozen(kw_only=True)
class Provided:
    """A record a plugin yielded, stamped with its origin."""

    record: Any
    origin: Origin


@attrs.frozen(kw_only=True)
class Registry:
    """What is installed. Immutable; build one with `discover()`, or use the process-wide `registry()`."""

    plugins: tuple[Origin, ...]
    _strategies: Mapping[tuple[str, str], tuple[Provided, ...]]
    _ops: tuple[Provided, ...]
    _kernels: tuple[Provided, ...]
    _commands: Mapping[str, tuple[Provided, ...]]
    imports: tuple[ImportCost, ...]
    broken: tuple[Broken, ...]
    _hooks: Any = attrs.field(eq=False, repr=False)

    def strategies(self, kind: str) -> dict[str, type[Strategy]]:
        """Usable strategies of a kind, by name, sorted; clashing names are left out."""
        return {n: p[0].record for (k, n), p in sorted(self._strategies.items()) if k == kind and len(p) == 1}

    def origin(self, strategy: type[Strategy]) -> Origin:
        for provided in self._strategies.get((strategy.kind, strategy.name), ()):
            if provided.record is strategy:
                return provided.origin
        raise PluginError(f"{strategy.kind} '{strategy.name}' was not provided by any installed plugin")

    @property
    def commands(self) -> dict[str, Provided]:
        """Usable commands of plugins by name, sorted; clashing names are left out."""
        return {name: found[0] for name, found in sorted(self._commands.items()) if len(found) == 1}

    @property
    def clashes(self) -> list[str]:
        """One sentence for every name that is claimed twice."""
        commands = {("command", name): found for name, found in self._commands.items()}
        claims = sorted({**self._strategies, **commands}.items())
        return [_clash(*key, found) for key, found in claims if len(found) > 1]

    def get(self, base: type[S], name: str) -> type[S]:
        """The strategy of `base`'s kind called `name`.

        Raises:
            PluginError: it is not installed (the nearest name is suggested) or two distributions claim it.
        """
        found = self._strategies.get((base.kind, name), ())
        if len(found) > 1:
            raise PluginError(_clash(base.kind, name, found))
        if not found:
            known = self.strategies(base.kind)
            raise PluginError(f"no {base.kind} '{name}' is installed{nearest(name, known)}")
        return cast("type[S]", found[0].record)

    def make(self, base: type[S], spec: str | Mapping[str, Any] | S) -> S:
        """A configured strategy from a name, a recipe table `{name = ..., knobs}`, or an instance (returned as is)."""
        if isinstance(spec, base):
            return spec
        if isinstance(spec, str):
            return self.get(base, spec).configure({})
        if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
            raise PluginError(f"a {base.kind} is given as a name or a table with the key 'name', not {spec!r}")
        strategy = self.get(base, spec["name"])
        values = {key: value for key, value in spec.items() if key != "name"}
        return strategy.configure(self.resolve(strategy, values))

    def resolve(self, strategy: type[Strategy], values: Mapping[str, Any]) -> dict[str, Any]:
        """Recipe values as knob values: for a knob that is a `Use`, the name or the table becomes the strategy."""
        uses = {key: BASES[knob.domain.kind] for key, knob in strategy.knobs().items() if isinstance(knob.domain, Use)}
        return {key: self._made(uses[key], value) if key in uses else value for key, value in values.items()}

    def _made(self, base: type[S], value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple(self.make(base, each) for each in value)
        return None if value is None else self.make(base, value)

    @functools.cached_property
    def ops(self) -> OpTable:
        """All operators, merged."""
        from pumice.ops import OpTable

        return OpTable.merge((str(p.origin), cast("Op", p.record)) for p in self._ops)

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        return tuple(cast("Kernel", p.record) for p in self._kernels)

    @property
    def usable_kernels(self) -> tuple[Kernel, ...]:
        """Those that can run on this machine, the highest rank first."""
        return tuple(sorted((k for k in self.kernels if k.available() is None), key=lambda k: -k.rank))

    @property
    def kernel_origins(self) -> tuple[tuple[Origin, Kernel], ...]:
        """Every kernel with the distribution it came from."""
        return tuple((p.origin, cast("Kernel", p.record)) for p in self._kernels)

    def notify(self, hook: str, **arguments: Any) -> None:
        """Tell listeners; a listener that raises is warned about and does not disturb the run."""
        for implementation in getattr(self._hooks, hook).get_hookimpls():
            wanted = {name: arguments[name] for name in implementation.argnames}
            try:
                implementation.function(**wanted)
            except Exception as error:
                if _strict():
                    raise
                warnings.warn(f"plugin '{implementation.plugin_name}' failed in {hook}: {error}", stacklevel=2)


def _clash(kind: str, name: str, found: Iterable[Provided]) -> str:
    claimants = sorted({item.origin.distribution for item in found})
    if len(claimants) == 1:
        return f"{kind} '{name}' is provided twice by '{claimants[0]}': report it to its author"
    both = " and ".join(f"'{claimant}'" for claimant in claimants)
    return f"{kind} '{name}' is provided by both {both}: uninstall one of them"


def registry() -> Registry:
    """The process-wide registry, built once on first use; a broken plugin and a clash cost one warning each."""
    with _BUILDING:  # threads that start together share one registry
        return _registry()


@functools.cache
def _registry() -> Registry:
    found = discover()
    for broken in found.broken:
        warnings.warn(
            f"plugin '{broken.origin.entry_point}' ({broken.origin}) is left out: {broken.reason} "
            f"(run `pumice doctor`; to mend it: {broken.remedy})",
            stacklevel=3,
        )
    for clash in found.clashes:
        warnings.warn(clash, stacklevel=3)
    return found


def discover(entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> Registry:
    """Build a registry from the installed entry points, or from those given (tests).

    Raises:
        PluginError: `PUMICE_PLUGINS` names a plugin that is not installed; with `PUMICE_STRICT=1` also a clash, and
            whatever a broken plugin raised.
    """
    manager = pluggy.PluginManager("pumice")
    manager.add_hookspecs(hookspecs)
    broken: list[Broken] = []
    imports: dict[str, ImportCost] = {}
    for entry_point, origin in _selected(entry_points):
        try:
            if origin.entry_point in imports:
                raise PluginError(f"the entry point is already taken by {imports[origin.entry_point].origin}")
            imports[origin.entry_point] = _load(manager, entry_point, origin)
        except (Exception, SystemExit) as error:
            broken.append(_broken(origin, "api" if isinstance(error, PluginError) else "import", error))
    origins = {name: cost.origin for name, cost in imports.items()}
    provided = {hook: _collect(manager, hook, origins, broken) for hook in _provider_hooks()}
    found = Registry(
        plugins=tuple(origins.values()),
        strategies=_grouped(
            ((item.record.kind, item.record.name), item) for hook in STRATEGY_HOOKS for item in provided[hook]
        ),
        ops=tuple(provided["pumice_ops"]),
        kernels=tuple(provided["pumice_kernels"]),
        commands=_grouped((item.record.name, item) for item in provided["pumice_commands"]),
        imports=tuple(imports.values()),
        broken=tuple(broken),
        hooks=manager.hook,
    )
    if found.clashes and _strict():
        raise PluginError(found.clashes[0])
    return found


def _grouped(claims: Iterable[tuple[K, Provided]]) -> Mapping[K, tuple[Provided, ...]]:
    """Everything that claims a name, by name."""
    found: dict[K, tuple[Provided, ...]] = {}
    for key, item in claims:
        found[key] = (*found.get(key, ()), item)
    return MappingProxyType(found)


def _provider_hooks() -> list[str]:
    return [*STRATEGY_HOOKS, "pumice_ops", "pumice_kernels", "pumice_commands"]


def _all_hooks() -> list[str]:
    return [name for name in dir(hookspecs) if name.startswith("pumice_")]


def _strict() -> bool:
    return os.environ.get("PUMICE_STRICT", "") not in {"", "0"}


def _names(variable: str) -> set[str] | None:
    text = os.environ.get(variable)
    return None if text is None else {name.strip() for name in text.split(",") if name.strip()}


def _selected(
    entry_points: Iterable[importlib.metadata.EntryPoint] | None,
) -> list[tuple[importlib.metadata.EntryPoint, Origin]]:
    """Entry points in a fixed order, core first, after the allow and the deny list."""
    found = importlib.metadata.entry_points(group="pumice") if entry_points is None else entry_points
    allowed, denied = _names("PUMICE_PLUGINS"), _names("PUMICE_DISABLE_PLUGINS") or set()
    known = {(_origin(e).distribution, e.name, e.value): e for e in found}  # one installed twice counts once
    names = {name for _, name, _ in known}
    for name in sorted((allowed or set()) - names):
        raise PluginError(f"PUMICE_PLUGINS names the plugin '{name}', which is not installed{nearest(name, names)}")
    wanted = [
        key for key in known if key[1] == "core" or ((allowed is None or key[1] in allowed) and key[1] not in denied)
    ]
    return [(known[key], _origin(known[key])) for key in sorted(wanted, key=lambda key: (key[1] != "core", key))]


def _origin(entry_point: importlib.metadata.EntryPoint) -> Origin:
    distribution = entry_point.dist
    name, version = (distribution.name, distribution.version) if distribution else (None, None)
    return Origin(
        distribution=name or entry_point.value, version=version or "unknown version", entry_point=entry_point.name
    )


def _broken(origin: Origin, stage: str, error: BaseException) -> Broken:
    """The record of a failure; in strict mode the failure itself goes on."""
    if _strict():
        raise error
    reason = str(error) if isinstance(error, PluginError) else f"{stage} failed with {type(error).__name__}: {error}"
    return Broken(origin=origin, stage=stage, reason=reason, traceback="".join(traceback.format_exception(error)))


def _load(manager: pluggy.PluginManager, entry_point: importlib.metadata.EntryPoint, origin: Origin) -> ImportCost:
    """Import one plugin and register it with pluggy."""
    loaded, began = set(sys.modules), time.perf_counter()
    module = entry_point.load()
    seconds = time.perf_counter() - began
    heavy = HEAVY & {name.partition(".")[0] for name in sys.modules.keys() - loaded}
    version = getattr(module, "PUMICE_API", hookspecs.API_VERSION)
    if version != hookspecs.API_VERSION:
        raise PluginError(
            f"it was written for plugin API {version}, this pumice has {hookspecs.API_VERSION}: "
            f"install a matching release of {origin.distribution}"
        )
    _check_hooks(manager, module)
    manager.register(module, name=entry_point.name)
    return ImportCost(origin=origin, seconds=seconds, heavy=tuple(sorted(heavy)))


def _check_hooks(manager: pluggy.PluginManager, module: Any) -> None:
    """Refuse what pluggy would pass over in silence: no hook, an unknown one, a wrapper, a forgotten `@hookimpl`."""
    if not isinstance(module, ModuleType):
        raise PluginError(f"its entry point names {type(module).__name__} '{module}', but a plugin is a module")
    known = _all_hooks()
    marks = {name: manager.parse_hookimpl_opts(module, name) for name in dir(module)}
    hooks = {mark.get("specname") or name: mark for name, mark in marks.items() if mark is not None}
    if forgotten := sorted(name for name in known if callable(getattr(module, name, None)) and marks[name] is None):
        raise PluginError(f"its function '{forgotten[0]}' lacks the decorator @pumice.hookimpl")
    if not hooks:
        raise PluginError(f"its module '{module.__name__}' implements no hook")
    for name, mark in hooks.items():
        if name not in known and not mark.get("optionalhook"):
            raise PluginError(f"it implements the hook '{name}', which does not exist{nearest(name, known)}")
        if mark.get("wrapper") or mark.get("hookwrapper"):
            raise PluginError(f"it wraps the hook '{name}', but pumice's hooks are only implemented, never wrapped")


def _collect(
    manager: pluggy.PluginManager, hook: str, origins: Mapping[str, Origin], broken: list[Broken]
) -> list[Provided]:
    """Everything that plugins yield for a provider hook, in a fixed order; a plugin that fails yields nothing there."""
    found: list[Provided] = []
    implementations = getattr(manager.hook, hook).get_hookimpls()
    for name, origin in origins.items():
        try:
            records = [record for i in implementations if i.plugin_name == name for record in i.function()]
            for record in records:
                _validate(hook, record)
        except (Exception, SystemExit) as error:
            broken.append(_broken(origin, hook, error))
        else:
            found += [Provided(record=record, origin=origin) for record in records]
    return found


def _validate(hook: str, record: Any) -> None:
    base = STRATEGY_HOOKS.get(hook)
    if base is not None:
        _validate_strategy(hook, base, record)
    elif hook == "pumice_commands":
        if not isinstance(record, Command):
            raise PluginError(f"{hook} must yield pumice.Command records, not {record!r}")
    else:
        from pumice.ops import Kernel, Op

        wanted = Op if hook == "pumice_ops" else Kernel
        if not isinstance(record, wanted):
            raise PluginError(f"{hook} must yield pumice.ops.{wanted.__name__} records, not {record!r}")


def _validate_strategy(hook: str, base: type[Strategy], record: Any) -> None:
    if not (isinstance(record, type) and issubclass(record, base)):
        raise PluginError(f"{hook} must yield subclasses of {base.__name__}, not {record!r}")
    name: Any = record.name
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PluginError(f"{record.__name__} needs a lower-case class attribute `name`, not {name!r}")
    if "__attrs_attrs__" not in vars(record):
        raise PluginError(f"{record.__name__} must be decorated with @attrs.frozen(kw_only=True)")
    for field in attrs.fields(record):
        if field.name not in record.knobs():
            raise PluginError(f"field '{field.name}' of {record.__name__} must be declared with pumice.knob()")
