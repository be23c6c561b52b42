"""The licence that weights carry: the strictest of what their data and their first weights impose."""

NUSCENES = "cc-by-nc-sa-4.0"
"""nuScenes' own: weights that saw it may not be used commercially."""
FREE = ("apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0")
"""Licences that ask for no more than to be named."""
ON_THE_HUB = (*FREE, "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "openrail", "unknown")
"""Names that the Hub knows, of those that are likely here; any other is "other" with a name of its own."""
LINKS = {"dinov3-license": "https://ai.meta.com/resources/models-and-libraries/dinov3-license"}
"""Texts of licences that the Hub does not know."""
OFFICIAL_VERSIONS = ("v1.0-trainval", "v1.0-mini", "v1.0-test")


def license_of_data(data: str, version: str) -> str | None:
    """What the training data imposes.

    Args:
        data: ``synthetic`` for the drawn world, ``nuscenes`` for a folder in nuScenes format.
        version: Its folder of tables; one of nuScenes' names stands for nuScenes.

    Returns:
        None for data of the user's own: only they know.
    """
    if data == "synthetic":
        return "apache-2.0"
    return NUSCENES if version in OFFICIAL_VERSIONS else None


def strictest(*licenses: str | None) -> str | None:
    """The licence of weights that several apply to.

    Args:
        licenses: Of the data and of the first weights; None is one that is not known.

    Returns:
        None if any is not known; "a and b" if two that are not free differ.
    """
    if None in licenses:
        return None
    strict = sorted({license for license in licenses if license and license not in FREE})
    return " and ".join(strict) if strict else licenses[0]


def hub_metadata(license: str | None) -> dict[str, str]:
    """A licence as the Hub's cards say it: ``license``, and where the Hub does not know it its name and link."""
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
