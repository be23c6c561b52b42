"""What the team's hub holds, and its names in ``timm.list_pretrained``.

Importing mim4d never uses the network: it registers the names of a folder, or those that the organisation had when they
were last listed.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import HfApi, ModelCard, constants
from timm.models import PretrainedCfg, _registry
from yaml import YAMLError

from ..errors import UserError, WeightsError
from ..io.files import cache_folder, write_bytes
from ..version import __version__
from .faults import hub_error, unreachable
from .fetch import HubRepo, fetch
from .folder import CARD, CONFIG, FAMILY, WEIGHTS, EncoderConfig, read_config
from .published import BASE_CFG, is_ours
from .schema import PRETRAINED
from .team import TeamHub, set_hub, team_hub


def use(place: str | Path | None) -> None:
    """Name the team's hub for this process, in place of ``MIM4D_HUB`` and the config file.

    Nothing is downloaded. Names of a folder are listed by ``timm.list_pretrained`` at once, those of an organisation
    once :func:`published` or ``mim4d-hub list`` has read them.

    Args:
        place: An organisation on the Hub; a folder, with a ``/`` or as a ``Path``; or None for no hub at all.

    Raises:
        UserError: If it is neither.
    """
    set_hub(place)
    register_names()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Published weights."""

    model: str
    """Name of the architecture, such as ``mim4d_convnext_base``."""
    tag: str | None
    """None if the weights have no tag."""
    default: bool
    """Whether the name without a tag loads these weights."""
    config: EncoderConfig
    private: bool = False
    """Whether only the organisation's members see these weights."""

    @property
    def name(self) -> str:
        """``mim4d_convnext_base.v1``."""
        return f"{self.model}.{self.tag}" if self.tag else self.model

    def row(self) -> tuple[str, ...]:
        """Name, what the name without a tag loads, data, scores and licence, as text."""
        made = self.config.provenance
        data = " ".join(str(made[key]) for key in ("data", "dataset") if made.get(key)) or "unknown"
        license = self.config.pretrained_cfg.get("license") or "not stated"
        return self.name, "default" if self.default else "", data, scores(made) or "none", license


HEADINGS = ("name", "", "data", "held-out scores", "licence")


def scores(made: dict[str, Any]) -> str:
    """The held-out scores of a pretraining: depth error relative to the depth, and PSNR of colours."""
    last = (made.get("measured") or {}).get("last") or {}
    for path in ("val_temporal", "val_direct"):
        found = {name: last.get(f"{path}_{name}") for name in ("abs_rel", "psnr")}
        texts = {"abs_rel": "depth error {:.3f}", "psnr": "PSNR {:.1f} dB"}
        if line := ", ".join(texts[name].format(value) for name, value in found.items() if value is not None):
            return line
    return ""


BEGIN, END = "<!-- begin: models -->", "<!-- end: models -->"
"""Lines around the table of models in a README."""


def collection_table(hub: TeamHub, entries: list[Entry]) -> str:
    """A table of encoders in Markdown between two marks, with the scores in the metadata of their cards."""
    lines = ["| model | data | scores | licence |", "| --- | --- | --- | --- |"]
    for entry in entries:
        _, _, data, held_out, license = entry.row()
        name = f"`{entry.name}`" if hub.folder else f"[`{entry.name}`]({constants.ENDPOINT}/{hub.place}/{entry.model})"
        lines.append(f"| {name} | {data} | {_card_scores(hub, entry) or held_out} | {license} |")
    return "\n".join([BEGIN, *lines, END])


def with_table(text: str, table: str) -> str:
    """Return a README with a new table in place of the one between the marks, or after the text if there is none.

    >>> print(with_table(f"# Models\\n\\n{BEGIN}\\nold\\n{END}\\nAsk Kim.", f"{BEGIN}\\nnew\\n{END}"))
    # Models
    <BLANKLINE>
    <!-- begin: models -->
    new
    <!-- end: models -->
    Ask Kim.
    """
    upto, end, after = text.rpartition(END)
    before, begin, _ = upto.rpartition(BEGIN)
    return f"{before}{table}{after}" if begin and end else f"{text.rstrip()}\n\n{table}\n"


def _card_scores(hub: TeamHub, entry: Entry) -> str:
    """The scores in the metadata of a card, such as ``depth R2 83.9 %``; empty if it has none."""
    where = hub.where(entry.model, entry.tag)
    try:
        file = Path(where) / CARD if hub.folder else fetch(HubRepo.parse(where), CARD)
        results = getattr(ModelCard(file.read_text(encoding="utf-8")).data, "eval_results", None) or []
    except (UserError, OSError, ValueError, YAMLError):  # a card that was edited, or is missing
        return ""
    return ", ".join(f"{result.metric_name} {result.metric_value} % ({result.dataset_name})" for result in results)


def published() -> list[Entry]:
    """Read what the team's hub holds; ``timm.list_pretrained`` shows it from then on.

    Without a network, the result is what the organisation had when it was last read.

    Raises:
        UserError: If no hub is named, or it cannot be read.
    """
    hub = team_hub()
    if hub is None:
        raise UserError("no hub is named: set MIM4D_HUB to your team's organisation on the Hub, or to a folder")
    if hub.folder:
        if not hub.folder.is_dir():
            raise UserError(f"{hub.set_by}: no such folder")
        entries = list(_in_folder(hub.folder))
    else:
        try:
            entries = _in_organisation(hub.place)
        except Exception as error:  # of the client or of its HTTP library
            if not unreachable(error) or not _saved(hub.place).is_file():
                raise error if isinstance(error, UserError) else hub_error(error, hub.place) from error
            entries = _read_saved(hub.place)
        else:
            _save(hub.place, entries)
    register_names(hub, entries)
    return entries


def _in_folder(folder: Path) -> list[Entry]:
    """The encoders in a folder; a NAME with the weights of a NAME.TAG is that tag's default."""
    found: dict[str, EncoderConfig] = {}
    for path in sorted(folder.iterdir()):
        if timm.is_model(path.name.partition(".")[0]) and (path / WEIGHTS).is_file() and (path / CONFIG).is_file():
            try:
                found[path.name] = read_config(path / CONFIG, str(path / CONFIG))
            except WeightsError:  # loading it says what is wrong
                continue
    entries = []
    for name, config in found.items():
        model, _, tag = name.partition(".")
        newest = found.get(model)
        same = newest is not None and newest.provenance.get("sha256") == config.provenance.get("sha256")
        if tag:
            entries.append(Entry(model=model, tag=tag, default=same, config=config))
        elif not any(_tagged(other, name, found) for other in found):
            entries.append(Entry(model=model, tag=None, default=True, config=config))
    return entries


def _tagged(name: str, model: str, found: dict[str, EncoderConfig]) -> bool:
    """Whether a name is a tag of the weights that a model's name without a tag has."""
    return name.startswith(f"{model}.") and (
        found[name].provenance.get("sha256") == found[model].provenance.get("sha256")
    )


def _in_organisation(organisation: str) -> list[Entry]:
    """The encoders of an organisation: its repositories with the name of a model."""
    api = HfApi(library_name="mim4d", library_version=__version__)
    entries = []
    for info in api.list_models(author=organisation):
        owner, _, model = info.id.partition("/")
        if owner != organisation or not timm.is_model(model):
            continue
        refs = api.list_repo_refs(info.id)
        newest = next((ref.target_commit for ref in refs.branches if ref.name == constants.DEFAULT_REVISION), None)
        tags: dict[str | None, str | None] = {ref.name: ref.target_commit for ref in refs.tags}
        if newest not in tags.values():
            tags[None] = newest
        for tag, commit in tags.items():
            try:
                config = read_config(fetch(HubRepo(info.id, revision=tag), CONFIG), f"{CONFIG} of {info.id}")
            except WeightsError:  # loading it says what is wrong
                continue
            known = Entry(model=model, tag=tag, default=commit == newest, config=config, private=bool(info.private))
            entries.append(known)
    return sorted(entries, key=lambda entry: entry.name)


def _saved(organisation: str) -> Path:
    """Where the entries of an organisation are saved; a mirror has its own."""
    where = hashlib.sha256(constants.ENDPOINT.encode()).hexdigest()[:8]
    return cache_folder() / "hub" / f"{organisation}-{where}.json"


def _save(organisation: str, entries: list[Entry]) -> None:
    rows = []
    for entry in entries:
        made = {name: value for name, value in entry.config.provenance.items() if name != "settings"}
        rows.append({**dataclasses.asdict(entry), "config": {**entry.config.values, "mim4d": made}})
    write_bytes(_saved(organisation), json.dumps(rows).encode())


def _read_saved(organisation: str) -> list[Entry]:
    rows = json.loads(_saved(organisation).read_text(encoding="utf-8"))
    return [Entry(**{**row, "config": EncoderConfig(row["config"])}) for row in rows]


_registered: list[str] = []
"""Names that :func:`register_names` added to timm."""


def register_names(hub: TeamHub | None = None, entries: list[Entry] | None = None) -> None:
    """Show names of the team's hub in ``timm.list_pretrained`` and ``timm.get_pretrained_cfg``, and no others.

    Args:
        hub: The hub; None for the one that is named.
        entries: What it holds; None for what is known without the network.
    """
    while _registered:
        name = _registered.pop()
        _registry._model_has_pretrained.discard(name)
        if "." in name:
            _registry._model_pretrained_cfgs.pop(name, None)
            _registry._model_with_tags[name.partition(".")[0]].remove(name)
    try:
        hub = hub or team_hub()
        if hub and entries is None:
            entries = list(_in_folder(hub.folder)) if hub.folder else _read_saved(hub.place)
    except (UserError, OSError, ValueError, TypeError, KeyError):  # loading a model says what is wrong
        return
    for entry in entries or []:
        if not entry.model.startswith(FAMILY) or is_ours(entry.model, entry.tag):
            continue  # timm loads its own names only
        assert hub is not None, "entries are of a hub"
        if entry.tag:
            _registry._model_pretrained_cfgs[entry.name] = _pretrained_cfg(entry, hub)
            _registry._model_with_tags[entry.model].append(entry.name)
            _add(entry.name)
        if entry.default and not is_ours(entry.model, None):
            _add(entry.model)


def _add(name: str) -> None:
    _registry._model_has_pretrained.add(name)
    _registered.append(name)


def _pretrained_cfg(entry: Entry, hub: TeamHub) -> PretrainedCfg:
    known = {field.name for field in dataclasses.fields(PretrainedCfg)} & PRETRAINED.keys()
    cfg = {name: value for name, value in entry.config.pretrained_cfg.items() if name in known}
    where = hub.where(entry.model, entry.tag)
    source = {"file": str(Path(where) / WEIGHTS)} if hub.folder else {"hf_hub_id": where}
    return PretrainedCfg(
        **{**BASE_CFG, "license": None, **cfg, **source, "architecture": entry.model, "tag": entry.tag}
    )
