"""Licences of weights, from those of the training data and of the first weights."""

NUSCENES = "cc-by-nc-sa-4.0"
"""Licence of nuScenes, which allows no commercial use of weights that were trained on it."""
FREE = ("apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0")
"""Licences that require attribution at most."""
ON_THE_HUB = (*FREE, "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "openrail", "unknown")
"""The Hub's identifiers of common licences; the Hub calls any other licence "other" and shows its name."""
LINKS = {"dinov3-license": "https://ai.meta.com/resources/models-and-libraries/dinov3-license"}
"""Texts of licences for which the Hub has no identifier."""
OFFICIAL_VERSIONS = ("v1.0-trainval", "v1.0-mini", "v1.0-test")
"""Table folders of nuScenes itself; other names are the user's own data in nuScenes format."""


def license_of_data(data: str, version: str) -> str | None:
    """Return the licence that training data imposes on weights.

    Args:
        data: ``synthetic`` for the synthetic world, ``nuscenes`` for a folder in nuScenes format.
        version: The folder of tables, such as ``v1.0-trainval``.

    Returns:
        None for the user's own data, whose licence is unknown.

    >>> license_of_data("synthetic", "v1.0-mini"), license_of_data("nuscenes", "v1.0-mini")
    ('apache-2.0', 'cc-by-nc-sa-4.0')
    """
    if data == "synthetic":
        return "apache-2.0"
    return NUSCENES if version in OFFICIAL_VERSIONS else None


def strictest(*licenses: str | None) -> str | None:
    """Return the licence of weights to which several licences apply.

    Args:
        licenses: Of the data and of the first weights; None for an unknown one.

    Returns:
        None if any licence is unknown; "a and b" if two that are not free differ.

    >>> strictest("apache-2.0", "cc-by-nc-sa-4.0"), strictest("mit", None)
    ('cc-by-nc-sa-4.0', None)
    """
    if None in licenses:
        return None
    strict = sorted({license for license in licenses if license and license not in FREE})
    return " and ".join(strict) if strict else licenses[0]


def hub_metadata(license: str | None) -> dict[str, str]:
    """Convert a licence to card metadata: ``license``, and a name and link if the Hub has no identifier for it.

    >>> hub_metadata("my licence")
    {'license': 'other', 'license_name': 'my-licence'}
    """
    if license is None:
        return {"license": "unknown"}
    if license in ON_THE_HUB:
        return {"license": license}
    link = LINKS.get(license)
    return {
        "license": "other",
        "license_name": license.replace(" ", "-"),
        **({"license_link": link} if link else {}),
    }
