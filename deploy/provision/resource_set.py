"""
Everything that one host should have.
"""

from pydantic import BaseModel, ConfigDict

from deploy.provision.requirements import AnyRequirement
from deploy.provision.resources import AnyResource


class ResourceSet(BaseModel):
    """
    Attributes:
        requirements: Must hold before the host is changed.
        placed: Contents of its disk, in the order in which they are placed.
        running: What runs from the contents of the disk.
    """

    model_config = ConfigDict(frozen=True)

    requirements: tuple[AnyRequirement, ...]
    placed: tuple[AnyResource, ...]
    running: tuple[AnyResource, ...]
